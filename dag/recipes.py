"""Training at full size by the published Caffe recipes: seeded, one image after the other, resumable.

A recipe is data (config/recipes.yaml): the solver, the loss, what is drawn anew, what stays as it is.  Caffe's
stochastic gradient descent, its losses, and the sampling of py-faster-rcnn and py-R-FCN are followed to the
letter.  Random numbers are others, and the two images of a step need not have the same orientation.

Every random choice follows from the seed and the number of the iteration alone, so a training that was
stopped and goes on from its checkpoint ends with the same weights as one that was not: bit for bit on a
CPU with the same number of threads.  On a GPU atomic additions change the last bits.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dag import store, train, voc
from dag.networks import boxes, caffemodel, interface
from dag.networks.faster_rcnn import SPREAD
from dag.networks.faster_rcnn_caffe import CaffeDetector
from dag.networks.interface import Network, Proposals, Segmenter
from dag.perturbation import generator

# Region proposal network: anchors per image, at most this many of them positive, IoU limits.
ANCHORS, POSITIVE_ANCHORS, POSITIVE_IOU, NEGATIVE_IOU = 256, 128, 0.7, 0.3
# Second stage: proposals per image, at most this many of them foreground, IoU limit.
REGIONS, FOREGROUND_REGIONS, FOREGROUND_IOU = 128, 32, 0.5
# Steepness of the smooth L1 loss of the two stages.
ANCHOR_SIGMA, REGION_SIGMA = 3, 1

# Learning rate and decay of a layer's weights, then of its biases, as multiples of those of the solver.
MULTIPLIERS = (1, 1, 2, 0)


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
        Where weights and momentum are kept every `recipe["checkpoint"]` iterations.  If it is there and
        belongs to the same training, that goes on from it.
    seed : int
        Of new weights, the order of images, their mirroring and cropping, dropout and sampling.
    code : str
        Digest of the code; a checkpoint made by other code is not used.

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
    with train.seeded(seed):
        trained = interface.build(network["architecture"], arguments, fold=False)
        initialise(trained, recipe, initial)
    trained.to(device)
    examples = _segmentation if network["task"] == "segmentation" else _detection
    read, loss = examples(trained, recipe, images, seed, network["name"])
    identity = {
        "network": {key: network[key] for key in ("architecture", "arguments")},
        "recipe": {key: value for key, value in recipe.items() if key != "checkpoint"},
        "images": [[Path(root).name, image_id] for root, image_id in images],
        "initial": store.file_digest(initial),
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

    A step follows the mean gradient of `recipe["passes"]` passes.  The next images are read while the
    present ones are computed.

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
    report = train.progress(iterations, title)
    with train.seeded(seed), ThreadPoolExecutor(1) as reader:
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
                train.save(state | {"weights": network.state_dict(), "velocities": velocities}, checkpoint)
            report(iteration + 1, mean)
    network.zero_grad()
    network.eval().requires_grad_(False)


def _resume(checkpoint: Path, identity: str, network: nn.Module, velocities: list[Tensor]) -> int:
    """Put a checkpoint of the same training into network and velocities; number of iterations done."""
    if not checkpoint.exists():
        return 0
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{checkpoint}: the checkpoint cannot be read ({reason}); delete it") from error
    if state["identity"] != identity:
        print(f"{checkpoint}: belongs to a training with other settings; training begins anew", file=sys.stderr)
        return 0
    network.load_state_dict(state["weights"])
    for velocity, kept in zip(velocities, state["velocities"], strict=True):
        velocity.copy_(kept)
    print(f"{checkpoint}: {state['iteration']} iterations are done; training goes on", file=sys.stderr)
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

    torch.optim.SGD multiplies by the rate when it moves the weight, not when it adds to V: that differs
    after every change of the rate.
    """
    velocity.mul_(momentum).add_(gradient, alpha=rate).add_(weight, alpha=rate * decay)
    weight.sub_(velocity)


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """The modules that have weights or statistics of their own, by Caffe's names."""
    return {
        path.rpartition(".")[2]: module
        for path, module in network.named_modules()
        if any("." not in key for key in module.state_dict())
    }


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
            # torch registers weight and bias in this order, as Caffe its blobs
            parameters = enumerate(module.parameters(recurse=False))
            learned += [(parameter, *numbers[2 * place : 2 * place + 2]) for place, parameter in parameters]
    return learned


