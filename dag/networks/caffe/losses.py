"""Losses of the trainings by Caffe's recipes, and their samples of anchors and regions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dag.data import voc
from dag.networks import training_common
from dag.networks.caffe.detector import CaffeDetector
from dag.networks.interface import Proposals
from dag.networks.layers import boxes
from dag.networks.two_stage import SPREAD

# Region proposal network: anchors per image, at most this many of them positive, IoU limits.
ANCHORS, POSITIVE_ANCHORS, POSITIVE_IOU, NEGATIVE_IOU = 256, 128, 0.7, 0.3
# Second stage: proposals per image, at most this many of them foreground, IoU limit.
REGIONS, FOREGROUND_REGIONS, FOREGROUND_IOU = 128, 32, 0.5
# Parameter sigma of the smooth L1 loss of the two stages.
ANCHOR_SIGMA, REGION_SIGMA = 3, 1


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
    """Targets of the region proposal network for anchors (N, 4), given the true boxes (G, 4).

    Anchors that exceed the image of `size` = (H, W) are neither positive nor negative.  Of the others, those with
    an IoU of at least 0.7 and the best ones of every object are positive, those with an IoU below 0.3 negative.  As
    py-faster-rcnn's anchor_target_layer, except that an object that no anchor overlaps has no best one.

    Returns
    -------
    positive, negative : Tensor, bool (N,)
    match : Tensor, int64 (N,)
        The true box with the largest IoU.
    """
    height, width = size
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] < width) & (anchors[:, 3] < height)
    overlaps = torch.where(inside[:, None], boxes.overlap(anchors, truth), -1)
    best, match = overlaps.max(1)
    best_of_object = overlaps.amax(0)
    positive = (best >= POSITIVE_IOU) | ((overlaps == best_of_object) & (best_of_object > 0)).any(1)
    return positive, inside & (best < NEGATIVE_IOU) & ~positive, match


def sample(first: Tensor, second: Tensor, most: int, total: int) -> Tensor:
    """At most `total` random rows: up to `most` of those marked in `first` (N,), the rest marked in `second` (N,)."""
    rows, valid = training_common.pick(first[None].cpu(), second[None].cpu(), most, total, torch.default_generator)
    return rows[valid].to(first.device)


def detection_loss(network: CaffeDetector, image: Tensor, truth: Tensor, columns: Tensor, recipe: dict) -> Tensor:
    """Loss of Faster R-CNN (Ren et al., equation 1) for both stages at once, as py-faster-rcnn computes it.

    Parameters
    ----------
    network : CaffeDetector
        With a Python convention; its box deltas are in units of `SPREAD` until `scale_deltas`.
    image : Tensor (1, 3, H, W)
    truth : Tensor (G, 4)
        Boxes of the objects, in the frame of the image; at least one.
    columns : Tensor, int64 (G,)
        Their score columns.
    recipe : dict
        `candidates` and `proposals`, numbers of boxes before and after suppression.  With `mining` the loss is that
        of the 128 proposals with the largest loss (R-FCN), otherwise that of 128 random ones, at most 32 of
        them foreground.
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
    # The true boxes are added to the proposals, otherwise there is no foreground at first.
    starts = torch.cat([network.windows(features, proposals)[:, 1:], truth])
    best, match = boxes.overlap(starts, truth).max(1)
    foreground = best >= FOREGROUND_IOU
    if not recipe["mining"]:
        rows = sample(foreground, ~foreground, FOREGROUND_REGIONS, REGIONS)
        starts, match, foreground = starts[rows], match[rows], foreground[rows]
    scores, deltas = network.regions(features, [Proposals(starts / features.scale)])
    column = columns[match]
    losses = F.cross_entropy(scores, torch.where(foreground, column, 0), reduction="none")
    # Deltas of the class; there are none of the background, and R-FCN shares one set among all classes.
    mine = deltas[torch.arange(len(starts), device=deltas.device), (column - 1).clamp(max=deltas.shape[1] - 1)]
    wanted = boxes.encode(starts, truth[match]) / truth.new_tensor(SPREAD)
    losses = losses + foreground * smooth_l1(mine - wanted, REGION_SIGMA).sum(1)
    if recipe["mining"]:
        losses = losses.topk(min(REGIONS, len(losses))).values
    return loss + losses.mean()


@torch.no_grad()
def scale_deltas(network: CaffeDetector) -> None:
    """Multiply the box deltas of a trained detector by `SPREAD`, in place.

    Training divides the targets by it; all released files have it in the weights of the layer.
    """
    name, channels = network.delta_layer
    for parameter in network.head[name].parameters():
        factors = parameter.new_tensor(SPREAD).repeat_interleave(channels)
        factors = factors.repeat(len(parameter) // len(factors))
        parameter.mul_(factors.view(-1, *[1] * (parameter.ndim - 1)))
