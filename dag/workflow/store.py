"""Shards: HDF5 files with one dataset per image, written so that nothing is lost or half done.

A shard holds arrays of one kind ("perturbations" or "predictions") for a consecutive slice of an
image set.  Each dataset carries what is known about its image as attributes (status, iterations,
...); the file carries a header: everything that determined the content, as JSON.  `key`, the
digest of the header, tells whether a file on disk is the one that is wanted.

Arrays are stored without loss (float32, shuffle + gzip, 14 % smaller); all that is reported is computed from the
stored arrays.  HDF5's own checksum covers their bytes and nothing else, and a wrong bit elsewhere may lead to another
array or keep HDF5 busy for ever.  So a shard ends with a seal behind the HDF5 file, which HDF5 does not see: where the
arrays lie, and the SHA-256 of all the rest.  It is looked at before HDF5 is.

HDF5 changes a file in place: a job killed inside a write would leave it damaged.  So a shard grows as
a folder ``{shard}.h5.parts`` beside its final place.  The images of the last `every` seconds (see `writing`) become one
part, a file that is written beside, renamed, and not touched again: its SHA-256, a line of JSON that describes the
images, and their values.  When all are there, the HDF5 file is written in the order of the image set and renamed into
its place; it has the same bytes however often the work was interrupted.  A lock in the folder keeps a second writer
out (`dag.workflow.lock`), and names of files are never shared, so that even two writers could not damage anything.

Snakemake deletes a finished shard if it was killed before it had noted its end, or if another job of it has failed.
So a second name of the file may stay in the folder until the run has ended (`keep` of `writing`, `forget`), from which
the next job gives the shard its place again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import platform
import secrets
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from dag.workflow import lock

FORMAT = 2
LOCK, PART, SECOND = "lock", ".part", "second.h5"
SEAL, MAGIC = struct.Struct("<Q32s8s"), b"dag seal"
# What a file system without hard links answers to the wish for one.
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class ShardError(ValueError):
    """A shard that is missing, damaged or not what it has to be: one sentence with its `path` and what is `wrong`."""

    def __init__(self, path: Path | str, wrong: str, remedy: str = "delete it and run the workflow again"):
        super().__init__(f"{path}: {wrong}; {remedy}")
        self.path, self.wrong = Path(path), wrong


def key(header: object) -> str:
    """SHA-256 of the header, or of anything else, as canonical JSON."""
    return hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    packages = ("torch", "torchvision", "numpy", "h5py")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


class Writer:
    """A shard that is being written; made by `writing`.

    Attributes
    ----------
    done : set of str
        The ids that are there already.
    """

    def __init__(
        self, path: Path, kind: str, ids: list[str], header: dict, every: float, keep: bool, check: Callable[[], None]
    ):
        self._second = _folder(path) / SECOND if keep else None
        self._path, self._folder, self._check = path, _folder(path), check
        self._ids, self._every, self._label = ids, every, _label(kind, ids, header)
        self._of, self._new, self._saved = [kind, self._label["key"]], {}, time.monotonic()
        self._finished = self._is_wanted(path) or (keep and self._put_back())
        self._parts = {} if self._finished else self._left_behind()
        self.done = set(ids) if self._finished else set(self._parts)

    def put(self, image_id: str, array: NDArray, attributes: dict) -> None:
        """Store one image's array and attributes (numbers, strings, 1-D arrays); see `every` of `writing`."""
        if image_id in self.done or image_id not in self._ids:
            raise ValueError(f"{self._path}: image {image_id} is there already or is not of this shard; leave it out")
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{self._path}: image {image_id} has values that are not finite")
        # as they will come back from a part, so that an interruption makes no difference
        plain = {name: np.asarray(value).tolist() for name, value in attributes.items()}
        self._new[image_id] = np.array(array, order="C"), plain
        self.done.add(image_id)
        if time.monotonic() - self._saved >= self._every:
            self.save()

    def save(self) -> None:
        """Make safe what was put since the last time."""
        if self._new:
            part = self._folder / (secrets.token_hex(8) + PART)
            with _explained(self._path):
                self._check()
                _write(part, *_packed(self._of, self._new))
            self._parts |= dict.fromkeys(self._new, part)
            self._saved, self._new = time.monotonic(), {}

    def finish(self) -> None:
        """Make one file of all, in its place."""
        missing = [image_id for image_id in self._ids if image_id not in self.done]
        if missing:
            raise ValueError(f"{self._path}: {len(missing)} images are missing, the first is {missing[0]}")
        with _explained(self._path):
            self._check()
            if not self._finished:
                whole = self._folder / f"{secrets.token_hex(8)}.whole"
                with _removed_on_failure(whole):
                    self._merge(whole)
            for file in self._files() - {self._second}:
                file.unlink()

    def _merge(self, whole: Path) -> None:
        with _Patient(whole, "w+") as raw:
            with h5py.File(raw, "w", libver="earliest", meta_block_size=4096 * len(self._ids)) as file:
                file.attrs.update(self._label)
                for part, image_ids in groupby(self._ids, key=self._parts.get):
                    images = _unpacked(part)[1] if part else self._new
                    for image_id in image_ids:
                        _store(file, image_id, *images[image_id])
                        raw.complain()
                file.flush()
                arrays = [_place(file[image_id]) for image_id in self._ids]
            _seal(raw, sorted(place for place in arrays if place))
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
        _sync(self._path.parent)

    def _put_back(self) -> bool:
        """Give the shard its place again if its second name alone is left, and if every array is intact."""
        if not self._is_wanted(self._second):
            return False
        try:
            with reading(self._second) as file:
                for image_id in self._ids:
                    get(file, image_id)
        except ValueError:
            return False
        whole = self._folder / f"{secrets.token_hex(8)}.whole"
        with _removed_on_failure(whole):
            os.link(self._second, whole)
            os.utime(whole)  # later than all it is made from, as if it had been made now
            os.replace(whole, self._path)
        return True

    def _is_wanted(self, path: Path) -> bool:
        try:
            header = read_header(path, self._label["kind"])
        except ValueError:
            return False
        return header["key"] == self._label["key"] and header["ids"] == self._ids

    def _left_behind(self) -> dict[str, Path]:
        """The part that holds each image that an earlier job has finished; everything else is removed."""
        found = {}
        for path in self._folder.glob("*" + PART):
            try:
                of, images = _unpacked(path)
            except ValueError as error:
                print(f"{error}; its images are computed again", file=sys.stderr)
                continue
            found |= {image_id: path for image_id in images if of == self._of and image_id in self._ids}
        for file in self._files() - set(found.values()):
            file.unlink()
        return found

    def _files(self) -> set[Path]:
        return set(self._folder.iterdir()) - {self._folder / LOCK}


