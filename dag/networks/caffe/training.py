"""Training at full size by the published Caffe recipes, seeded and resumable.

A recipe is an entry of config/recipes.yaml: the solver, the loss, which layers are new and which are frozen.  Caffe's
stochastic gradient descent, its losses, and the sampling of py-faster-rcnn and py-R-FCN are implemented as
published, with other random numbers; the two images of a step may differ in orientation.

Every random choice follows from the seed and the number of the iteration alone, so a training resumed from a
checkpoint gives the same weights as an uninterrupted one: bit for bit on a CPU with the same number of
threads.  On a GPU atomic additions change the last bits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dag.data import voc
from dag.networks import building, state_files, training_common
from dag.networks.caffe.detector import CaffeDetector
from dag.networks.caffe.initialisation import MULTIPLIERS, _matching, initialise, layers
from dag.networks.caffe.losses import detection_loss, scale_deltas, softmax_loss
from dag.networks.interface import Network, Segmenter
from dag.networks.layers import boxes
from dag.workflow import files, store
from dag.workflow.seeds import generator


def fit(
    network: dict,
    recipe: dict,
    images: list[tuple[Path, str]],
    initial: Path,
    checkpoint: Path,
    *,
    seed: int,
    code: str = "",
    device: str = "cpu",
) -> Network:
    """Train a network by a recipe.

    Parameters
    ----------
    network : dict
        name, task, architecture, arguments.
    recipe : dict
        An entry of config/recipes.yaml, where its keys are explained.
    images : list of (root, image id)
        Training images with their truth; `root` is the folder of one VOC year.
    initial : Path
        Weights to start from: a caffemodel, or the state dict of another network.
    checkpoint : Path
        Weights and momentum are saved here every `recipe["checkpoint"]` iterations.  If the file exists and
        belongs to the same training, the training is resumed from it.
    seed : int
        Of new weights, the order of images, their mirroring and cropping, dropout and sampling.
    code : str
        Digest of the code; a checkpoint of other code is not used.

    Returns
    -------
    Network
        Trained, on `device`, in evaluation mode.

    Raises
    ------
    ValueError
        If a file cannot be read or does not fit, a pattern of the recipe matches no layer, a label is unknown to the
        network, no image has an object, or the loss stops being finite.
    """
    arguments = network["arguments"] | ({"frame": recipe["crop"]} if "crop" in recipe else {})
    with training_common.seeded(seed):
        trained = building.build(network["architecture"], arguments, fold=False)
        initialise(trained, recipe, initial)
    trained.to(device)
    examples = _segmentation if network["task"] == "segmentation" else _detection
    read, loss = examples(trained, recipe, images, seed, network["name"])
    identity = {
        "network": {key: network[key] for key in ("architecture", "arguments")},
        "recipe": {key: value for key, value in recipe.items() if key != "checkpoint"},
        "images": [[Path(root).name, image_id] for root, image_id in images],
        "initial": files.file_digest(initial),
        "seed": seed,
        "code": code,
    }
    minimise(trained, read, loss, recipe, checkpoint, seed=seed, identity=store.key(identity), title=network["name"])
    if network["task"] == "detection":
        scale_deltas(trained)
    return trained


def minimise(
    network: nn.Module,
    read: Callable[[int], tuple],
    loss: Callable[..., Tensor],
    recipe: dict,
    checkpoint: Path,
    *,
    seed: int,
    identity: str,
    title: str,
) -> None:
    """Minimise loss(*read(number of the forward pass)) in place; leaves the network frozen, in evaluation mode.

    A step follows the mean gradient of `recipe["passes"]` passes.  A thread reads the images of the next pass.

    Raises
    ------
    ValueError
        If the loss is not finite, or the checkpoint cannot be read.
    """
    learned = learned_weights(network, recipe)
    velocities = [torch.zeros_like(weight) for weight, _, _ in learned]
    begin = _resume(checkpoint, identity, network, velocities)
    iterations, passes = recipe["iterations"], recipe["passes"]
    network.train().requires_grad_(False)
    for weight, _, _ in learned:
        weight.requires_grad_(True)
    report = training_common.progress(iterations, title)
    with training_common.seeded(seed), ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(read, begin * passes)
        for iteration in range(begin, iterations):
            torch.manual_seed(int(generator("iteration", seed, iteration).integers(2**31)))
            network.zero_grad()
            mean = 0.0
            for number in range(iteration * passes, (iteration + 1) * passes):
                example, waiting = waiting.result(), reader.submit(read, number + 1)
                value = loss(*example) / passes
                value.backward()
                mean += value.item()
            if not math.isfinite(mean):
                raise ValueError(
                    f"{title}: the loss is {mean} at iteration {iteration + 1}; "
                    "check the training images and the initial weights, or lower the rate of the recipe"
                )
            now = rate(recipe, iteration)
            for (weight, faster, stronger), velocity in zip(learned, velocities, strict=True):
                descend(
                    weight,
                    weight.grad,
                    velocity,
                    rate=now * faster,
                    momentum=recipe["momentum"],
                    decay=recipe["decay"] * stronger,
                )
            if (iteration + 1) % recipe["checkpoint"] == 0 and iteration + 1 < iterations:
                state = {"identity": identity, "iteration": iteration + 1}
                training_common.save(state | {"weights": network.state_dict(), "velocities": velocities}, checkpoint)
            report(iteration + 1, mean)
    network.zero_grad()
    network.eval().requires_grad_(False)


def _resume(checkpoint: Path, identity: str, network: nn.Module, velocities: list[Tensor]) -> int:
    """Load a checkpoint of the same training into network and velocities; returns the number of iterations done."""
    if not checkpoint.exists():
        return 0
    try:
        state = state_files.read(checkpoint)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: the checkpoint cannot be read ({error}); delete it") from error
    if state["identity"] != identity:
        print(
            f"{checkpoint}: belongs to a training with other settings; training starts from the beginning",
            file=sys.stderr,
        )
        return 0
    network.load_state_dict(state["weights"])
    for velocity, kept in zip(velocities, state["velocities"], strict=True):
        velocity.copy_(kept)
    print(f"{checkpoint}: training is resumed after {state['iteration']} iterations", file=sys.stderr)
    return state["iteration"]


def rate(recipe: dict, iteration: int) -> float:
    """Learning rate at `iteration`, counted from 0, by the `schedule` of the recipe.

    fixed: constant; step: times `factor` after every `every` iterations; poly: times
    (1 - iteration / iterations)^power.  Caffe's learning rate policies of these names.
    """
    schedule = recipe["schedule"]
    if schedule["kind"] == "step":
        return recipe["rate"] * schedule["factor"] ** (iteration // schedule["every"])
    if schedule["kind"] == "poly":
        return recipe["rate"] * (1 - iteration / recipe["iterations"]) ** schedule["power"]
    return recipe["rate"]


@torch.no_grad()
def descend(weight: Tensor, gradient: Tensor, velocity: Tensor, *, rate: float, momentum: float, decay: float) -> None:
    """One step of Caffe's SGD in place: V = momentum V + rate (gradient + decay weight); weight = weight - V.

    torch.optim.SGD applies the rate to the whole of V instead, which differs after every change of the rate.
    """
    velocity.mul_(momentum).add_(gradient, alpha=rate).add_(weight, alpha=rate * decay)
    weight.sub_(velocity)


def learned_weights(network: nn.Module, recipe: dict) -> list[tuple[nn.Parameter, float, float]]:
    """Weights that are not `frozen`, each with its multiples of the rate and of the decay.

    Raises
    ------
    ValueError
        If a pattern of `frozen` or `multipliers` matches no layer.
    """
    found = layers(network)
    frozen = _matching(found, recipe["frozen"]) if recipe.get("frozen") else set()
    multiples = {
        name: four for pattern, four in recipe.get("multipliers", {}).items() for name in _matching(found, pattern)
    }
    learned = []
    for name, module in found.items():
        numbers = multiples.get(name, MULTIPLIERS)
        if name not in frozen:
            # weight, then bias, as Caffe's blobs
            parameters = enumerate(module.parameters(recurse=False))
            learned += [(parameter, *numbers[2 * place : 2 * place + 2]) for place, parameter in parameters]
    return learned


# Order and reading


def order(count: int, recipe: dict, seed: int) -> Callable[[int], tuple[int, bool]]:
    """Function from the number of a pass to the row of its image in the training set and whether it is mirrored.

    `recipe["order"]`: "drawn", a random image each time; "shuffled", every image once per epoch.
    `recipe["mirror"]`: "never"; "coin", with probability 1/2; "copies", an epoch has every image in both
    orientations.
    """
    total = 2 * count if recipe["mirror"] == "copies" else count

    @lru_cache(2)
    def permutation(epoch: int) -> np.ndarray:
        return generator("order", seed, epoch).permutation(total)

    def pick(number: int) -> tuple[int, bool]:
        rng = generator("image", seed, number)
        if recipe["order"] == "drawn":
            row = int(rng.integers(total))
        else:
            row = int(permutation(number // total)[number % total])
        return row % count, row >= count or (recipe["mirror"] == "coin" and bool(rng.integers(2)))

    return pick


def _segmentation(network: Segmenter, recipe: dict, images: list[tuple[Path, str]], seed: int, title: str):
    """Functions `read` and `loss` of `minimise`."""
    pick, batch = order(len(images), recipe, seed), recipe["batch"]
    if batch > 1 and "crop" not in recipe:
        raise ValueError(
            f"{title}: images differ in size; give the recipe a `crop`, or a `batch` of 1 and more `passes`"
        )
    columns = training_common.column_map(network.labels)
    columns[voc.VOID] = voc.VOID
    mean, device = network.mean.flip(0).cpu(), network.mean.device

    def read_one(number: int) -> tuple[Tensor, Tensor]:
        row, mirrored = pick(number)
        root, image_id = images[row]
        image = torch.from_numpy(voc.read_image(root, image_id))
        label_map = torch.from_numpy(voc.read_label_map(root, image_id)).long()
        wanted = columns[label_map]
        training_common.check_labels(label_map, wanted, f"{title}, image {image_id}")
        if mirrored:
            image, wanted = image.flip(2), wanted.flip(1)
        if "crop" in recipe:
            rng = generator("crop", seed, number)
            image, wanted = resize(image, wanted, float(rng.choice(recipe.get("scales", [1]))))
            image, wanted = crop(image, wanted, recipe["crop"], mean, rng)
        return image, wanted

    def read(number: int) -> tuple[Tensor, Tensor]:
        shown = [read_one(batch * number + place) for place in range(batch)]
        return tuple(torch.stack(parts).to(device) for parts in zip(*shown, strict=True))

    def loss(inputs: Tensor, wanted: Tensor) -> Tensor:
        if recipe["loss"] == "maps":
            maps = network.score_maps(inputs)
            return sum(softmax_loss(scores, shrink(wanted, scores.shape[-2:])) for scores in maps)
        return softmax_loss(network(inputs), wanted, recipe["loss"] == "mean")

    return read, loss


def _detection(network: CaffeDetector, recipe: dict, images: list[tuple[Path, str]], seed: int, title: str):
    """Functions `read` and `loss` of `minimise`; images in which all objects are difficult are left out."""
    if network.convention.in_image:
        raise ValueError(f"{title}: recipes of detection need a Python convention; choose 'py' for the network")
    columns = training_common.column_map(network.labels)
    truth = []
    for root, image_id in images:
        objects = voc.read_objects(root, image_id)
        ids = torch.from_numpy(objects.labels[~objects.difficult])
        training_common.check_labels(ids, columns[ids], f"{title}, image {image_id}")
        if len(ids):
            truth.append((root, image_id, torch.from_numpy(objects.boxes[~objects.difficult]), columns[ids]))
    if not truth:
        raise ValueError(f"{title}: no image has an object to learn; check the annotations")
    print(f"{title}: {len(truth)} of {len(images)} images have objects", file=sys.stderr)
    pick, device = order(len(truth), recipe, seed), network.mean.device

    def read(number: int) -> tuple[Tensor, Tensor, Tensor]:
        row, mirrored = pick(number)
        root, image_id, there, wanted = truth[row]
        image = torch.from_numpy(voc.read_image(root, image_id))[None]
        if mirrored:
            image, there = image.flip(3), boxes.flip(there, image.shape[3])
        return image.to(device), there.to(device), wanted.to(device)

    def loss(image: Tensor, there: Tensor, wanted: Tensor) -> Tensor:
        return detection_loss(network, image, there, wanted, recipe)

    return read, loss


def resize(image: Tensor, wanted: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Image (3, H, W), bilinear, and its columns (H, W), nearest, at `scale` times their size."""
    if scale == 1:
        return image, wanted
    size = [round(length * scale) for length in wanted.shape]
    image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
    return image, F.interpolate(wanted[None, None].double(), size, mode="nearest")[0, 0].long()


def crop(image: Tensor, wanted: Tensor, size: int, mean: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random crop of `size` x `size` pixels of an image (3, H, W) and of its columns (H, W).

    A smaller image is padded on the right and at the bottom with the colour `mean` (3, 1, 1), its columns with void.
    """
    top, left = (int(rng.integers(max(length - size, 0) + 1)) for length in wanted.shape)
    image, wanted = image[:, top : top + size, left : left + size], wanted[top : top + size, left : left + size]
    margin = (0, size - wanted.shape[1], 0, size - wanted.shape[0])
    return F.pad(image - mean, margin) + mean, F.pad(wanted, margin, value=voc.VOID)


def shrink(wanted: Tensor, size: tuple[int, int]) -> Tensor:
    """Columns (B, H, W) resized to `size` = (h, w), nearest, with aligned corners."""
    rows, columns = (
        torch.linspace(0, length - 1, small, dtype=torch.float64).round().long()
        for length, small in zip(wanted.shape[1:], size, strict=True)
    )
    return wanted[:, rows[:, None], columns]
