"""Two-stage detectors, whatever their layers: region proposals, then a head for every proposal (Ren et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dag.networks.interface import Detections, Detector, Proposals
from dag.networks.layers import boxes, operators
from dag.networks.mini import bodies

# Standard deviations by which the targets of the second box regression are divided.
SPREAD = (0.1, 0.1, 0.2, 0.2)


@dataclass(frozen=True)
class Features:
    """Feature map (B, D, h, w) of a batch and the `size` = (H, W) of its images."""

    maps: Tensor
    size: tuple[int, int]


class RegionDetector(Detector):
    """What detectors of two stages share, whatever their layers: proposals, and the final suppression.

    The settings of the normal test are attributes: `candidates` boxes enter the suppression of
    proposals at IoU > `proposal_nms`, `proposals` survive; detections need a probability above
    `lowest` and are suppressed per class at IoU > `detection_nms`.  At most `per_class` boxes of a
    class enter that suppression and at most `per_image` detections survive it (None: all).
    """

    candidates: int
    proposals: int
    proposal_nms = 0.7
    lowest = 0.05
    detection_nms = 0.3
    per_class: int | None = None
    per_image: int | None = None

    def objectness_and_deltas(self, features) -> tuple[Tensor, Tensor]:
        """Raw output of the region proposal network: logits (B, N) and box deltas (B, N, 4)."""
        raise TypeError(f"{type(self).__name__} does not define objectness_and_deltas()")

    @torch.no_grad()
    def propose(self, features, *, nms: float, limit: int, candidates: int | None = None) -> list[Proposals]:
        """The `limit` best proposals that survive suppression at IoU > `nms`, best first.

        All anchors enter the suppression unless `candidates` limits them, as the normal test
        does: the attack needs a dense set.
        """
        raw = self.objectness_and_deltas(features)
        return self.select(features, *raw, nms=nms, limit=limit, candidates=candidates)

    def select(
        self, features, objectness: Tensor, deltas: Tensor, *, nms: float, limit: int, candidates: int | None
    ) -> list[Proposals]:
        """`propose`, given the output of `objectness_and_deltas`."""
        raise TypeError(f"{type(self).__name__} does not define select()")

    def regions(self, features, proposals: list[Proposals]) -> tuple[Tensor, Tensor]:
        """Second stage: scores (R, C) before softmax and the raw box deltas that `refine` understands."""
        raise TypeError(f"{type(self).__name__} does not define regions()")

    def scores(self, features, proposals: list[Proposals]) -> Tensor:
        return self.regions(features, proposals)[0]

    def refine(self, features, proposals: list[Proposals], deltas: Tensor) -> Tensor:
        """Final boxes in the frame of the image: (R, C - 1, 4), or (R, 1, 4) if all classes share one."""
        raise TypeError(f"{type(self).__name__} does not define refine()")

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Detections]:
        features = self.features(images)
        proposals = self.propose(features, nms=self.proposal_nms, limit=self.proposals, candidates=self.candidates)
        scores, deltas = self.regions(features, proposals)
        refined = self.refine(features, proposals, deltas)
        counts = [len(one) for one in proposals]
        parts = zip(refined.split(counts), self.probabilities(scores).split(counts), strict=True)
        return [self._detections(*part) for part in parts]

    def _detections(self, refined: Tensor, probabilities: Tensor) -> Detections:
        foreground = probabilities[:, 1:]
        chosen = foreground > self.lowest
        if self.per_class is not None and len(foreground) > self.per_class:
            chosen &= foreground >= foreground.topk(self.per_class, 0).values[-1]
        rows, columns = chosen.nonzero(as_tuple=True)
        candidates = refined.expand(-1, foreground.shape[1], 4)[rows, columns]
        scores = foreground[rows, columns]
        kept = operators.class_nms(boxes.exclusive(candidates), scores, columns, self.detection_nms)[: self.per_image]
        ids = torch.tensor(self.labels[1:], device=columns.device)
        return Detections(candidates[kept], ids[columns[kept]], scores[kept])


class TwoStage(RegionDetector):
    """Body and region proposal network of the miniature; subclasses add the second stage.

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
        return [
            Proposals(image_boxes[boxes.best_boxes(image_boxes, logits, nms=nms, limit=limit, candidates=candidates)])
            for image_boxes, logits in zip(decoded, objectness, strict=True)
        ]

    def refine(self, features: Features, proposals: list[Proposals], deltas: Tensor) -> Tensor:
        starts = torch.cat([one.boxes for one in proposals])
        return boxes.clip(boxes.decode(starts, deltas * self.spread), features.size)[:, None]


def rois(proposals: list[Proposals], maps: Tensor) -> Tensor:
    """Proposals of a batch as rows (image, x_min, y_min, x_max, y_max), (R, 5), typed like `maps`."""
    image = torch.cat([maps.new_full((len(one), 1), i) for i, one in enumerate(proposals)])
    return torch.cat([image, torch.cat([one.boxes for one in proposals]).to(maps)], 1)
