"""A lock for shared file systems that expires when its holder dies.

Two jobs must not write one shard: a scheduler may restart a job while the first one still runs on an unreachable node.
On a shared file system, locks of the operating system may hold on one machine only or not at all.
So this is `filelock.SoftFileLease`, a file that only one process can create, and that its holder touches every `BEAT`
seconds.  On the same machine the operating system knows whether the holder is alive; a lock of another machine expires
if it is not touched for `LIMIT` seconds.

A holder that was suspended for longer than `LIMIT` may lose its lock to another machine.  It calls the function that
`held` yields before every change to find out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import gethostname

from filelock import SoftFileLease, Timeout

BEAT = 10.0  # seconds
LIMIT = 120.0
LOOK = 0.2  # polling interval


@contextmanager
def held(path: Path, what: str, wait: bool = False) -> Iterator[Callable[[], None]]:
    """Hold a lock.

    Parameters
    ----------
    path : Path
        The lock file; its folder is made.
    what : str
        What is protected, for messages.
    wait : bool
        Wait for another live holder instead of raising.

    Yields
    ------
    callable
        Raises ValueError if another process has taken the lock away.

    Raises
    ------
    ValueError
        If another live process holds the lock.
    OSError
        If the file system refuses the lock file.
    """
    lease = SoftFileLease(path, lease_duration=LIMIT, heartbeat_interval=BEAT)
    first, begin = None, time.monotonic()
    while not _taken(lease, path):
        if (seen := _read(path)) is None:
            continue
        if not seen[0] and first == seen and time.monotonic() - begin > BEAT:
            _remove_empty(path, what)
            continue
        # On this machine the lock of a dead process would have been taken; elsewhere a touch is a sign of life.
        lives = _field(seen[0], "host").partition("?")[0] == gethostname() or first not in (None, seen)
        if lives and not wait:
            raise ValueError(f"{what}: {_name(seen[0])} is writing it; wait for that process or stop it")
        if first is None:
            print(f"{what}: waiting, {_name(seen[0])} is writing it or died just now", file=sys.stderr)
            first, begin = seen, time.monotonic()
        time.sleep(LOOK)

    token = lease.token  # which only this thread can ask for, and `check` is called in any

    def check() -> None:
        for pause in (LOOK, LOOK, 0):  # a process that checks for a stale lock moves ours away for a moment
            content, _ = _read(path) or ("", 0)
            if _field(content, "token") == token:
                return
            time.sleep(pause)
        raise ValueError(
            f"{what}: {_name(content)} has taken over, as this process was stopped for minutes; leave it to it"
        )

    try:
        yield check
    finally:
        lease.release()


def _taken(lease: SoftFileLease, path: Path) -> bool:
    """Try to take the lock without waiting; whether it worked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lease.acquire(timeout=0)
    except (Timeout, FileNotFoundError):  # held, or the last holder has just removed the folder
        return False
    return True


def _remove_empty(path: Path, what: str) -> None:
    """Remove an empty lock file, left by a process that was killed before writing it; filelock would keep it for ever.

    One process at a time does so, lest it removes the file of the next holder.
    """
    with suppress(FileNotFoundError):
        judged = path.stat()
        try:
            with SoftFileLease(f"{path}.empty", lease_duration=LIMIT, heartbeat_interval=BEAT, timeout=BEAT):
                found = path.stat()
                if found.st_size == 0 and (found.st_ino, found.st_ctime_ns) == (judged.st_ino, judged.st_ctime_ns):
                    path.unlink()
        except Timeout as error:
            raise ValueError(f"{what}: delete {path}, left by a process that was killed, and run again") from error


def _read(path: Path) -> tuple[str, float] | None:
    """Content of a lock file and when it was touched."""
    with suppress(FileNotFoundError):
        return path.read_text(errors="replace"), path.stat().st_mtime
    return None


def _field(content: str, name: str) -> str:
    """A line `name=value` of a lock file; empty if it is cut off."""
    return next((line.partition("=")[2] for line in content.splitlines() if line.startswith(f"{name}=")), "")


def _name(content: str) -> str:
    host = _field(content, "host").partition("?")[0]
    return f"process {_field(content, 'pid') or 'unknown'} on {host or 'a host unknown'}"
