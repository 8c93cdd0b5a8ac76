"""Which pixels or proposals are attacked, and towards which labels (paper, sections 3.1 and 3.2).

Labels here are columns 0..C-1 of a network's score vector; `network.labels` gives their class
ids, see `dag.networks.interface.Network`.  -1 marks a pixel that is no target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dag.data.classes import VOID
from dag.networks.interface import Detector, Proposals
from dag.networks.layers.boxes import overlap as overlap_of


@dataclass(frozen=True)
class Targets:
    """The targets of one image.

    Attributes
    ----------
    labels : Tensor, int64 (N,)
        True column l_n, or -1 where there is no target.
    adversarial : Tensor, int64 (N,)
        Adversarial column l'_n, or -1.
    proposals : Proposals or None
        Detection: the N attacked proposals, in the frame of the image.
    available : int
        Detection: number of proposals from which the targets were chosen.  Segmentation: pixels.
    """

    labels: Tensor
    adversarial: Tensor
    proposals: Proposals | None = None
    available: int = 0

    @property
    def count(self) -> int:
        """Number of targets, |T|."""
        return int((self.labels >= 0).sum())

    def to(self, device: torch.device) -> Targets:
        """The same targets with their labels on another device."""
        return Targets(self.labels.to(device), self.adversarial.to(device), self.proposals, self.available)


def derangement(size: int, rng: np.random.Generator) -> np.ndarray:
    """Uniformly drawn permutation pi of 0..size-1 with pi(c) != c for every c (paper, section 3.1).

    Drawn by rejection: about e = 2.7 tries.
    """
    if size < 2:
        raise ValueError(
            f"{size} class cannot be permuted without a fixed point; a network needs 2 columns: give it one for "
            "background, of score 0 if the score of the class goes through a sigmoid"
        )
    while True:
        permutation = rng.permutation(size)
        if not np.any(permutation == np.arange(size)):
            return permutation


def absent_classes(
    labels: tuple[int, ...], present: list[int], rng: np.random.Generator, ground: int | None = 0
) -> np.ndarray:
    """Map of columns that sends each present class to its own absent foreground class (authors' code).

    Parameters
    ----------
    labels : tuple of int
        Class ids of the C columns.
    present : list of int
        Columns of the foreground classes in the image.
    ground : int or None
        Class id of the background; None: every class is foreground.

    Returns
    -------
    ndarray, int64 (C,)
        Columns of classes that are not present map to themselves.

    Raises
    ------
    ValueError
        If more than half of the foreground classes are present.
    """
    absent = [column for column, label in enumerate(labels) if label != ground and column not in present]
    if len(present) > len(absent):
        raise ValueError(
            f"{len(present)} classes are present and only {len(absent)} absent: the rule 'absent' cannot give each its "
            "own label; set `options: {labels: derangement}` in the attack (attacks or variants)"
        )
    mapping = np.arange(len(labels))
    mapping[sorted(present)] = rng.permutation(absent)[: len(present)]
    return mapping


def adversarial_labels(
    rule: str, labels: tuple[int, ...], present: list[int], rng: np.random.Generator, ground: int | None = 0
) -> np.ndarray:
    """Adversarial column of every column, int64 (C,), by the rule "derangement" or "absent"."""
    if rule == "derangement":
        return derangement(len(labels), rng)
    if rule == "absent":
        return absent_classes(labels, present, rng, ground)
    raise ValueError(f"adversarial labels {rule!r} are unknown; choose derangement or absent")


def segmentation_targets(
    label_map: Tensor,
    labels: tuple[int, ...],
    rule: str,
    background: bool,
    rng: np.random.Generator,
    ground: int | None = 0,
) -> Targets:
    """Every pixel whose true class is foreground; void pixels are never targets.

    Parameters
    ----------
    label_map : Tensor, int64 (H, W)
        Class ids, 255 = void.
    labels : tuple of int
        Class ids of the network's columns.
    rule : str
        "derangement" or "absent".
    background : bool
        Authors' demo: background pixels are targets as well, with background as their wanted label.
    ground : int or None
        Class id of the background; None: every class is foreground.

    Returns
    -------
    Targets
        N = H * W in row order, -1 where a pixel is no target.

    Raises
    ------
    ValueError
        If the image shows a class that the network does not know.
    """
    columns = torch.full((256,), -1)
    columns[list(labels)] = torch.arange(len(labels))
    truth = columns[label_map.flatten()]
    unknown = sorted(set(label_map[(truth == -1).view_as(label_map)].tolist()) - {VOID})
    if unknown:
        raise ValueError(f"the label map holds classes {unknown}, which the network (classes {labels}) does not know")
    rest = labels.index(ground) if ground in labels else None
    present = sorted(set(truth[truth >= 0].tolist()) - {rest})
    mapping = torch.from_numpy(adversarial_labels(rule, labels, present, rng, ground))
    adversarial = torch.where(truth >= 0, mapping[truth.clamp(min=0)], -1)
    if rest is not None and background:
        adversarial[truth == rest] = rest
    elif rest is not None:
        adversarial = adversarial.masked_fill(truth == rest, -1)
        truth = truth.masked_fill(truth == rest, -1)
    return Targets(truth, adversarial, available=truth.numel())


@torch.no_grad()
def detection_targets(
    network: Detector,
    image: Tensor,
    boxes: Tensor,
    classes: Tensor,
    *,
    nms: float,
    limit: int,
    overlap: float,
    confidence: float,
    rule: str,
    rng: np.random.Generator,
) -> Targets:
    """Proposals of the clean image that cover an object and are recognised as it (paper, section 3.2).

    A proposal is a target if some object overlaps it by IoU > `overlap` and the network's
    confidence in that object's class is > `confidence`, tested per object; among several such
    objects the one with the largest IoU gives the label.

    Parameters
    ----------
    network : Detector
    image : Tensor, float32 (1, 3, H, W)
    boxes, classes : Tensor (R, 4) and int64 (R,)
        Ground-truth objects, class ids.
    nms, limit
        Suppression threshold and greatest number of the proposals, 0.9 and 3000 in the paper.
    overlap, confidence : float
        0.1 each in the paper.
    rule : str
        "derangement" or "absent".

    Raises
    ------
    ValueError
        If an object's class is not one of the network's.
    """
    columns = {label: column for column, label in enumerate(network.labels)}
    unknown = sorted(set(classes.tolist()) - set(columns))
    if unknown:
        raise ValueError(f"the image holds objects of classes {unknown}, which the network does not know")
    truth = torch.tensor([columns[label] for label in classes.tolist()], dtype=torch.int64, device=image.device)
    present, ground = sorted(set(truth.tolist())), network.classes.ground
    mapping = torch.from_numpy(adversarial_labels(rule, network.labels, present, rng, ground))

    features = network.features(image)
    proposals = network.propose(features, nms=nms, limit=limit)[0]
    if len(truth) == 0 or len(proposals) == 0:
        empty = truth.new_empty(0)
        return Targets(empty, empty, proposals[empty], available=len(proposals))
    sure = network.confidence(features, [proposals])[:, truth] > confidence
    shared = overlap_of(proposals.boxes, boxes.to(proposals.boxes))
    shared = shared.masked_fill(~sure | (shared <= overlap), 0)
    best, which = shared.max(1)
    kept = best > 0
    labels = truth[which[kept]]
    return Targets(labels, mapping.to(labels.device)[labels], proposals[kept], available=len(proposals))
