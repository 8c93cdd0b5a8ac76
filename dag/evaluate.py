"""One job of the evaluation: the predictions of one victim under many perturbations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dag import store, voc
from dag.cells import Cell
from dag.networks.interface import Network
from dag.perturbation import apply


def predict(
    network: Network,
    images: list[tuple[Path, str]],
    cells: list[Cell],
    *,
    device: str = "cpu",
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Show every image under every perturbation to the victim and store its predictions.

    The image is the outer loop, so it is decoded once.  Each perturbed image passes through the
    network alone: a prediction must not depend on which other cells a run happens to compute.

    Parameters
    ----------
    network : Network
        The victim.
    images : list of (root, image id)
    cells : list of Cell
        The cells to compute; the caller leaves out those that are done.

    Notes
    -----
    Segmentation stores uint8 (H, W) VOC class ids; detection stores float32 (D, 6) rows
    (x_min, y_min, x_max, y_max, VOC class id, score).  The attributes repeat what is known of the
    perturbation (perceptibility, largest value), measured on the stored array.
    """
    network = network.to(device)
    ids = [image_id for _, image_id in images]
    with ExitStack() as stack:
        sources = {
            path: stack.enter_context(store.reading(path, "perturbations"))
            for path in {cell.source for cell in cells if cell.source is not None}
        }
        shards = [
            stack.enter_context(store.writing(cell.path, "predictions", ids, cell.header)) for cell in cells
        ]
        for root, image_id in progress(images):
            image = voc.read_image(root, image_id)
            for cell, shard in zip(cells, shards, strict=True):
                if image_id in shard.done:
                    continue
                r, known = np.zeros_like(image), {"perceptibility": 0.0, "largest": 0.0}
                if cell.source is not None:
                    r, attributes = store.get(sources[cell.source], image_id)
                    known = {name: attributes[name] for name in known}
                seen = torch.from_numpy(apply(image, r, cell.pixels))[None].to(device)
                shard.put(image_id, prediction(network, seen), known)


@torch.no_grad()
def prediction(network: Network, image: torch.Tensor) -> NDArray:
    """Stored form of the victim's output for one image (1, 3, H, W), see `predict`."""
    if network.task == "segmentation":
        return network.label_map(image)[0].cpu().numpy()
    found = network.detect(image)[0]
    columns = [found.boxes, found.labels[:, None].float(), found.scores[:, None]]
    return torch.cat([column.float().cpu() for column in columns], dim=1).numpy()
