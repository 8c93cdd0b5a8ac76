"""Atomic writing of files, and disk errors as one sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ShardError(ValueError):
    """A shard that is missing, damaged or has unexpected content, with its `path` and what is `wrong`."""

    def __init__(self, path: Path | str, wrong: str, remedy: str = "delete it and run the workflow again"):
        super().__init__(f"{path}: {wrong}; {remedy}")
        self.path, self.wrong = Path(path), wrong


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: object) -> None:
    """Write JSON beside `path`, then rename it into place."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> object:
    """Content of a file of `write_json`.

    Raises
    ------
    ValueError
        If the file is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); run the workflow to make it") from error
    except ValueError as error:
        raise ShardError(path, f"damaged ({error})") from error


def write_text(path: Path, text: str) -> None:
    """Write text beside `path`, then rename it into place."""
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, text.encode())


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's errors about a full or write-protected disk into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "make room and run the workflow again, which goes on with what is done"
            raise OSError(f"{path}: cannot be written, the disk is full ({error.strerror}); {advice}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "make its folder writable and run the workflow again"
            raise OSError(f"{path}: cannot be written ({error.strerror}); {advice}") from error
        raise


def write(path: Path, *content: bytes, wait: bool = True) -> None:
    """Write to a temporary file beside `path` and rename it; with `wait`, flush it to disk first."""
    partial = path.with_name(path.name + ".partial")
    with removed_on_failure(partial):
        with open(partial, "wb") as file:
            file.writelines(content)
            file.flush()
            if wait:
                os.fsync(file.fileno())
        os.replace(partial, path)


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Remove the unfinished file on failure: on a full disk it takes the space of finished ones."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush the entries of a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
