"""A lock that one process holds on any file system, and that does not outlive it.

Locks of the operating system fall with their process, but on a shared file system they may be missing or hold on
one machine only.  So this lock is a file that only one process can create (O_EXCL); it says who that is, and a thread
of the holder touches it every `BEAT` seconds.  Where the process can be looked up, on the same machine since the same
boot, the operating system says whether it lives.  Elsewhere its lock falls when it has not been touched for `LIMIT`
seconds, on the clock of the file system.

What is protected must bear one accident nevertheless: a holder that was stopped for longer than `LIMIT` loses its
lock to another machine without knowing.  It calls what `held` yields before it changes anything, and is told.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT = 10.0  # seconds
LIMIT = 120.0
LOOK = 0.2  # how often one who waits looks


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
        Wait until another process that lives has ended its work, instead of raising.

    Yields
    ------
    callable
        Raises ValueError if another process has taken the lock away.

    Raises
    ------
    ValueError
        If another process holds the lock and lives.
    OSError
        If the file system refuses the lock file.
    """
    descriptor, mine = _take(path, what, wait)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):  # a file server that does not answer now; who lost the lock is told by `check`
                os.utime(descriptor)

    def check() -> None:
        if _read(path) != mine:
            other = _name(_read(path))
            raise ValueError(f"{what}: {other} has taken over, as this process was stopped for minutes; leave it to it")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield check
    finally:
        ended.set()
        thread.join()
        os.close(descriptor)
        if _read(path) == mine:
            path.unlink()


def _take(path: Path, what: str, wait: bool) -> tuple[int, str]:
    """Create the lock file: its descriptor and content."""
    process = os.getpid()
    owner = {"host": platform.node(), "process": process, "place": _place(), "started": _started(process)}
    mine = json.dumps(owner | {"token": secrets.token_hex(8)})
    first = None
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            pass
        except FileNotFoundError:  # the last holder has just removed the folder
            continue
        else:
            try:
                os.write(descriptor, mine.encode())
            except OSError:
                os.close(descriptor)
                path.unlink()
                raise
            return descriptor, mine
        try:
            found, touched = path.read_text(), path.stat().st_mtime
        except FileNotFoundError:
            continue
        lives = _lives(found)
        if lives is None:
            # empty: its owner was killed before it could write who it is, or is about to
            if _now(path.parent) - touched > (LIMIT if found else BEAT):
                lives = False
            elif first not in (None, (found, touched)):
                lives = True  # it was touched while we looked
        if lives is False:
            print(f"{what}: {_name(found)} has died and left its lock, which is removed", file=sys.stderr)
            if _read(path) == found:
                path.unlink(missing_ok=True)
            continue
        if lives and not wait:
            raise ValueError(f"{what}: {_name(found)} is writing it; wait for that process or stop it")
        if first is None:
            print(f"{what}: waiting, {_name(found)} is writing it or died just now", file=sys.stderr)
            first = found, touched
        time.sleep(LOOK if lives else 1)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _owner(content: str) -> dict:
    """Who wrote a lock file; empty if it was cut off."""
    with suppress(json.JSONDecodeError):
        owner = json.loads(content)
        if isinstance(owner, dict):
            return owner
    return {}


def _name(content: str) -> str:
    owner = _owner(content)
    return f"process {owner.get('process', 'unknown')} on {owner.get('host', 'a host unknown')}"


def _lives(content: str) -> bool | None:
    """Whether the owner of a lock lives; None if this machine cannot know."""
    owner = _owner(content)
    if "place" not in owner or owner["place"] != _place():
        return None
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return _started(owner["process"]) in (owner["started"], None)


def _place() -> str:
    """Where a number means one process: this boot of this machine, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return platform.node()


def _started(process: int) -> str | None:
    """When a process started, "ended" of one that is dead but not yet buried; None if the system does not say."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if state in "ZX" else rest[18]


def _now(folder: Path) -> float:
    """Time on the clock of a folder's file system."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
