"""Checksums of downloaded files: published ones, and those recorded at the first download where none was published."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 1 << 18


# Kinds of published checksums.
CHECKSUMS = ("sha256", "sha256_prefix", "sha1", "md5")


def pin(lock: str | Path, name: str, sha256: str, path: str | Path) -> None:
    """Record the SHA-256 of a file whose checksum nobody has published; refuse another one later.

    Parameters
    ----------
    lock : path
        JSON file, {name: SHA-256}; made if missing.  Jobs may pin at the same time.
    name : str
        Name of the file, the same in every run.
    sha256 : str
        What `fetch` has returned.
    path : path
        Path of the file, for messages.

    Raises
    ------
    ValueError
        If `name` is recorded with another SHA-256.
    """
    lock = Path(lock)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock.with_suffix(lock.suffix + ".flock"), "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        known = _read_lock(lock)
        if known.setdefault(name, sha256) != sha256:
            raise ValueError(
                f"{name} has SHA-256 {sha256}, but {lock} recorded {known[name]} when it was first downloaded; "
                + how_to_unpin(lock, name, path)
            )
        beside = lock.with_suffix(lock.suffix + ".part")
        beside.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
        sync(beside)
        os.replace(beside, lock)


def how_to_unpin(lock: str | Path, name: str, path: str | Path) -> str:
    """Advice on a recorded checksum that does not match."""
    return (
        f"bring back the first file or, if that was a wrong one, delete the entry {name} from {lock} and the file "
        f"{path}, and run the workflow again"
    )


def pinned(lock: str | Path, name: str) -> str | None:
    """The SHA-256 that `pin` has recorded for `name`, or None; hand it to `fetch`."""
    return _read_lock(Path(lock)).get(name)


def _read_lock(lock: Path) -> dict[str, str]:
    try:
        return json.loads(lock.read_text()) if lock.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{lock} is not JSON ({error}); correct it, or delete it to record them again") from error


def given_checksums(
    path: Path, sha256: str | None, sha256_prefix: str | None, sha1: str | None, md5: str | None
) -> dict[str, str]:
    """The given checksums in lower case; raises ValueError for a wrong length (SHA-256 may be a prefix)."""
    given = {"sha256": sha256, "sha1": sha1, "md5": md5}
    checksums = {name: value.strip().lower() for name, value in given.items() if value}
    for name, value in checksums.items():
        digits = _digits(name)
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise ValueError(f"{path}: {value!r} is not a {name} checksum; give {digits} hexadecimal digits")
    if sha256_prefix:
        beginning = sha256_prefix.strip().lower()
        if not re.fullmatch("[0-9a-f]{8,64}", beginning):
            raise ValueError(f"{path}: {sha256_prefix!r} is not the beginning of a sha256 checksum; give 8 digits")
        if not checksums.setdefault("sha256", beginning).startswith(beginning):
            raise ValueError(f"{path}: {sha256} does not begin with {beginning}; correct sha256 or sha256_prefix")
    return checksums


def _digits(name: str) -> int:
    return 2 * hashlib.new(name, usedforsecurity=False).digest_size


def in_words(name: str, value: str) -> str:
    """A checksum for a message; what is not complete says so."""
    return value if len(value) == _digits(name) else f"{value}..."


def verify(path: Path, checksums: dict[str, str], size: int | None) -> tuple[str, str | None]:
    """SHA-256 of a file, and the mismatch as text (None if it is the published file)."""
    if not path.is_file():
        return "", "is not a file"
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", *checksums}}
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            for value in hashes.values():
                value.update(chunk)
        found = file.tell()
    sha256 = hashes["sha256"].hexdigest()
    if size is not None and found != size:
        return sha256, f"has {found} bytes instead of {size}"
    for name, expected in checksums.items():
        if not hashes[name].hexdigest().startswith(expected):
            return sha256, f"has {name} {hashes[name].hexdigest()} instead of {in_words(name, expected)}"
    return sha256, None


def require_space(path: Path, missing: int) -> None:
    free = shutil.disk_usage(next(parent for parent in path.absolute().parents if parent.exists())).free
    if free < missing:
        raise OSError(errno.ENOSPC, f"{missing} bytes are still to be written and {free} are free")


@contextmanager
def disk_full_in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"the disk is full ({error.strerror}): make room for {path} and run the same command again"
        ) from error


def sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
