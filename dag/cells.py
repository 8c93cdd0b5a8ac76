"""Cells: one (perturbation, pixels) pair shown to one victim, and which of them are on disk already.

A job computes all missing cells of a victim at once, because starting one process per cell would
cost more than the cells; a cell that is there with the right key is kept.  So a new row or column of a
table computes its own cells and no others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dag import store


@dataclass(frozen=True)
class Cell:
    """One (perturbation, pixels) pair to show to a victim.

    Attributes
    ----------
    perturbation : str
        Name of the perturbation.
    pixels : str
        "float" or "8-bit".
    source : Path or None
        Shard of the perturbation; None for `none`.
    path : Path
        Shard of predictions.
    header : dict
        Identity of that shard: everything that determines its content.
    """

    perturbation: str
    pixels: str
    source: Path | None
    path: Path
    header: dict

    def done(self) -> bool:
        """Whether the wanted predictions are on disk; anything else found there will be replaced."""
        try:
            return store.read_header(self.path, "predictions")["key"] == store.key(self.header)
        except ValueError:
            return False


def cells_of(
    folder: Path, sources: Mapping[str, Path | None], pixels: list[str], identity: Mapping[str, object]
) -> list[Cell]:
    """Cells of one victim and shard.

    Parameters
    ----------
    folder : Path
        Where the prediction shards lie.
    sources : mapping
        Shard of every perturbation by name; None for `none`.
    pixels : list of str
        "float", "8-bit".
    identity : mapping
        What determines the predictions besides the perturbation: network, weights, images, code.

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
            cells.append(Cell(name, kind, source, folder / f"{name}.{kind}.h5", header))
    return cells


def write_manifest(path: Path, cells: list[Cell]) -> None:
    """Record the cells of a victim and shard: their names, files (relative to the manifest) and keys."""
    path = Path(path)
    entries = [
        {
            "perturbation": cell.perturbation,
            "pixels": cell.pixels,
            "file": str(cell.path.relative_to(path.parent)),
            "key": store.key(cell.header),
        }
        for cell in cells
    ]
    store.write_json(path, {"cells": entries})


def read_manifest(path: Path) -> dict[tuple[str, str], Path]:
    """Prediction shards by (perturbation, pixels).

    Raises
    ------
    ValueError
        If a shard is missing or is not the one that the manifest names.
    """
    path = Path(path)
    found = {}
    for entry in json.loads(path.read_text())["cells"]:
        shard = path.parent / entry["file"]
        if store.read_header(shard, "predictions")["key"] != entry["key"]:
            raise ValueError(f"{shard}: not the shard that {path} names; delete {path} and run the workflow again")
        found[entry["perturbation"], entry["pixels"]] = shard
    return found


def detections_of(rows: NDArray) -> dict[str, NDArray]:
    """Boxes (D, 4), labels (D,) and scores (D,) of stored rows (D, 6), see `dag.evaluate.predict`."""
    return {"boxes": rows[:, :4], "labels": rows[:, 4].astype(np.int64), "scores": rows[:, 5]}
