"""Training of the miniature networks, seeded.

All networks are trained with AdamW, one cycle of the learning rate, and batches of whole images with random
mirroring, contrast and colour shift.  The same seed gives the same weights, bit for bit, on the CPU of one
machine with the same number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.optim.adamw import adamw

from dag.data.voc import VOID
from dag.networks import building
from dag.networks.interface import Network, Proposals, Segmenter
from dag.networks.layers import boxes
from dag.networks.mini import bodies
from dag.networks.mini.two_stage import TwoStage
from dag.networks.training_common import check_labels, column_map, pick, progress, seeded

# Region proposal network: anchors per image, at most this many of them positive, IoU limits.
ANCHORS, POSITIVE_ANCHORS, POSITIVE_IOU, NEGATIVE_IOU = 96, 32, 0.55, 0.3
# Second stage: proposals per image, at most this many of them foreground, IoU limit.
REGIONS, FOREGROUND_REGIONS, FOREGROUND_IOU = 48, 16, 0.5
# Proposals to sample from: candidates before suppression, survivors.
CANDIDATES, PROPOSALS = 200, 100


def pretrain(
    body: str,
    images: Sequence,
    labels: Sequence[int],
    *,
    iterations: int,
    seed: int,
    batch: int = 16,
    rate: float = 1e-3,
) -> dict[str, Tensor]:
    """Train a body to classify images of single objects.

    Parameters
    ----------
    body : str
        Name of the body, see `dag.networks.mini.bodies`.
    images : sequence of array (3, H, W)
        All of one size, intensities in [0, 255].
    labels : sequence of int
        Class of each image, arbitrary numbers.
    iterations, batch : int
        Number of steps, images per step.
    seed : int
        Seed of the initial weights, the order of the images and the augmentation.
    rate : float
        Highest learning rate.

    Returns
    -------
    dict of str to Tensor
        State dict of the body, for `initial`.

    Raises
    ------
    ValueError
        If the images differ in size, or the loss stops being finite.
    """
    classes, columns = np.unique(np.asarray(labels), return_inverse=True)
    stack, columns = _stack(images), torch.from_numpy(columns)
    with seeded(seed):
        classifier = bodies.Classifier(bodies.body(body), len(classes))

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        inputs, _ = _augment(stack[rows], generator)
        return F.cross_entropy(classifier(inputs), columns[rows])

    groups = [{"params": list(classifier.parameters()), "lr": rate}]
    _minimise(classifier, loss, groups, len(stack), iterations, batch, seed, f"pretraining {body}")
    return classifier.trunk.state_dict()


def initial(architecture: str, arguments: dict, *, seed: int, pretrained: dict[str, Tensor] | None = None) -> Network:
    """Build a network with random weights and, if given, a pretrained body.

    `architecture` and `arguments` are those of `dag.networks.building.build`.

    Raises
    ------
    ValueError
        If the architecture is unknown or the pretrained weights do not fit its body.
    """
    with seeded(seed):
        network = building.build(architecture, arguments, fold=False)
    if pretrained is not None:
        bodies.load_pretrained(network.trunk, pretrained)
    return network


def train_segmentation(
    network: Segmenter,
    images: Sequence,
    label_maps: Sequence,
    *,
    iterations: int,
    seed: int,
    batch: int = 8,
    rate: float = 3e-3,
    body_factor: float = 0.4,
    title: str = "training",
) -> Segmenter:
    """Train a segmenter in place; returns it frozen, in evaluation mode.

    Parameters
    ----------
    network : Segmenter
        With the body in `network.trunk`, see `initial`.
    images : sequence of array (3, H, W)
        All of one size, intensities in [0, 255].
    label_maps : sequence of array (H, W)
        VOC class ids; 255 (void) is ignored.
    iterations, batch : int
        Number of steps, images per step.
    seed : int
        Of the order of the images and the augmentation.
    rate, body_factor : float
        Highest learning rate; the body learns at `rate * body_factor`.
    title : str
        Name in the progress lines and in errors.

    Raises
    ------
    ValueError
        If sizes differ, a label is unknown to the network, or the loss stops being finite.
    """
    stack, maps = _stack(images), _stack(label_maps)
    if maps.shape != (len(stack), *stack.shape[2:]):
        raise ValueError(
            f"{title}: {len(stack)} images of {stack.shape[2]} x {stack.shape[3]} pixels "
            f"but {len(maps)} label maps of {maps.shape[1]} x {maps.shape[2]}"
        )
    columns = column_map(network.labels)
    columns[VOID] = VOID
    targets = columns[maps.long()]
    check_labels(maps, targets, title)

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        inputs, mirrored = _augment(stack[rows], generator)
        wanted = torch.where(mirrored[:, None, None], targets[rows].flip(2), targets[rows])
        # every second row and column: nearly the same gradient at a quarter of the cost
        row, column = torch.randint(2, (2,), generator=generator).tolist()
        return F.cross_entropy(
            network(inputs)[:, :, row::2, column::2], wanted[:, row::2, column::2], ignore_index=VOID
        )

    groups = _groups(network, rate, body_factor)
    _minimise(network, loss, groups, len(stack), iterations, batch, seed, title)
    return network


def train_detection(
    network: TwoStage,
    images: Sequence,
    objects: Sequence,
    *,
    iterations: int,
    seed: int,
    batch: int = 8,
    rate: float = 3e-3,
    body_factor: float = 0.4,
    title: str = "training",
) -> TwoStage:
    """Train a two-stage detector in place, both stages at once; returns it frozen, in evaluation mode.

    Parameters
    ----------
    network : TwoStage
        With the body in `network.trunk`, see `initial`.
    images : sequence of array (3, H, W)
        All of one size, intensities in [0, 255].
    objects : sequence of `dag.data.truths.Objects`
        `boxes` (G, 4), `labels` (G,) VOC class ids, `difficult` (G,); difficult objects are left out.
    iterations, batch, seed, rate, body_factor, title
        As in `train_segmentation`.

    Raises
    ------
    ValueError
        If sizes differ, a label is unknown to the network, or the loss stops being finite.
    """
    stack = _stack(images)
    if len(objects) != len(stack):
        raise ValueError(f"{title}: {len(stack)} images but the objects of {len(objects)}")
    easy = [~np.asarray(one.difficult, dtype=bool) for one in objects]
    ids = [torch.as_tensor(np.asarray(one.labels)[rows]).long() for one, rows in zip(objects, easy, strict=True)]
    truth = [torch.as_tensor(np.asarray(one.boxes)[rows]).float() for one, rows in zip(objects, easy, strict=True)]
    columns = column_map(network.labels)
    targets = [columns[one] for one in ids]
    check_labels(torch.cat(ids), torch.cat(targets), title)
    if not sum(map(len, truth)):
        raise ValueError(f"{title}: no image has an object to learn; check the annotations")
    # Images with fewer objects are padded with boxes far outside, which overlap nothing.
    padded = pad_sequence(truth, batch_first=True, padding_value=-1e4)
    padded_targets = pad_sequence(targets, batch_first=True)
    width = stack.shape[3]

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        inputs, mirrored = _augment(stack[rows], generator)
        wanted = torch.where(mirrored[:, None, None], boxes.flip(padded[rows], width), padded[rows])
        return _detection_loss(network, inputs, wanted, padded_targets[rows], generator)

    groups = _groups(network, rate, body_factor)
    _minimise(network, loss, groups, len(stack), iterations, batch, seed, title)
    return network


def _detection_loss(
    network: TwoStage, images: Tensor, truth: Tensor, columns: Tensor, generator: torch.Generator
) -> Tensor:
    """Loss of Faster R-CNN (Ren et al., equation 1) for both stages; truth (B, G, 4), columns (B, G)."""
    features = network.features(images)
    objectness, deltas = network.objectness_and_deltas(features)
    anchors = network.anchors(features)
    proposals = network.select(
        features, objectness, deltas, nms=network.proposal_nms, limit=PROPOSALS, candidates=CANDIDATES
    )

    overlaps = boxes.overlap(anchors, truth)
    best, match = overlaps.max(2)
    # The best anchor of every object is positive, however small its IoU.
    best_of_object = overlaps.amax(1, keepdim=True)
    positive = (best >= POSITIVE_IOU) | ((overlaps == best_of_object) & (best_of_object > 0)).any(2)
    rows, valid = pick(positive, (best < NEGATIVE_IOU) & ~positive, POSITIVE_ANCHORS, ANCHORS, generator)
    chosen = positive.gather(1, rows) & valid
    count = valid.sum()
    logits = objectness.gather(1, rows)
    loss = F.binary_cross_entropy_with_logits(logits[valid], chosen[valid].to(logits), reduction="sum") / count
    image, place = chosen.nonzero(as_tuple=True)
    row = rows[image, place]
    wanted = boxes.encode(anchors[row], truth[image, match[image, row]])
    loss = loss + F.smooth_l1_loss(deltas[image, row], wanted, beta=1 / 9, reduction="sum") / count

    # The true boxes are added to the proposals, otherwise there is no foreground at first.
    starts = pad_sequence([one.boxes for one in proposals], batch_first=True)
    present = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in proposals], batch_first=True)
    starts = torch.cat([starts, truth], 1)
    present = torch.cat([present, truth[..., 0] > -1e3], 1)
    best, match = boxes.overlap(starts, truth).max(2)
    foreground = present & (best >= FOREGROUND_IOU)
    rows, valid = pick(foreground, present & ~foreground, FOREGROUND_REGIONS, REGIONS, generator)
    image, place = valid.nonzero(as_tuple=True)
    row = rows[image, place]
    scores, deltas = network.regions(features, [Proposals(starts[i, rows[i, valid[i]]]) for i in range(len(starts))])
    found = foreground[image, row]
    wanted_columns = torch.where(found, columns[image, match[image, row]], 0)
    loss = loss + F.cross_entropy(scores, wanted_columns)
    wanted = boxes.encode(starts[image, row], truth[image, match[image, row]])[found] / network.spread
    return loss + F.smooth_l1_loss(deltas[found], wanted, reduction="sum") / len(row)


def _minimise(
    network: nn.Module,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    groups: list[dict],
    count: int,
    iterations: int,
    batch: int,
    seed: int,
    title: str,
) -> None:
    """Minimise loss(rows of the training set, generator); leaves the network frozen, in evaluation mode."""
    if count < 1 or iterations < 1 or batch < 1:
        raise ValueError(f"{title}: {count} images, {iterations} iterations, batch {batch}; each must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    network.train().requires_grad_(True)
    parameters = list(network.parameters())
    states = [_state(group["params"]) for group in groups]
    rounds = -(-iterations * batch // count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])
    steps = order[: iterations * batch].view(iterations, batch)
    report = progress(iterations, title)
    for iteration, rows in enumerate(steps, 1):
        value = loss(rows, generator)
        if not torch.isfinite(value):
            raise ValueError(
                f"{title}: the loss is {value.item()} at iteration {iteration}; "
                "check the training images or lower the learning rate"
            )
        network.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 5)
        factor, beta1 = one_cycle(iteration - 1, iterations)
        for group, state in zip(groups, states, strict=True):
            _adamw(group["params"], state, group["lr"] * factor, beta1)
        report(iteration, value.item())
    network.eval().requires_grad_(False)


def one_cycle(step: int, total: int, warm_up: float = 0.15) -> tuple[float, float]:
    """Learning rate, as a share of the highest one, and beta_1 at `step` (from 0) of `total`.

    The rate rises from 1/25 along a cosine for the fraction `warm_up` of the steps, then falls to 4e-6; beta_1
    changes from 0.95 to 0.85 and back.  As in `torch.optim.lr_scheduler.OneCycleLR`.
    """
    peak, end = warm_up * total - 1, total - 1
    low, lowest = 1 / 25, 1 / 25 / 1e4
    rising = step <= peak
    share = step / peak if rising else (step - peak) / (end - peak)
    half = (1 + math.cos(math.pi * share)) / 2  # 1 at the start of a phase, 0 at its end
    rates, betas = ((low, 1.0), (0.95, 0.85)) if rising else ((1.0, lowest), (0.85, 0.95))
    return tuple(stop + (start - stop) * half for start, stop in (rates, betas))


def _state(parameters: list[Tensor]) -> dict[str, list[Tensor]]:
    """State of AdamW for every parameter."""
    return {
        "exp_avgs": [torch.zeros_like(parameter) for parameter in parameters],
        "exp_avg_sqs": [torch.zeros_like(parameter) for parameter in parameters],
        "state_steps": [torch.zeros(()) for _ in parameters],
    }


@torch.no_grad()
def _adamw(parameters: list[Tensor], state: dict[str, list[Tensor]], rate: float, beta1: float) -> None:
    """One step of torch's fused AdamW.

    The class `torch.optim.AdamW` is not used: it imports TorchDynamo in its first step, 4.4 of the 17 CPU-seconds
    of an average training job.
    """
    adamw(
        parameters,
        [parameter.grad for parameter in parameters],
        **state,
        max_exp_avg_sqs=[],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=0.999,
        lr=rate,
        weight_decay=1e-4,
        eps=1e-8,
        maximize=False,
    )


def _groups(network: Network, rate: float, body_factor: float) -> list[dict]:
    body = list(network.trunk.parameters())
    inside = {id(parameter) for parameter in body}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    return [{"params": body, "lr": rate * body_factor}, {"params": rest, "lr": rate}]


def _stack(arrays: Sequence) -> Tensor:
    """Stack arrays of one shape into a tensor of the same type."""
    shapes = {tuple(np.shape(array)) for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"training needs images of one size, but there are {sorted(shapes) or 'none'}")
    return torch.as_tensor(np.stack([np.asarray(array) for array in arrays]))


def _augment(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) with random mirroring, contrast and colour; which ones are mirrored, bool (B,)."""
    count = len(images)
    mirrored = torch.rand(count, generator=generator) < 0.5
    contrast = 0.85 + 0.3 * torch.rand(count, 1, 1, 1, generator=generator)
    shift = 20 * torch.rand(count, 3, 1, 1, generator=generator) - 10
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return (images - 120.0) * contrast + (120 + shift), mirrored