def _matching(names: Iterable[str], pattern: str) -> set[str]:
    found = {name for name in names if re.fullmatch(pattern, name)}
    if not found:
        raise ValueError(f"recipe: {pattern!r} matches no layer; the network has {', '.join(names)}")
    return found


def initialise(network: nn.Module, recipe: dict, initial: Path) -> None:
    """Give a network, in place, the weights that training starts from.

    Layers that match a key of `recipe["new"]` get normal random weights of that standard deviation, from torch's
    global generator, and no bias; those that match a key of `recipe["decimated"]` some of the weights of a larger
    layer; deconvolutions keep the bilinear interpolation they are built with; all others come from the file.

    Parameters
    ----------
    network : nn.Module
        On the CPU.
    recipe : dict
        `new`; `decimated`, whose values are the name of the larger layer and the side of its window; and
        `ignored`, regular expression of the layers of the file that are not wanted.
    initial : Path
        A caffemodel, or the state dict of a network with the same layers (ending .pt).

    Raises
    ------
    ValueError
        If the file cannot be read, a layer is missing, left over or of another shape, or a pattern matches no layer.
    """
    found = {name: module for name, module in layers(network).items() if not isinstance(module, nn.ConvTranspose2d)}
    for pattern, deviation in recipe["new"].items():
        for name in sorted(_matching(found, pattern)):
            module = found.pop(name)
            nn.init.normal_(module.weight, 0, deviation) if deviation else nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for pattern, (source, side) in recipe.get("decimated", {}).items():
        for name in sorted(_matching(found, pattern)):
            _decimate(found.pop(name), initial, source, side)
    if initial.suffix == ".pt":
        _inherit(found, initial, recipe.get("ignored"))
    else:
        caffemodel.load(_Inherited(found), initial, ignore=recipe.get("ignored"))


def _decimate(module: nn.Conv2d, path: Path, source: str, side: int) -> None:
    """Give a convolution evenly spaced filters, channels and places of the layer `source` of a caffemodel.

    What DeepLab does with fc6 and fc7 of VGG16 (Chen et al., ICLR 2015, section 3.1).
    """
    blobs = caffemodel.read_blobs(path).get(source)
    if not blobs:
        raise ValueError(f"{path}: layer {source!r} is missing or has no weights; give a caffemodel of VGG16")
    large, bias = (torch.from_numpy(blob.copy()) for blob in blobs)
    outputs, inputs, small, _ = module.weight.shape
    large = large.reshape(bias.numel(), -1, side, side)
    if len(large) < outputs or large.shape[1] < inputs or side < small:
        raise ValueError(
            f"{path}: layer {source!r} of {tuple(large.shape)} cannot be thinned to {tuple(module.weight.shape)}; "
            "make the network narrower"
        )
    filters, channels, places = len(large) // outputs, large.shape[1] // inputs, max(side - 1, 1) // max(small - 1, 1)
    chosen = large[::filters, ::channels, ::places, ::places]
    with torch.no_grad():
        module.weight.copy_(chosen[:outputs, :inputs, :small, :small])
        module.bias.copy_(bias.flatten()[::filters][:outputs])


class _Inherited(nn.ModuleDict):
    """What of a network starts from a caffemodel."""


