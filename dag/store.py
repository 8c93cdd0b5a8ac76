"""Shards: HDF5 files with one dataset per image, written so that nothing is lost or half done.

A shard holds arrays of one kind ("perturbations" or "predictions") for a consecutive slice of an
image set.  Each dataset carries what is known about its image as attributes (status, iterations,
...); the file carries a header: everything that determined the content, as JSON.  `key`, the
digest of the header, tells whether a file on disk is the one that is wanted.

Arrays are stored without loss (float32, shuffle + gzip, 14 % smaller) and with a checksum; all
that is reported is computed from the stored arrays.

A shard is written beside its final place as ``.partial``, flushed as it grows (`every` of `writing`), and renamed
when it is complete.  A job that died leaves the partial file, and the next one with the same key
goes on after the last finished image; if the kill fell inside a write and damaged the file, the
shard is begun anew.  Two settings matter: HDF5's default (oldest) file version,
because a file of the newest version that was not closed cannot be opened again, and the flush.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

FORMAT = 1


def key(header: dict) -> str:
    """SHA-256 of the header as canonical JSON."""
    return hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    packages = ("torch", "torchvision", "numpy", "h5py")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


class Writer:
    """One open partial shard; made by `writing`."""

    def __init__(self, file: h5py.File, every: float):
        self._file, self._every, self._flushed = file, every, time.monotonic()
        self.done = {image_id for image_id in file if "stored" in file[image_id].attrs}
        for image_id in set(file) - self.done:  # cut off between its data and its last attribute
            del file[image_id]

    def put(self, image_id: str, array: NDArray, attributes: dict) -> None:
        """Store one image's array and attributes (numbers, strings, 1-D arrays); see `every` of `writing`."""
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{self._file.filename}: image {image_id} has values that are not finite")
        options = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
        dataset = self._file.create_dataset(image_id, data=array, **(options if array.size else {}))
        dataset.attrs.update(attributes)
        dataset.attrs["stored"] = True
        if time.monotonic() - self._flushed >= self._every:
            self._file.flush()
            self._flushed = time.monotonic()
        self.done.add(image_id)


@contextmanager
def writing(path: Path, kind: str, ids: list[str], header: dict, every: float = 0) -> Iterator[Writer]:
    """Write a shard, or go on with the one that an interrupted job left.

    Parameters
    ----------
    path : Path
        Final place; it appears only when every id has been put.
    kind : str
        "perturbations" or "predictions".
    ids : list of str
        The images of the shard, in order.
    header : dict
        All that determines the content; must survive JSON.
    every : float
        Seconds of work that a crash may cost; 0 makes every image safe as soon as it is put.

    Yields
    ------
    Writer
        `done` holds the ids that are there already.

    Raises
    ------
    ValueError
        If another process is writing the same shard, or an id is missing at the end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    wanted = key(header)
    if partial.exists() and _partial_key(partial) != wanted:
        partial.unlink()
    try:
        file = h5py.File(partial, "a", libver="earliest")
    except BlockingIOError as error:
        raise ValueError(f"{partial}: another process is writing this shard; wait for it or stop it") from error
    with file:
        file.attrs.update(
            {
                "dag": FORMAT,
                "kind": kind,
                "key": wanted,
                "header": json.dumps(header, sort_keys=True),
                "ids": json.dumps(ids),
                "versions": json.dumps(versions()),
                "complete": False,
            }
        )
        file.flush()
        yield Writer(file, every)
        missing = [image_id for image_id in ids if image_id not in file]
        if missing:
            raise ValueError(f"{partial}: {len(missing)} images are missing, the first is {missing[0]}")
        file.attrs["complete"] = True
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def read_header(path: Path, kind: str | None = None) -> dict:
    """Header of a complete shard, with "key", "ids" and "versions" added.

    Raises
    ------
    ValueError
        If the file is missing, truncated, foreign, unfinished, or of another format or kind.
    """
    with reading(path, kind) as file, _intact(path, "the header is"):
        return _header(file)


def read(path: Path, image_id: str, kind: str | None = None) -> tuple[NDArray, dict]:
    """Array and attributes of one image.

    Raises
    ------
    ValueError
        As `read_header`; also if the image is not in the shard or its data are damaged.
    """
    with reading(path, kind) as file:
        return get(file, image_id)


def read_attributes(path: Path, kind: str | None = None) -> dict[str, dict]:
    """Attributes of every image of a shard, by id in the shard's order; no array is read."""
    with reading(path, kind) as file, _intact(path, "the attributes are"):
        return {image_id: _attributes(file[image_id]) for image_id in json.loads(file.attrs["ids"])}


@contextmanager
def reading(path: Path, kind: str | None = None) -> Iterator[h5py.File]:
    """Open a complete shard for `get`; raises like `read_header`."""
    remedy = "delete it and run the workflow again"
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such shard; run the workflow to make it")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: truncated or not an HDF5 file; {remedy}") from error
    with file:
        with _intact(path, "the header is"):
            if "dag" not in file.attrs:
                raise ValueError(f"{path}: an HDF5 file, but not a shard of this project; {remedy}")
            if file.attrs["dag"] != FORMAT:
                raise ValueError(f"{path}: shard format {file.attrs['dag']}, this version reads {FORMAT}; {remedy}")
            if kind is not None and file.attrs["kind"] != kind:
                raise ValueError(f"{path}: holds {file.attrs['kind']}, not {kind}; {remedy}")
            if not file.attrs["complete"]:
                raise ValueError(f"{path}: unfinished shard; {remedy}")
        yield file


def get(file: h5py.File, image_id: str, names: tuple[str, ...] | None = None) -> tuple[NDArray, dict]:
    """Array and attributes (all, or those of the given `names`) of one image of an open shard; raises like `read`."""
    with _intact(file.filename, f"the data of image {image_id} are"):
        if image_id not in file:
            raise ValueError(f"{file.filename}: no image {image_id}; the shard belongs to another image set")
        dataset = file[image_id]
        return dataset[()], _attributes(dataset, names)


def write_json(path: Path, content: object) -> None:
    """Write JSON beside `path`, then rename it into place."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text beside `path`, then rename it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    os.replace(partial, path)


@contextmanager
def _intact(path: Path | str, what: str) -> Iterator[None]:
    """Turn all that h5py and json raise on damaged bytes into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {what} damaged; delete the file and run the workflow again") from error


def _attributes(dataset: h5py.Dataset, names: tuple[str, ...] | None = None) -> dict:
    values = {name: dataset.attrs[name] for name in names or dataset.attrs if name != "stored"}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _header(file: h5py.File) -> dict:
    extra = {name: json.loads(file.attrs[name]) for name in ("ids", "versions")}
    return json.loads(file.attrs["header"]) | {"key": file.attrs["key"]} | extra


def _partial_key(partial: Path) -> str | None:
    """Key of a partial file; None if any of it cannot be read.

    HDF5 changes its index in place: a job killed inside a write can leave a file that opens and is
    damaged all the same, so everything in it is read.
    """
    try:
        with h5py.File(partial, "r") as file, _intact(partial, "the partial shard is"):
            for image_id in file:
                get(file, image_id)
            return file.attrs.get("key")
    except BlockingIOError as error:
        raise ValueError(f"{partial}: another process is writing this shard; wait for it or stop it") from error
    except (OSError, ValueError) as error:
        print(f"{partial}: damaged by a job that was killed while it wrote, begun anew ({error})", file=sys.stderr)
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
