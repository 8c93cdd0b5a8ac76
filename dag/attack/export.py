"""Perturbations as files that other programs read."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from dag.attack.arithmetic import apply
from dag.data.readers import Reader
from dag.workflow import store
from dag.workflow.files import write_text

COLUMNS = ("id", "file", "shape", "sha256")


def export(shards: list[Path], reader: Reader, folder: Path) -> None:
    """Write every perturbed image and every perturbation of some shards.

    The folder receives images/ID.png, the perturbed image truncated to 0..255 and rounded to 8 bits,
    perturbations/ID.npy, r as it is stored, float32 (3, H, W) in grey levels, not truncated, and index.csv: id, file,
    shape and SHA-256 of every file.

    Parameters
    ----------
    shards : list of Path
        Of perturbations.
    reader : Reader
        Of their image set.
    folder : Path
        New or empty.

    Raises
    ------
    ValueError
        If a shard or an image cannot be read.
    """
    rows, roots = [], {image_id: root for root, image_id in reader.images()}
    for name in ("images", "perturbations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for shard in shards:
        with store.reading(shard, "perturbations") as file:
            for image_id in store.read_header(shard)["ids"]:
                r, _ = store.get(file, image_id)
                seen = apply(reader.image((roots[image_id], image_id)), r, "8-bit").astype(np.uint8).transpose(1, 2, 0)
                png, npy = io.BytesIO(), io.BytesIO()
                Image.fromarray(seen).save(png, "PNG")
                np.save(npy, r)
                for name, array, data in (
                    (f"images/{image_id}.png", seen, png.getvalue()),
                    (f"perturbations/{image_id}.npy", r, npy.getvalue()),
                ):
                    (folder / name).write_bytes(data)
                    shape = " x ".join(map(str, array.shape))
                    rows.append((image_id, name, shape, hashlib.sha256(data).hexdigest()))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    write_text(folder / "index.csv", text.getvalue())
