"""Write and read files of `torch.save`: tensors by name, no code, and a digest that every flipped bit changes."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

# A file of torch.save is a zip archive, which may end with a comment: here the SHA-256 of all bytes before it.
# torch.load ignores it.  The CRC-32 of the records would not do: torch.load does not compare it, and it leaves out the
# directory, where a flipped bit moves the beginning of a tensor.
MARK = b"sha256:"
COMMENT_LENGTH = len(MARK) + 64
END_LENGTH = 22  # of the last record of a zip archive, which has the comment behind it


def write(weights: dict, file: BinaryIO) -> None:
    """Write a dictionary to a binary file, opened for writing and reading, by `torch.save`, followed by its digest."""
    torch.save(weights, file)
    file.seek(-2, os.SEEK_END)  # the length of the comment is the last field of a zip archive
    file.write(struct.pack("<H", COMMENT_LENGTH))
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0, os.SEEK_END)
    file.write(MARK + digest.encode())


def read(path: Path) -> dict:
    """The dictionary in a file of `torch.save`, its tensors on the CPU; no code in the file is executed.

    The digest of a file of `write` is compared; published files have none.

    Raises
    ------
    ValueError
        If the file cannot be read or holds something else.  The message says why, without the name of the file, which
        the caller adds; torch's own advice, to load such a file with `weights_only=False`, would run its code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are refused below
            _compare_digest(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(error.strerror or "the file cannot be read") from error
    except Exception as error:
        raise ValueError(_reason(Path(path), error)) from None  # not even in a traceback
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__} and not a state dict; save network.state_dict()")
    return found


def _compare_digest(path: Path) -> None:
    with open(path, "rb") as file:
        if file.read(2) != b"PK":  # no zip archive, which torch.load finds out
            return
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - END_LENGTH, 0))
        end = file.read()
        if end.startswith(b"PK\5\6") and end.endswith(b"\0\0"):  # no comment: not a file of `write`
            return
        digest, left = hashlib.sha256(), size - COMMENT_LENGTH
        file.seek(0)
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
        if file.read() != MARK + digest.hexdigest().encode():
            raise zipfile.BadZipFile("the digest differs")


def _reason(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(2)
    objects = (
        "it holds Python objects besides tensors and is not loaded, because that could run code; "
        "save network.state_dict() instead of the network"
    )
    if start == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.rpartition("/")[2] for name in archive.namelist()]
        except Exception:  # zipfile raises several kinds for a damaged directory
            return "it is truncated or damaged; delete it and download or train it again"
        if "constants.pkl" in names:
            return "it is a TorchScript program; save network.state_dict() with torch.save instead"
        if "data.pkl" not in names:
            return "it was not written by torch.save"
        unreadable = isinstance(error, pickle.UnpicklingError)
        return objects if unreadable else "it is damaged; delete it and download or train it again"
    if start[:1] == b"\x80":  # a pickle, as torch.save wrote it before version 1.6
        unreadable = isinstance(error, pickle.UnpicklingError)
        return objects if unreadable else "it is truncated or damaged; delete it and download or train it again"
    return "it was not written by torch.save" if start else "it is empty; delete it and download or train it again"
