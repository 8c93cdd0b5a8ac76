"""Shards: HDF5 files with one dataset per image, written atomically and resumably.

A shard holds arrays of one kind ("perturbations" or "predictions") for a consecutive slice of an
image set.  The attributes of a dataset hold the metadata of its image (status, iterations, ...); the
header of the file records, as JSON, everything that determined the content.  `key`, the digest of the
header, identifies stale files.  Arrays are stored without loss (`dag.workflow.encoding`); all results
are computed from the stored arrays.

Mechanisms, and the failure that each prevents:

======================  ==================================================================================
part                    A kill costs an image or a second of work, not the shard: HDF5 modifies files in
                        place, and a job killed inside a write leaves the file unreadable.  So a shard grows in
                        the folder ``{shard}.h5.parts`` as immutable files, and the HDF5 file is assembled from
                        them at the end, in the order of the image set.  Its bytes do not depend on
                        interruptions.
digest of a part        A part that is truncated (power cut) or has a flipped bit is recomputed.
checksum of a chunk     A flipped bit in an array is detected on reading (HDF5's Fletcher filter).
seal                    A flipped bit elsewhere: HDF5 has no checksum of its index, and one flipped bit there
                        leads to a wrong array or an endless loop.  The SHA-256 of everything but the arrays is
                        appended to the file, where HDF5 ignores it, and verified before HDF5 opens the file.
`PatientFile`           A full disk is an error of the job: HDF5 crashes the process when a write fails.
lock                    Two jobs of one shard do not repeat each other's work (`dag.workflow.lock`).  Names of
                        parts are unique, so even two writers cannot damage anything.
second name (`keep`)    No attack is repeated when Snakemake deletes a finished output, as it does if it was
                        killed before it recorded the end of the job.  A hard link stays in the folder until
                        the run has ended (`forget`), and the next job restores the shard from it.
======================  ==================================================================================
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import metadata
from itertools import groupby
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from dag.workflow import encoding, files, lock
from dag.workflow.files import ShardError, explained, removed_on_failure

FORMAT = 2
LOCK, PART, SECOND = "lock", ".part", "second.h5"
MOST_BYTES = 2**24  # of a part, unless one image has more: parts are held in memory
# Errors of file systems without hard links.
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def key(header: object) -> str:
    """SHA-256 of the header, or of anything else, as canonical JSON."""
    return hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that compute the numbers."""
    packages = ("torch", "torchvision", "numpy", "h5py")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


class BusyError(ValueError):
    """Another process is writing the shard."""


