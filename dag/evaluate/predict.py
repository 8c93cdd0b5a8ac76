"""One job of the evaluation: the predictions of one victim under many perturbations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from dag.attack.arithmetic import apply
from dag.data.image_sets import ImageError
from dag.evaluate.cells import Cell
from dag.networks.interface import Network
from dag.networks.layers.precision import arithmetic
from dag.workflow import store


def predict(
    network: Network,
    images: Sequence[NDArray],
    ids: list[str],
    cells: list[Cell],
    *,
    device: str = "cpu",
    progress: Callable[[Iterable], Iterable] = iter,
) -> int:
    """Show every image under every perturbation to the victim and store its predictions.

    Each perturbed image passes through the network alone: a prediction must not depend on which other
    cells a run happens to compute.

    Parameters
    ----------
    network : Network
        The victim.
    images : sequence of arrays (3, H, W)
        Of the shard, in [0, 255].
    ids : list of str
        Their ids.
    cells : list of Cell
        Cells of this victim; those that are done by now are kept.

    Returns
    -------
    int
        Number of cells that were computed here; another job may have done the others meanwhile.

    Notes
    -----
    Segmentation stores uint8 (H, W) VOC class ids; detection stores float32 (D, 6) rows
    (x_min, y_min, x_max, y_max, VOC class id, score).  The attributes repeat what is known of the
    perturbation (perceptibility, largest value), measured on the stored array.
    """
    network = network.to(device)
    computed = 0
    for cell in progress(cells):
        with ExitStack() as stack:
            # two tables may share a cell: if another job is at it, wait, and then nothing is left to do
            shard = stack.enter_context(store.writing(cell.path, "predictions", ids, cell.header, every=1, wait=True))
            if len(shard.done) == len(ids):
                continue
            source = cell.source and stack.enter_context(store.reading(cell.source, "perturbations"))
            for image, image_id in zip(images, ids, strict=True):
                if image_id in shard.done:
                    continue
                with _naming(cell, image_id, image):
                    r, known = np.zeros_like(image), {"perceptibility": 0.0, "largest": 0.0}
                    if source:
                        r, known = store.get(source, image_id, tuple(known))
                    seen = torch.from_numpy(apply(image, r, cell.pixels))[None].to(device)
                    shard.put(image_id, prediction(network, seen), known)
            computed += 1
    return computed


@contextmanager
def _naming(cell: Cell, image_id: str, image: NDArray) -> Iterator[None]:
    """Name the image in the sentence of a job that runs out of memory or is stopped."""
    where = "image {} ({} x {} pixels)".format(image_id, *image.shape[1:])
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ImageError(
            f"{cell.path}: {cell.victim} cannot be shown {where}: it does not fit into the memory of the GPU; "
            "use one with more memory"
        ) from error
    except KeyboardInterrupt as interruption:
        interruption.add_note(f"{cell.victim} was seeing {where} under {cell.perturbation}")
        raise


@torch.no_grad()
def prediction(network: Network, image: torch.Tensor) -> NDArray:
    """Stored form of the victim's output for one image (1, 3, H, W), see `predict`."""
    with arithmetic("fp32", image.device.type):
        if network.task == "segmentation":
            return network.label_map(image)[0].cpu().numpy()
        found = network.detect(image)[0]
    columns = [found.boxes, found.labels[:, None].float(), found.scores[:, None]]
    return torch.cat([column.float().cpu() for column in columns], dim=1).numpy()
