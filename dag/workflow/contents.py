"""Digests of images and of their ground truth: besides code and weights, the inputs that decide a result.

A job reads every file and compares its digest with the stored headers (`digests`).  Planning needs the digests of all
shards within seconds and takes them from a cache that identifies files by size and times (`planned`).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from dag.data import pictures
from dag.data.image_sets import ImageError
from dag.data.readers import VOC_LAYOUT, Reader, reader_of

# A file changed less than this before it was read may change again within the resolution of its time stamp.
UNSETTLED = 2 * 10**9  # nanoseconds
UNKNOWN = (0, 0, 0)  # no file has these size and times
MANY = 1000  # files, above which a message is logged


def digests(images: Iterable[tuple[Path, str]], *kinds: str, reader: Reader = VOC_LAYOUT) -> dict[str, str]:
    """SHA-256 of the files of some images, by kind; every file is read, once in a process.

    It is computed from the output of `sha256sum` for the files, without folders, in the order of the images.

    Parameters
    ----------
    images : iterable of (root, image id)
    kinds : str
        "image", the ground truth of a task, "segmentation" or "detection", or "perturbation", an imported
        perturbation; `root` is then its folder.
    reader : Reader
        Of their image set.

    Raises
    ------
    ImageError
        If a file cannot be read.
    """
    images = list(images)
    return {kind: _of_files(tuple(dict.fromkeys(_paths(images, kind, reader)))) for kind in kinds}


class Contents(dict):
    """Digests as a parameter of a job; those unknown at planning are looked up when Snakemake records the parameter.

    Snakemake records the `repr` of a parameter when the job has ended, and does not re-evaluate parameters of jobs that
    ran on a cluster.

    Parameters
    ----------
    look : callable
        Returns the digests, None for unknown ones.
    """

    def __init__(self, look: Callable[[], Mapping]):
        super().__init__(look())
        self._look = look

    def __repr__(self) -> str:
        if "None" in super().__repr__():
            self.update(self._look())
        return super().__repr__()

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


def planned(
    image_set: Mapping,
    chosen: Callable[[list], list],
    *kinds: str,
    name: str,
    folder: Path,
) -> dict[str, str | None]:
    """`digests` of some images of an image set as far as they are known when jobs are planned.

    A file whose size and times match the cache is not read.  A missing file is assumed unchanged, so that finished
    results stay up to date when their images are removed.

    Parameters
    ----------
    image_set : mapping
        name, parts and format, see `dag.workflow.jobs.image_set`.
    chosen : callable
        Picks the images out of all of the set.
    kinds : str
        As of `digests`.
    name : str
        Unique name of this choice of images, e.g. a shard.
    folder : Path
        Of the cache, one file per choice and kind.  If it cannot be written, the images are read every time.

    Returns
    -------
    dict
        By kind; None if the images have never been read because they are not yet downloaded or made.
    """
    # new images come with a new list, so within a process its state tells whether to look at the images again
    parts = tuple((*part.values(), _state(part["list"])) for part in image_set["parts"])
    reader, found = reader_of(image_set), {}
    for kind in kinds:
        place = Path(folder, image_set["name"], f"{name}.{kind}.json")
        if (parts, place) not in _known:
            _known[parts, place] = _planned(reader, parts, chosen, kind, place)
        found[kind] = _known[parts, place]
    return found


_known: dict[tuple, str | None] = {}


def _planned(reader: Reader, parts: tuple, chosen: Callable[[list], list], kind: str, place: Path) -> str | None:
    seen = _read(place)
    if parts not in _lists:
        _lists[parts] = _listed(reader)
    images = _lists[parts]
    if images is None:
        return _digest({path: entry[-1] for path, entry in seen.items()}) if seen else None
    try:
        paths = _paths(chosen(images), kind, reader)
        states = {path: _state(path) for path in paths}
        changed = [path for path, state in states.items() if state and seen.get(path, [])[:-1] != list(state)]
        if len(changed) >= MANY:
            print(f"Reading {len(changed)} files, see {place}; those that do not change are read once", file=sys.stderr)
        with ThreadPoolExecutor() as pool:  # hashing releases the GIL
            read = dict(zip(changed, pool.map(_sha256, changed), strict=True))
    except ValueError:
        return None  # the job reports the error
    settled = time.time_ns() - UNSETTLED
    entries = {path: seen.get(path, [*UNKNOWN, "absent"]) for path in states}
    for path, sha256 in read.items():
        entries[path] = [*(states[path] if max(states[path][1:]) < settled else UNKNOWN), sha256]
    if entries != seen:
        _write(place, entries)
    return _digest({path: entry[-1] for path, entry in entries.items()})


_lists: dict[tuple, list[tuple[str, str]] | None] = {}


def _listed(reader: Reader) -> list[tuple[str, str]] | None:
    """Images of all parts; None if a list cannot be read (the job reports the error)."""
    with suppress(ValueError):
        return [(part["root"], image_id) for part in reader.parts for image_id in reader.ids(part)]
    return None


def _paths(images: Iterable[tuple[str | Path, str]], kind: str, reader: Reader) -> list[str]:
    if kind == "perturbation":
        return [str(pictures.perturbation_file(root, image_id)) for root, image_id in images]
    return [str(path) for image in images for path in reader.files(kind, image)]


@cache
def _of_files(paths: tuple[str, ...]) -> str:
    return _digest({path: _sha256(path) for path in paths})


def _digest(files: Mapping[str, str]) -> str:
    """Of {path: SHA-256}."""
    lines = "".join(f"{sha256}  {os.path.basename(path)}\n" for path, sha256 in files.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file; check the image id or unpack the data again") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); unpack the data again") from error


def _state(path: str) -> tuple[int, int, int] | None:
    """Size and times of a file; None if it is missing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(place: Path) -> dict[str, list]:
    """{path: [size, time of change, time of status change, SHA-256]} of a cache, {} if there is none."""
    with suppress(OSError, ValueError):
        found = json.loads(place.read_bytes())
        if isinstance(found, dict) and all(isinstance(e, list) and isinstance(e[-1], str) for e in found.values()):
            return found
    return {}


def _write(place: Path, entries: dict[str, list]) -> None:
    """Replace a cache as a whole: several processes may do so at the same time."""
    beside = place.with_name(f"{place.name}.{secrets.token_hex(8)}")
    with suppress(OSError):  # it is a cache
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(json.dumps(entries))
            os.replace(beside, place)
        finally:
            beside.unlink(missing_ok=True)