class Writer:
    """A shard that is being written; made by `writing`.

    Attributes
    ----------
    done : set of str
        Ids that are already stored.
    """

    def __init__(
        self, path: Path, kind: str, ids: list[str], header: dict, every: float, keep: bool, compress: bool,
        check: Callable[[], None],
    ):  # fmt: skip
        self._second = _folder(path) / SECOND if keep else None
        self._path, self._folder, self._check = path, _folder(path), check
        self._ids, self._every, self._compress, self._label = ids, every, compress, _label(kind, ids, header)
        self._of, self._new, self._saved = [kind, self._label["key"], compress], {}, time.monotonic()
        self._finished = self._is_wanted(path) or (keep and self._put_back())
        self._parts = {} if self._finished else self._left_behind()
        self.done = set(ids) if self._finished else set(self._parts)

    def put(self, image_id: str, array: NDArray, attributes: dict) -> None:
        """Store one image's array and attributes (numbers, strings, 1-D arrays); see `every` of `writing`."""
        if image_id in self.done or image_id not in self._ids:
            raise ValueError(f"{self._path}: image {image_id} is there already or is not of this shard; leave it out")
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{self._path}: image {image_id} has values that are not finite")
        # converted as if read back from a part, so that an interruption makes no difference
        plain = {name: np.asarray(value).tolist() for name, value in attributes.items()}
        self._new[image_id] = encoding.encode(array, self._compress), plain
        self.done.add(image_id)
        size = sum(len(encoded.chunk) for encoded, _ in self._new.values())
        if time.monotonic() - self._saved >= self._every or size >= MOST_BYTES:
            self.save()

    def save(self) -> None:
        """Write pending images to a new part."""
        if self._new:
            part = self._folder / (secrets.token_hex(8) + PART)
            with explained(self._path):
                self._check()
                # not worth waiting for the disk: the digest detects a part that a power cut has truncated
                files.write(part, *encoding.pack(self._of, self._new), wait=not self._every)
            self._parts |= dict.fromkeys(self._new, part)
            self._saved, self._new = time.monotonic(), {}

    def finish(self) -> None:
        """Assemble the shard from its parts and move it into place."""
        missing = [image_id for image_id in self._ids if image_id not in self.done]
        if missing:
            raise ValueError(f"{self._path}: {len(missing)} images are missing, the first is {missing[0]}")
        with explained(self._path):
            self._check()
            if not self._finished:
                whole = self._folder / f"{secrets.token_hex(8)}.whole"
                with removed_on_failure(whole):
                    self._merge(whole)
            for file in self._files() - {self._second}:
                file.unlink()

    def _merge(self, whole: Path) -> None:
        with encoding.PatientFile(whole, "w+") as raw:
            with h5py.File(raw, "w", libver="earliest", meta_block_size=4096 * len(self._ids)) as file:
                file.attrs.update(self._label)
                for part, image_ids in groupby(self._ids, key=self._parts.get):
                    images = encoding.unpack(part)[1] if part else self._new
                    for image_id in image_ids:
                        encoding.store(file, image_id, *images[image_id], self._compress)
                        raw.complain()
                file.flush()
                arrays = [encoding.place(file[image_id]) for image_id in self._ids]
            encoding.seal(raw, sorted(place for place in arrays if place))
            raw.complain()
            os.fsync(raw.fileno())
        if self._second:
            try:
                os.link(whole, self._second)
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                print(
                    f"{self._path}: no second name, this file system has no hard links ({error.strerror}); if "
                    "Snakemake is killed before it knows of this shard, it computes it again",
                    file=sys.stderr,
                )
        os.replace(whole, self._path)
        files.sync(self._path.parent)

    def _put_back(self) -> bool:
        """Restore the shard from its second name if the shard itself is missing and every array is intact."""
        if not self._is_wanted(self._second):
            return False
        try:
            with reading(self._second) as file:
                for image_id in self._ids:
                    get(file, image_id)
        except ValueError:
            return False
        whole = self._folder / f"{secrets.token_hex(8)}.whole"
        with removed_on_failure(whole):
            os.link(self._second, whole)
            os.utime(whole)  # newer than all its inputs, as if it had just been made
            os.replace(whole, self._path)
        return True

    def _is_wanted(self, path: Path) -> bool:
        try:
            header = read_header(path, self._label["kind"])
        except ValueError:
            return False
        return header["key"] == self._label["key"] and header["ids"] == self._ids

    def _left_behind(self) -> dict[str, Path]:
        """{id: part} of the images that an earlier job has finished; all other parts are removed."""
        found = {}
        for path in self._folder.glob("*" + PART):
            try:
                of, images = encoding.unpack(path)
            except ValueError as error:
                print(f"{error}; its images are computed again", file=sys.stderr)
                continue
            found |= {image_id: path for image_id in images if of == self._of and image_id in self._ids}
        for file in self._files() - set(found.values()):
            file.unlink()
        return found

    def _files(self) -> set[Path]:
        return set(self._folder.iterdir()) - {self._folder / LOCK}


@contextmanager
def writing(
    path: Path,
    kind: str,
    ids: list[str],
    header: dict,
    every: float = 0,
    wait: bool = False,
    keep: bool = False,
    compress: bool = True,
) -> Iterator[Writer]:
    """Write a shard, or resume one that an interrupted job left.

    Parameters
    ----------
    path : Path
        Final place; it appears only when every id has been put.
    kind : str
        "perturbations" or "predictions".
    ids : list of str
        The images of the shard, in order.
    header : dict
        Everything that determines the content; JSON-serialisable.
    every : float
        Seconds of work that a crash may cost; 0 writes every image immediately.
    wait : bool
        While another process is writing the same shard, wait instead of raising.
    keep : bool
        Leave a hard link to the finished shard, in case Snakemake deletes it; see `forget`.
    compress : bool
        Compress the arrays; not worthwhile for files that are deleted in the same run.

    Yields
    ------
    Writer
        `done` holds the ids that are already stored; all of them if the shard is up to date.

    Raises
    ------
    BusyError
        If another process is writing the same shard.
    ValueError
        If an id is missing at the end.
    OSError
        If the disk is full or the folder is not writable; parts written before are kept.
    """
    path = Path(path)
    folder = _folder(path)
    with ExitStack() as stack:
        stack.callback(_remove_empty, folder)
        with explained(path):
            try:
                check = stack.enter_context(lock.held(folder / LOCK, str(path), wait))
            except ValueError as error:
                raise BusyError(*error.args) from error
            writer = Writer(path, kind, ids, header, every, keep, compress, check)
        try:
            yield writer
        except BaseException:
            writer.save()
            raise
        writer.finish()


