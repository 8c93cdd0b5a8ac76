"""Body and region proposal network of the miniature's two-stage detectors (Ren et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dag.networks.interface import Proposals
from dag.networks.layers import boxes
from dag.networks.mini import bodies
from dag.networks.two_stage import SPREAD, RegionDetector


@dataclass(frozen=True)
class Features:
    """Feature map (B, D, h, w) of a batch and the `size` = (H, W) of its images."""

    maps: Tensor
    size: tuple[int, int]


class TwoStage(RegionDetector):
    """Body and region proposal network; subclasses add the second stage.

    Its box deltas are (R, 4), in units of `SPREAD`.
    """

    candidates = 600
    proposals = 150

    def __init__(
        self, trunk: bodies.Body, labels: tuple[int, ...], sizes: tuple[float, ...], ratios: tuple[float, ...]
    ):
        super().__init__()
        self.labels = tuple(labels)
        self.trunk = trunk
        self.stride = trunk.stride
        width = trunk.widths[1]
        base = boxes.base_anchors(sizes, ratios, self.stride)
        self.register_buffer("base", base, persistent=False)
        self.register_buffer("spread", torch.tensor(SPREAD), persistent=False)
        self.rpn = bodies.convolution(width, 64, 3)
        self.rpn_objectness = nn.Conv2d(64, len(base), 1)
        self.rpn_deltas = nn.Conv2d(64, 4 * len(base), 1)

    def features(self, images: Tensor) -> Features:
        return Features(self.trunk(images)[1], tuple(images.shape[-2:]))

    def anchors(self, features: Features) -> Tensor:
        """Anchors (N, 4) in the order of the outputs of `objectness_and_deltas`."""
        return boxes.grid_anchors(self.base, *features.maps.shape[-2:], self.stride)

    def objectness_and_deltas(self, features: Features) -> tuple[Tensor, Tensor]:
        maps = self.rpn(features.maps)
        objectness = self.rpn_objectness(maps).permute(0, 2, 3, 1).flatten(1)
        deltas = self.rpn_deltas(maps).permute(0, 2, 3, 1).reshape(len(maps), -1, 4)
        return objectness, deltas

    @torch.no_grad()
    def select(
        self,
        features: Features,
        objectness: Tensor,
        deltas: Tensor,
        *,
        nms: float,
        limit: int,
        candidates: int | None,
    ) -> list[Proposals]:
        decoded = boxes.clip(boxes.decode(self.anchors(features), deltas), features.size)
        settings = {"nms": nms, "limit": limit, "candidates": candidates}
        images = zip(decoded, objectness, strict=True)
        kept = [(image_boxes, boxes.best_boxes(image_boxes, logits, **settings)) for image_boxes, logits in images]
        return [Proposals(image_boxes[rows], anchor=rows) for image_boxes, rows in kept]

    def refine(self, features: Features, proposals: list[Proposals], deltas: Tensor) -> Tensor:
        starts = torch.cat([one.boxes for one in proposals])
        return boxes.clip(boxes.decode(starts, deltas * self.spread), features.size)[:, None]