def _inherit(found: dict[str, nn.Module], path: Path, ignored: str | None) -> None:
    """Copy the weights of the layers `found` from the state dict of another network."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: cannot be read as a state dict ({reason}); train that network again") from error
    given: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.rpartition(".")
        given.setdefault(layer.rpartition(".")[2], {})[part] = tensor
    for name in given:
        if name not in found and not re.fullmatch(ignored or "", name):
            raise ValueError(f"{path}: layer {name!r} has no place in the network; is this the stage before it?")
    for name, module in found.items():
        if name not in given:
            raise ValueError(f"{path}: layer {name!r} is missing; is this the stage before the network?")
        try:
            module.load_state_dict(given[name])
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{path}: layer {name!r} does not fit: {reason}") from error


# Order and reading


def order(count: int, recipe: dict, seed: int) -> Callable[[int], tuple[int, bool]]:
    """Function from the number of a shown image to its row in the training set and whether it is mirrored.

    `recipe["order"]`: "drawn", any image each time; "shuffled", all images once in every round.
    `recipe["mirror"]`: "never"; "coin", every second time on average; "copies", a round shows every image
    both ways.
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
    columns = train.column_map(network.labels)
    columns[voc.VOID] = voc.VOID
    mean, device = network.mean.flip(0).cpu(), network.mean.device

    def read_one(number: int) -> tuple[Tensor, Tensor]:
        row, mirrored = pick(number)
        root, image_id = images[row]
        image = torch.from_numpy(voc.read_image(root, image_id))
        label_map = torch.from_numpy(voc.read_label_map(root, image_id)).long()
        wanted = columns[label_map]
        train.check_labels(label_map, wanted, f"{title}, image {image_id}")
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
    """Functions `read` and `loss` of `minimise`; images without easy objects are left out."""
    if network.convention.in_image:
        raise ValueError(f"{title}: recipes of detection follow the convention 'py'; choose that for the network")
    columns = train.column_map(network.labels)
    truth = []
    for root, image_id in images:
        objects = voc.read_objects(root, image_id)
        ids = torch.from_numpy(objects.labels[~objects.difficult])
        train.check_labels(ids, columns[ids], f"{title}, image {image_id}")
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
    """A square of `size` pixels from a random place of an image (3, H, W) and of its columns (H, W).

    Where the image is smaller it is continued to the right and below by the colour `mean` (3, 1, 1) and void.
    """
    top, left = (int(rng.integers(max(length - size, 0) + 1)) for length in wanted.shape)
    image, wanted = image[:, top : top + size, left : left + size], wanted[top : top + size, left : left + size]
    margin = (0, size - wanted.shape[1], 0, size - wanted.shape[0])
    return F.pad(image - mean, margin) + mean, F.pad(wanted, margin, value=voc.VOID)


def shrink(wanted: Tensor, size: tuple[int, int]) -> Tensor:
    """Columns (B, H, W) at the places of a map of `size` = (h, w) whose corners are those of the frame, nearest."""
    rows, columns = (
        torch.linspace(0, length - 1, small, dtype=torch.float64).round().long()
        for length, small in zip(wanted.shape[1:], size, strict=True)
    )
    return wanted[:, rows[:, None], columns]


# Losses


def softmax_loss(scores: Tensor, wanted: Tensor, mean: bool = True) -> Tensor:
    """Caffe's SoftmaxWithLoss of scores (B, C, H, W) for columns (B, H, W), 255 = void.

    The mean over all pixels that are not void (`normalize: true`), otherwise the sum over them divided by B.
    """
    total = F.cross_entropy(scores, wanted, ignore_index=voc.VOID, reduction="sum")
    return total / ((wanted != voc.VOID).sum().clamp(min=1) if mean else len(scores))


def smooth_l1(difference: Tensor, sigma: float) -> Tensor:
    """Smooth L1 of every number: (sigma x)^2 / 2 where |x| < 1 / sigma^2, else |x| - 1 / (2 sigma^2)."""
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=1 / sigma**2, reduction="none")


def anchor_targets(anchors: Tensor, truth: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """What the region proposal network should say of anchors (N, 4), given the true boxes (G, 4).

    Anchors that leave the image of `size` = (H, W) take no part.  Of the others those with an overlap of at least
    0.7, and the best ones of every object, are positive, those below 0.3 negative.  py-faster-rcnn's
    anchor_target_layer, but an object that no anchor overlaps has no best one.

    Returns
    -------
    positive, negative : Tensor, bool (N,)
    match : Tensor, int64 (N,)
        The true box with the largest overlap.
    """
    height, width = size
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] < width) & (anchors[:, 3] < height)
    overlaps = torch.where(inside[:, None], boxes.overlap(anchors, truth), -1)
    best, match = overlaps.max(1)
    best_of_object = overlaps.amax(0)
    positive = (best >= POSITIVE_IOU) | ((overlaps == best_of_object) & (best_of_object > 0)).any(1)
    return positive, inside & (best < NEGATIVE_IOU) & ~positive, match