def forget(folder: Path) -> None:
    """Remove the second names of the shards of a folder that are in place, once the run has ended."""
    for second in Path(folder).glob(f"*.parts/{SECOND}"):
        if second.parent.with_suffix("").exists():
            second.unlink()
            _remove_empty(second.parent)


def read_header(path: Path, kind: str | None = None) -> dict:
    """Header of a complete shard, with "key", "ids" and "versions" added.

    Raises
    ------
    ValueError
        If the file is missing, truncated, damaged, foreign, or of another format or kind.
    """
    with _opened(path, kind) as (_, label):
        extra = {name: json.loads(label[name]) for name in ("ids", "versions")}
        return json.loads(label["header"]) | {"key": label["key"]} | extra


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
    with _opened(path, kind) as (file, label), _intact(path, "the attributes are"):
        return {image_id: _attributes(file[image_id]) for image_id in json.loads(label["ids"])}


@contextmanager
def reading(path: Path, kind: str | None = None) -> Iterator[h5py.File]:
    """Open a complete shard for `get`; raises like `read_header`."""
    with _opened(path, kind) as (file, _):
        yield file


def get(file: h5py.File, image_id: str, names: tuple[str, ...] | None = None) -> tuple[NDArray, dict]:
    """Array and attributes (all, or those of `names` that it has) of one image of an open shard; raises like `read`."""
    with _intact(file.filename, f"the data of image {image_id} are"):
        if image_id in file:
            dataset = file[image_id]
            return dataset[()], _attributes(dataset, names)
    raise ValueError(f"{file.filename}: no image {image_id}; the shard belongs to another image set")


@contextmanager
def _opened(path: Path, kind: str | None) -> Iterator[tuple[h5py.File, dict]]:
    """An open shard, and its header as it is stored."""
    if not Path(path).is_file():
        raise ShardError(path, "no such shard", "run the workflow to make it")
    with _intact(path, "the index or the header is"):
        sealed = encoding.sealed(path)
    try:
        file = h5py.File(path, "r", locking=False)  # read-only, and not every file system has locks
    except (OSError, RuntimeError) as error:
        raise ShardError(path, "truncated or not an HDF5 file") from error
    with file:
        with _intact(path, "the header is"):
            found = file.attrs.get("dag")
        if found is None:
            raise ShardError(path, "an HDF5 file, but not a shard of this project")
        if found != FORMAT:
            raise ShardError(path, f"shard format {found}, this version reads {FORMAT}")
        if not sealed:
            raise ShardError(path, "truncated or changed since it was made")
        label = {name: file.attrs[name] for name in ("kind", "key", "header", "ids", "versions")}
        if kind is not None and label["kind"] != kind:
            raise ShardError(path, f"holds {label['kind']}, not {kind}")
        yield file, label


def _folder(path: Path) -> Path:
    """Folder of the parts of a shard."""
    return path.with_name(path.name + ".parts")


def _label(kind: str, ids: list[str], header: dict) -> dict:
    """Attributes of a shard's file."""
    label = {"kind": kind, "key": key(header), "header": json.dumps(header, sort_keys=True), "ids": json.dumps(ids)}
    return {"dag": FORMAT} | label | {"versions": json.dumps(versions())}


def _attributes(dataset: h5py.Dataset, names: tuple[str, ...] | None = None) -> dict:
    values = {name: dataset.attrs[name] for name in names or dataset.attrs if name in dataset.attrs}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


@contextmanager
def _intact(path: Path | str, what: str) -> Iterator[None]:
    """Turn all errors of h5py, numpy and json on damaged bytes into one sentence."""
    try:
        yield
    except Exception as error:
        raise ShardError(path, f"{what} damaged") from error


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty: it holds parts, or another process has started
        folder.rmdir()
