"""The job `predict`: predictions of the victims of a table on one shard, under many perturbations."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dag.attack.arithmetic import apply
from dag.data.classes import Match
from dag.data.image_sets import ImageError
from dag.data.truths import for_image_set
from dag.evaluate.cells import Cell
from dag.networks.chance import seeded
from dag.networks.interface import Detections, Network, is_stochastic, rows_of
from dag.networks.layers.precision import arithmetic
from dag.workflow import store
from dag.workflow.overlap import ahead
from dag.workflow.seeds import generator

# Variants of an image that share a pass; on a CPU more than one gains nothing.
BATCH = {"cpu": 1, "cuda": 8, "mps": 8}
# Cells and perturbations that are open at once; bounds for open files and memory.
MOST_CELLS, MOST_PERTURBATIONS = 128, 16
# Largest number of passes whose results are not stored yet.
PENDING = 8


def predict(
    networks: Mapping[str, Network],
    read: Callable[[str], NDArray],
    ids: Sequence[str],
    cells: Sequence[Cell],
    *,
    matches: Mapping[str, Match] | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch: int | None = None,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> Counter[str]:
    """Predict every image under every perturbation with all victims, and store the predictions.

    Each image and each of its perturbations is read once; pixels are computed on the device.  Reading the next image
    and storing the last predictions overlap with the networks.  At most two images with `MOST_PERTURBATIONS`
    perturbations each are in memory.

    Variants of an image (perturbations x pixels) fill batches of a fixed size, the last one with copies: a
    prediction must not depend on which other cells a run happens to compute, and on a GPU the size of a batch chooses
    the kernels.  Detectors that do not declare their images `independent` see one at a time,
    and so do networks that draw random numbers; each of their passes is seeded by victim, cell and image.

    Parameters
    ----------
    networks : mapping of str to Network
        The victims by name.
    read : callable
        From the id of an image to the image, float32 (3, H, W) in [0, 255]; called in another thread.
    ids : sequence of str
        Images of the shard.
    cells : sequence of Cell
        Cells of these victims; finished ones are kept.
    matches : mapping of str to Match, optional
        Of the classes of every victim and of the image set, whose ids are stored; by default both are the same.
    seed : int
        Seed of victims that draw random numbers.
    batch : int, optional
        Variants that share a pass; by default that of `BATCH`.  It is halved if it does not fit into the memory of
        the device.
    progress : callable
        Wraps an iterable of finished images (once per group of cells); called with it and their number.

    Returns
    -------
    Counter
        Number of cells of every victim that were computed here; other jobs may have computed the rest.

    Raises
    ------
    ValueError
        If a perturbation cannot be read or one image does not fit into the memory of the device.
    OSError
        If the disk is full; predictions stored before are kept.

    Notes
    -----
    Segmentation stores uint8 (H, W) class ids; detection stores float32 (D, 6) rows
    (x_min, y_min, x_max, y_max, class id, score).  The attributes copy those of the
    perturbation: perceptibility and largest value, measured on the stored array, and its number of passes.
    """
    most = BATCH[torch.device(device).type] if batch is None else batch
    sizes = {name: most if _shares(network) else 1 for name, network in networks.items()}
    networks = {name: network.to(device) for name, network in networks.items()}
    groups = _groups(cells)
    computed, others = Counter(dict.fromkeys(networks, 0)), []

    def shown() -> Iterator[None]:
        nonlocal others
        for group in groups:
            done, busy = yield from _group(networks, read, ids, group, seed, device, sizes, matches or {}, wait=False)
            computed.update(cell.victim for cell in done)
            others += busy
        # cells that other jobs were computing; waited for last
        for cell in others:
            done, _ = yield from _group(networks, read, ids, [cell], seed, device, sizes, matches or {}, wait=True)
            computed.update(cell.victim for cell in done)

    with closing(shown()) as images:
        for _ in progress(images, len(groups) * len(ids)):
            pass
    return computed


def _shares(network: Network) -> bool:
    """Whether variants of an image may share a pass, i.e. predictions do not depend on each other."""
    return not is_stochastic(network) and (network.task == "segmentation" or getattr(network, "independent", False))


def _groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells in groups that are computed image by image; cells of one perturbation stay together."""
    groups: list[list[Cell]] = []
    names: dict[str, list[Cell]] = {}
    for cell in cells:
        names.setdefault(cell.perturbation, []).append(cell)
    for position, same in enumerate(names.values()):
        if not groups or position % MOST_PERTURBATIONS == 0 or len(groups[-1]) + len(same) > MOST_CELLS:
            groups.append([])
        groups[-1] += same
    return groups