class _Patient(io.FileIO):
    """A file that takes all that is written to it and complains later: HDF5 crashes the process when a write fails."""

    failure: OSError | None = None

    def write(self, data) -> int:
        rest = memoryview(data)
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = error
        return size

    def truncate(self, size=None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = error
            return size

    def complain(self) -> None:
        if self.failure:
            raise self.failure


@contextmanager
def writing(
    path: Path, kind: str, ids: list[str], header: dict, every: float = 0, wait: bool = False, keep: bool = False
) -> Iterator[Writer]:
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
    wait : bool
        While another process is writing the same shard, wait instead of raising.
    keep : bool
        Leave a second name of the finished shard, without which it is lost when Snakemake deletes it; see `forget`.

    Yields
    ------
    Writer
        `done` holds the ids that are there already; all of them if the very shard is in its place.

    Raises
    ------
    ValueError
        If another process is writing the same shard, or an id is missing at the end.
    OSError
        If the disk is full or the folder may not be written to; what was safe before stays so.
    """
    path = Path(path)
    folder = _folder(path)
    with ExitStack() as stack:
        stack.callback(_remove_empty, folder)
        with _explained(path):
            check = stack.enter_context(lock.held(folder / LOCK, str(path), wait))
            writer = Writer(path, kind, ids, header, every, keep, check)
        try:
            yield writer
        except BaseException:
            writer.save()
            raise
        writer.finish()


def forget(folder: Path) -> None:
    """Remove the second names of the shards of a folder that are in their places, as nobody will delete these now."""
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
    """Array and attributes (all, or those of the given `names`) of one image of an open shard; raises like `read`."""
    with _intact(file.filename, f"the data of image {image_id} are"):
        if image_id in file:
            dataset = file[image_id]
            return dataset[()], _attributes(dataset, names)
    raise ValueError(f"{file.filename}: no image {image_id}; the shard belongs to another image set")


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
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, text.encode())


@contextmanager
def _opened(path: Path, kind: str | None) -> Iterator[tuple[h5py.File, dict]]:
    """An open shard, and its header as it is stored."""
    if not Path(path).is_file():
        raise ShardError(path, "no such shard", "run the workflow to make it")
    with _intact(path, "the index or the header is"):
        sealed = _sealed(path)
    try:
        file = h5py.File(path, "r", locking=False)  # nobody changes it, and not every file system has locks
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
    """Where a shard grows."""
    return path.with_name(path.name + ".parts")


def _label(kind: str, ids: list[str], header: dict) -> dict:
    """Attributes of a shard's file."""
    label = {"kind": kind, "key": key(header), "header": json.dumps(header, sort_keys=True), "ids": json.dumps(ids)}
    return {"dag": FORMAT} | label | {"versions": json.dumps(versions())}


def _store(file: h5py.File, image_id: str, array: NDArray, attributes: dict) -> None:
    options = {"chunks": array.shape, "compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
    dataset = file.create_dataset(image_id, data=array, **(options if array.size else {}))
    dataset.attrs.update(attributes)


def _attributes(dataset: h5py.Dataset, names: tuple[str, ...] | None = None) -> dict:
    values = {name: dataset.attrs[name] for name in names or dataset.attrs}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _place(dataset: h5py.Dataset) -> tuple[int, int] | None:
    """First byte and number of bytes of an array in its file; an empty array has none."""
    if dataset.size:
        chunk = dataset.id.get_chunk_info(0)
        return chunk.byte_offset, chunk.size
    return None


def _seal(file: BinaryIO, arrays: list[tuple[int, int]]) -> None:
    """Write behind an HDF5 file where its arrays lie, in order, and the digest of the rest."""
    listed = json.dumps(arrays).encode()
    file.seek(0, os.SEEK_END)
    file.write(listed)
    file.write(SEAL.pack(len(listed), _digest(file, arrays, file.tell()), MAGIC))


def _sealed(path: Path) -> bool:
    """Whether a file has a seal; raises RuntimeError, or anything, if that does not fit."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END) - SEAL.size
        if end < 0:
            return False
        file.seek(end)
        size, digest, magic = SEAL.unpack(file.read())
        if magic != MAGIC:
            return False
        file.seek(end - size)
        if _digest(file, json.loads(file.read(size)), end) != digest:
            raise RuntimeError("wrong checksum")
    return True


def _digest(file: BinaryIO, arrays: list[tuple[int, int]], end: int) -> bytes:
    """SHA-256 of the first bytes of a file up to `end`, those of arrays left out."""
    digest, begin = hashlib.sha256(), 0
    for first, size in [*arrays, (end, 0)]:
        if not begin <= first <= end:
            raise RuntimeError("wrong order")
        file.seek(begin)
        digest.update(file.read(first - begin))
        begin = first + size
    return digest.digest()


def _bytes(array: NDArray) -> NDArray:
    """The bytes of an array, uint8, not copied if they lie in order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _packed(of: list[str], images: dict[str, tuple[NDArray, dict]]) -> list:
    """Content of a part: images, id -> (array, attributes); `of` says which shard they belong to, kind and key."""
    about = [
        {"id": image_id, "type": array.dtype.str, "shape": array.shape, "attributes": attributes}
        for image_id, (array, attributes) in images.items()
    ]
    content = [json.dumps({"dag": FORMAT, "of": of, "images": about}).encode() + b"\n"]
    content += [_bytes(array) for array, _ in images.values()]
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return [digest.digest(), *content]


def _unpacked(path: Path) -> tuple[list[str], dict[str, tuple[NDArray, dict]]]:
    """What was packed into a part; raises ValueError if anything of it is not as it was written."""
    content = path.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(memoryview(content)[size:]).digest() != content[:size]:
        raise ValueError(f"{path}: damaged")
    start = content.index(b"\n", size) + 1
    about, images = json.loads(content[size:start]), {}
    if about["dag"] != FORMAT:
        raise ValueError(f"{path}: of another version")
    for image in about["images"]:
        array = np.frombuffer(content, image["type"], math.prod(image["shape"]), start).reshape(image["shape"])
        images[image["id"]] = array, image["attributes"]
        start += array.nbytes
    return about["of"], images


@contextmanager
def _intact(path: Path | str, what: str) -> Iterator[None]:
    """Turn all that h5py, numpy and json raise on damaged bytes into one sentence."""
    try:
        yield
    except Exception as error:
        raise ShardError(path, f"{what} damaged") from error


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system says of a full or protected disk into one sentence."""
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


def _write(path: Path, *content: bytes) -> None:
    """Write a file beside `path`, then rename it into place."""
    partial = path.with_name(path.name + ".partial")
    with _removed_on_failure(partial):
        with open(partial, "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


@contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    """Leave no unfinished file behind: on a full disk it takes the room of finished ones."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds parts, or another process has begun
        folder.rmdir()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
