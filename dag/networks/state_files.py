"""Read what `torch.save` wrote: tensors by name, and no code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import torch


def read(path: Path) -> dict:
    """The dictionary in a file of `torch.save`, its tensors on the CPU; no code in the file is executed.

    Raises
    ------
    ValueError
        If the file cannot be read or holds something else.  The message says why, without the name of the file, which
        the caller adds; torch's own advice, to load such a file with `weights_only=False`, would run its code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are refused below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(error.strerror or "the file cannot be read") from error
    except Exception as error:
        raise ValueError(_reason(Path(path), error)) from None  # not even in a traceback
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__} and not a state dict; save network.state_dict()")
    return found


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
        except (zipfile.BadZipFile, OSError):
            return "it is truncated or damaged; download or train it again"
        if "constants.pkl" in names:
            return "it is a TorchScript program; save network.state_dict() with torch.save instead"
        if "data.pkl" not in names:
            return "it was not written by torch.save"
        unreadable = isinstance(error, pickle.UnpicklingError)
        return objects if unreadable else "it is damaged; download or train it again"
    if start[:1] == b"\x80":  # a pickle, as torch.save wrote it before version 1.6
        unreadable = isinstance(error, pickle.UnpicklingError)
        return objects if unreadable else "it is truncated or damaged; download or train it again"
    return "it was not written by torch.save" if start else "the file is empty; download or train it again"
