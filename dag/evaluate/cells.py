"""Cells: one (perturbation, pixels) pair shown to one victim, and the cache of their predictions.

A job computes all missing cells of a table on one shard, because starting a process per cell would
cost more than the cells.  Cells are shared by tables: a cell is keyed by the digest of everything that
determines it (its header), and an existing one with the right key is kept.  A new row or column
therefore computes only its own cells, and a single table only those that it shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dag.workflow import files, store


@dataclass(frozen=True)
class Cell:
    """One (perturbation, pixels) pair to show to a victim.

    Attributes
    ----------
    victim, perturbation : str
        Names.
    pixels : str
        "float", "8-bit" or "jpeg-75", see `dag.attack.arithmetic.apply`.
    source : Path or None
        Shard of the perturbation; None for `none`.
    path : Path
        Shard of predictions.
    header : dict
        Identity of that shard: everything that determines its content.
    """

    victim: str
    perturbation: str
    pixels: str
    source: Path | None
    path: Path
    header: dict

    def done(self) -> bool:
        """Whether up-to-date predictions are on disk; stale ones will be replaced."""
        try:
            return store.read_header(self.path, "predictions")["key"] == store.key(self.header)
        except ValueError:
            return False


def cells_of(
    folder: Path,
    victim: str,
    shard: str,
    sources: Mapping[str, Path | None],
    pixels: list[str],
    identity: Mapping[str, object],
) -> list[Cell]:
    """Cells of one victim on one shard.

    Parameters
    ----------
    folder : Path
        Folder of the predictions of the image set.
    victim, shard : str
    sources : mapping
        Shard of every perturbation by name; None for `none`.
    pixels : list of str
        Of the same kind.
    identity : mapping
        Everything that determines the predictions except the perturbation: network, weights, images, code.

    Raises
    ------
    ValueError
        If a shard cannot be read.
    """
    cells = []
    for name, source in sources.items():
        key = "none" if source is None else store.read_header(source, "perturbations")["key"]
        for kind in pixels:
            header = {**identity, "perturbation": name, "perturbation_key": key, "pixels": kind}
            path = folder / victim / f"{name}.{kind}" / f"{shard}.h5"
            cells.append(Cell(victim, name, kind, source, path, header))
    return cells


def write_manifest(path: Path, cells: list[Cell]) -> None:
    """Record the prediction shards of a table and their keys."""
    entries = [
        {
            "victim": cell.victim,
            "perturbation": cell.perturbation,
            "pixels": cell.pixels,
            "file": str(cell.path),
            "key": store.key(cell.header),
        }
        for cell in cells
    ]
    files.write_json(path, {"cells": entries})


def read_manifest(path: Path) -> dict[tuple[str, str, str], Path]:
    """Prediction shards by (victim, perturbation, pixels).

    Raises
    ------
    ShardError
        If a shard is missing or stale; see `recomputed`.
    """
    try:
        entries = json.loads(Path(path).read_text())["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise store.ShardError(path, "not a list of cells") from error
    found = {}
    for entry in entries:
        shard = Path(entry["file"])
        if store.read_header(shard, "predictions")["key"] != entry["key"]:
            raise store.ShardError(shard, f"not the shard that {path} names")
        found[entry["victim"], entry["perturbation"], entry["pixels"]] = shard
    return found


@contextmanager
def recomputed(*manifests: Path) -> Iterator[None]:
    """Make the next run recompute a cell that a job finds missing or damaged.

    Snakemake knows the manifest only, and takes all its cells for done while it exists.  So a cell that cannot be
    read is deleted together with the manifests that name it.

    Raises
    ------
    ValueError
        Instead of the `ShardError` of a cell; those of other files are passed on.
    """
    try:
        yield
    except store.ShardError as error:
        naming = [Path(path) for path in manifests if error.path == Path(path) or str(error.path) in _named(path)]
        if not naming:
            raise
        deleted = dict.fromkeys([error.path, *naming])
        for path in deleted:
            path.unlink(missing_ok=True)
        raise ValueError(
            f"{error.path}: {error.wrong}; deleted {', '.join(map(str, deleted))}: run the workflow again, "
            "which computes it"
        ) from error


def _named(manifest: Path) -> set[str]:
    """Files that a manifest names; none if it cannot be read."""
    try:
        return {entry["file"] for entry in json.loads(Path(manifest).read_text())["cells"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def check_images(manifest: Path, contents: Mapping[str, str]) -> None:
    """Refuse predictions of images that have changed since.

    Parameters
    ----------
    manifest : Path
        Of one shard, whose cells were all computed from the same images.
    contents : mapping
        {"image": digest of its images}, see `dag.workflow.contents.digests`.

    Raises
    ------
    ShardError
        If the images were changed after they were predicted; see `recomputed`.
    """
    for shard in list(read_manifest(manifest).values())[:1]:
        if store.read_header(shard, "predictions")["contents"]["image"] != contents["image"]:
            raise store.ShardError(manifest, "the images have changed since they were predicted")


def detections_of(rows: NDArray) -> dict[str, NDArray]:
    """Boxes (D, 4), labels (D,) and scores (D,) of stored rows (D, 6), see `dag.evaluate.predict.predict`."""
    return {"boxes": rows[:, :4], "labels": rows[:, 4].astype(np.int64), "scores": rows[:, 5]}


def predictions(shards: list[Path], images: list[tuple[Path, str]]) -> tuple[list[NDArray], list[dict]]:
    """Stored arrays and attributes of one cell, from all its shards, in the order of the image set.

    Raises
    ------
    ValueError
        If an image is in none of the shards.
    """
    found = {}
    for shard in shards:
        with store.reading(shard, "predictions") as file:
            for image_id in file:
                found[image_id] = store.get(file, image_id)
    missing = [image_id for _, image_id in images if image_id not in found]
    if missing:
        raise ValueError(f"{shards[0].parent}: no predictions for {len(missing)} images, the first is {missing[0]}")
    pairs = [found[image_id] for _, image_id in images]
    return [array for array, _ in pairs], [attributes for _, attributes in pairs]