def sample(first: Tensor, second: Tensor, most: int, total: int) -> Tensor:
    """Random rows, `total` at most: up to `most` of those marked in `first` (N,), then of those in `second` (N,)."""
    rows, valid = train.pick(first[None].cpu(), second[None].cpu(), most, total, torch.default_generator)
    return rows[valid].to(first.device)


def detection_loss(network: CaffeDetector, image: Tensor, truth: Tensor, columns: Tensor, recipe: dict) -> Tensor:
    """Loss of Faster R-CNN (Ren et al., equation 1) for both stages at once, as py-faster-rcnn computes it.

    Parameters
    ----------
    network : CaffeDetector
        By the convention "py"; its box deltas are in units of `SPREAD` until `scale_deltas`.
    image : Tensor (1, 3, H, W)
    truth : Tensor (G, 4)
        Boxes of the objects, in the frame of the image; at least one.
    columns : Tensor, int64 (G,)
        Their score columns.
    recipe : dict
        `candidates` and `proposals`, numbers of boxes before and after suppression; with `mining` the
        128 proposals with the largest loss are learned (R-FCN), otherwise 128 random ones, 32 of them
        foreground if there are so many.
    """
    features = network.features(image)
    objectness, deltas = network.objectness_and_deltas(features)
    anchors, truth = network.anchors(features), truth * features.scale

    positive, negative, match = anchor_targets(anchors, truth, features.resized)
    rows = sample(positive, negative, POSITIVE_ANCHORS, ANCHORS)
    found = positive[rows]
    loss = F.binary_cross_entropy_with_logits(objectness[0, rows], found.to(objectness))
    rows = rows[found]
    wanted = boxes.encode(anchors[rows], truth[match[rows]])
    loss = loss + smooth_l1(deltas[0, rows] - wanted, ANCHOR_SIGMA).sum() / len(found)

    limits = {"limit": recipe["proposals"], "candidates": recipe["candidates"]}
    proposals = network.select(features, objectness, deltas, nms=network.proposal_nms, **limits)
    # The true boxes are proposals too, else the second stage sees no foreground at first.
    starts = torch.cat([network.windows(features, proposals)[:, 1:], truth])
    best, match = boxes.overlap(starts, truth).max(1)
    foreground = best >= FOREGROUND_IOU
    if not recipe["mining"]:
        rows = sample(foreground, ~foreground, FOREGROUND_REGIONS, REGIONS)
        starts, match, foreground = starts[rows], match[rows], foreground[rows]
    scores, deltas = network.regions(features, [Proposals(starts / features.scale)])
    column = columns[match]
    losses = F.cross_entropy(scores, torch.where(foreground, column, 0), reduction="none")
    # Deltas of the class, without the background's; R-FCN has one for all.
    mine = deltas[torch.arange(len(starts), device=deltas.device), (column - 1).clamp(max=deltas.shape[1] - 1)]
    wanted = boxes.encode(starts, truth[match]) / truth.new_tensor(SPREAD)
    losses = losses + foreground * smooth_l1(mine - wanted, REGION_SIGMA).sum(1)
    if recipe["mining"]:
        losses = losses.topk(min(REGIONS, len(losses))).values
    return loss + losses.mean()


@torch.no_grad()
def scale_deltas(network: CaffeDetector) -> None:
    """Make the box deltas of a trained detector those that its test understands, in place.

    Training divides the targets by `SPREAD`; here that is multiplied into the layer, as in all released files.
    """
    name, channels = network.delta_layer
    for parameter in network.head[name].parameters():
        factors = parameter.new_tensor(SPREAD).repeat_interleave(channels)
        factors = factors.repeat(len(parameter) // len(factors))
        parameter.mul_(factors.view(-1, *[1] * (parameter.ndim - 1)))