def _group(
    networks: Mapping[str, Network],
    read: Callable[[str], NDArray],
    ids: Sequence[str],
    cells: Sequence[Cell],
    seed: int,
    device: str,
    sizes: dict[str, int],
    matches: Mapping[str, Match],
    *,
    wait: bool,
) -> Iterator[None]:
    """Compute cells together, and yield after every image.

    Returns
    -------
    list of Cell, list of Cell
        Those that were computed here, and those that other jobs hold, if these are not waited for.
    """
    busy: list[Cell] = []
    with ExitStack() as stack:
        taken: list[Cell] = []
        shards: dict[Path, store.Writer] = {}
        for cell in cells:
            writing = store.writing(cell.path, "predictions", list(ids), cell.header, every=1, wait=wait)
            try:
                shard = stack.enter_context(writing)
            except store.BusyError:
                busy.append(cell)
                continue
            if len(shard.done) < len(ids):
                taken.append(cell)
                shards[cell.path] = shard
        todo = {image_id: [cell for cell in taken if image_id not in shards[cell.path].done] for image_id in ids}
        sources = {cell.perturbation: cell.source for cell in taken}
        files = {
            name: stack.enter_context(store.reading(source, "perturbations")) if source else None
            for name, source in sources.items()
        }

        def images() -> Iterator[tuple[str, NDArray, dict[str, tuple[NDArray, dict]]]]:
            for image_id in filter(todo.get, ids):
                image, perturbations = read(image_id), {}
                for name in dict.fromkeys(cell.perturbation for cell in todo[image_id]):
                    known = {"perceptibility": 0.0, "largest": 0.0}
                    clean = np.zeros_like(image), known
                    perturbations[name] = store.get(files[name], image_id, (*known, "passes")) if files[name] else clean
                yield image_id, image, perturbations

        # Entered last, so that the thread has finished writing when the shards are closed.
        pool, pending = stack.enter_context(ThreadPoolExecutor(1)), deque()
        for image_id, image, perturbations in ahead(images()):
            variant = _variants(image, perturbations, device)
            for victim, network in networks.items():
                mine = [cell for cell in todo[image_id] if cell.victim == victim]
                while mine:
                    cells_of_pass = mine[: sizes[victim]]
                    with _naming(cells_of_pass, image_id, image):
                        try:
                            seen = [variant(cell.perturbation, cell.pixels) for cell in cells_of_pass]
                            with _seeded(network, cells_of_pass[0], image_id, seed):
                                found = outputs(network, seen, sizes[victim])
                        except torch.OutOfMemoryError:
                            if sizes[victim] == 1:
                                raise
                            sizes[victim] //= 2
                            print(f"{victim}: out of memory, {sizes[victim]} images share a pass now", file=sys.stderr)
                            continue
                    mine = mine[len(cells_of_pass) :]
                    known = [perturbations[cell.perturbation][1] for cell in cells_of_pass]
                    shards_of_pass = [shards[cell.path] for cell in cells_of_pass]
                    pending.append(pool.submit(_put, shards_of_pass, image_id, found, known, matches.get(victim)))
                    _settle(pending, PENDING)
            yield
        _settle(pending, 0)
    return taken, busy


def _put(
    shards: Sequence[store.Writer],
    image_id: str,
    found: Tensor | list[Detections],
    known: list[dict],
    match: Match | None,
) -> None:
    """Store the predictions of a victim for the variants of an image, once the device has computed them."""
    arrays = found.cpu().numpy() if isinstance(found, Tensor) else [rows_of(one) for one in found]
    for shard, array, attributes in zip(shards, arrays, known, strict=True):
        shard.put(image_id, array if match is None else for_image_set(array, match), attributes)


def _settle(pending: deque[Future], most: int) -> None:
    """Wait until at most `most` are left; raises errors of the thread."""
    while len(pending) > most:
        pending.popleft().result()


def _variants(
    image: NDArray, perturbations: Mapping[str, tuple[NDArray, dict]], device: str
) -> Callable[[str, str], Tensor]:
    """Perturbed versions of an image, computed on demand: `dag.attack.arithmetic.apply` on the device."""
    pinned = torch.device(device).type == "cuda"

    def moved(array: NDArray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if pinned else tensor.to(device)

    @cache
    def clean() -> Tensor:
        return moved(image)

    @cache
    def perturbed(name: str) -> Tensor:
        r, _ = perturbations[name]
        if image.shape != r.shape:
            raise ValueError(f"a perturbation of shape {r.shape} does not fit an image of shape {image.shape}")
        return (clean() + moved(r)).clamp_(0, 255)

    @cache
    def variant(name: str, pixels: str) -> Tensor:  # no reference cycle, so everything is freed with the image
        if pixels == "float":
            return perturbed(name)
        if pixels == "8-bit":
            return perturbed(name).round()
        return moved(apply(image, perturbations[name][0], pixels))  # JPEG is made on the host

    return variant


@contextmanager
def _naming(cells: Sequence[Cell], image_id: str, image: NDArray) -> Iterator[None]:
    """Add the image's name to the message of a job that runs out of memory or is stopped."""
    victim, where = cells[0].victim, "image {} ({} x {} pixels)".format(image_id, *image.shape[1:])
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ImageError(
            f"{cells[0].path}: {victim} cannot be shown {where}: it does not fit into the memory of the GPU; "
            "use one with more memory"
        ) from error
    except KeyboardInterrupt as interruption:
        names = ", ".join(dict.fromkeys(cell.perturbation for cell in cells))
        interruption.add_note(f"{victim} was seeing {where} under {names}")
        raise


@contextmanager
def _seeded(network: Network, cell: Cell, image_id: str, seed: int) -> Iterator[None]:
    """Seed a network that draws random numbers by cell and image."""
    if not is_stochastic(network):
        yield
        return
    rng = generator("stochastic victim", seed, cell.victim, cell.perturbation, cell.pixels, image_id)
    with seeded(int(rng.integers(2**63))):
        yield


@torch.no_grad()
def outputs(network: Network, images: Sequence[Tensor], size: int = 1) -> Tensor | list[Detections]:
    """The victim's output for variants (3, H, W) of an image, filled up with copies of the last to `size`.

    Returns
    -------
    Tensor, uint8 (B, H, W), or list of Detections
        Label maps or detections of the B images, still on the device.
    """
    batch = torch.stack([*images, *[images[-1]] * (size - len(images))])
    with arithmetic("fp32", batch.device.type):
        return (network.label_map if network.task == "segmentation" else network.detect)(batch)[: len(images)]
