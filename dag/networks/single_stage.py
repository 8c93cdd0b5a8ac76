"""Single-stage detectors: every anchor is a proposal, and its class logits are its scores.

f(X, t) is the vector of class logits at an anchor, without a background column; objectness is
not attacked.  A background score made from objectness lets the attack stop while the
true class is still the best one at about half of the targets; the ranking within a class, which
is all that average precision sees, then survives: two to five times as much mAP remained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dag.networks.interface import Detector, Proposals
from dag.networks.layers import operators
from dag.networks.layers.boxes import clip


@dataclass(frozen=True)
class Features:
    """Raw output of one pass.

    Attributes
    ----------
    rows : Tensor (B, A, 5 + C)
        Per anchor four numbers that make the box, objectness logit, class logits.
    size : tuple of int
        (H, W) of the images.
    """

    rows: Tensor
    size: tuple[int, int]


class SingleStage(Detector):
    """Base of single-stage detectors, which define `features`, `_boxes` and `detect`."""

    independent = True

    def _boxes(self, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes (A, 4) of all anchors `rows` (A, 5 + C), in the frame of an image of `size`, not clipped."""
        raise TypeError(f"{type(self).__name__} does not define _boxes()")

    @torch.no_grad()
    def propose(self, features: Features, *, nms: float, limit: int) -> list[Proposals]:
        """Decoded anchor boxes ranked by objectness x best class probability, all classes together."""
        proposals = []
        for rows in features.rows:
            boxes = self._boxes(rows, features.size)
            kept = operators.nms(boxes, self._confidence(rows).amax(1), nms)[:limit]
            proposals.append(Proposals(clip(boxes[kept], features.size).float(), kept))
        return proposals

    def scores(self, features: Features, proposals: list[Proposals]) -> Tensor:
        """Class logits (R, C) at the anchors of the proposals."""
        return _at(features, proposals)[:, 5:]

    def objectness(self, features: Features, proposals: list[Proposals]) -> Tensor:
        return _at(features, proposals)[:, 4]

    def confidence(self, features: Features, proposals: list[Proposals]) -> Tensor:
        """Objectness x class probability, (R, C)."""
        return self._confidence(_at(features, proposals))

    def _confidence(self, rows: Tensor) -> Tensor:
        return rows[:, 4:5].sigmoid() * self.probabilities(rows[:, 5:])


def rows_of(map_: Tensor, columns: int) -> Tensor:
    """A raw map (B, anchors * columns, h, w) as (B, anchors * h * w, columns)."""
    return map_.unflatten(1, (-1, columns)).permute(0, 1, 3, 4, 2).flatten(1, 3)


def _at(features: Features, proposals: list[Proposals]) -> Tensor:
    return torch.cat([rows[chosen.index] for rows, chosen in zip(features.rows, proposals, strict=True)])
