"""Two-stage detectors: region proposals, then a head that scores every proposal (Ren et al., 2015)."""

from __future__ import annotations

import torch
from torch import Tensor

from dag.networks.interface import Detections, Detector, Proposals
from dag.networks.layers import boxes, operators

# Standard deviations by which the targets of the second stage's box regression are divided.
SPREAD = (0.1, 0.1, 0.2, 0.2)


class RegionDetector(Detector):
    """Base of two-stage detectors: proposals and the final suppression.

    The settings of the normal test are attributes.  The `candidates` best boxes are suppressed at
    IoU > `proposal_nms`, and the `proposals` best survivors are classified.  Detections need a probability above
    `lowest` and are suppressed per class at IoU > `detection_nms`.  At most `per_class` boxes of a class
    enter that suppression, and at most `per_image` detections are kept after it (None: no limit).
    """

    candidates: int
    proposals: int
    proposal_nms = 0.7
    lowest = 0.05
    detection_nms = 0.3
    per_class: int | None = None
    per_image: int | None = None
    independent = True

    def objectness_and_deltas(self, features) -> tuple[Tensor, Tensor]:
        """Output of the region proposal network: logits (B, N) and box deltas (B, N, 4)."""
        raise TypeError(f"{type(self).__name__} does not define objectness_and_deltas()")

    @torch.no_grad()
    def propose(self, features, *, nms: float, limit: int, candidates: int | None = None) -> list[Proposals]:
        """The `limit` best proposals that survive suppression at IoU > `nms`, best first.

        The normal test limits the boxes that enter the suppression to `candidates`; by default all anchors do, as
        the attack needs a dense set.
        """
        raw = self.objectness_and_deltas(features)
        return self.select(features, *raw, nms=nms, limit=limit, candidates=candidates)

    def select(
        self, features, objectness: Tensor, deltas: Tensor, *, nms: float, limit: int, candidates: int | None
    ) -> list[Proposals]:
        """`propose`, given the output of `objectness_and_deltas`."""
        raise TypeError(f"{type(self).__name__} does not define select()")

    def regions(self, features, proposals: list[Proposals]) -> tuple[Tensor, Tensor]:
        """Second stage: scores (R, C) before softmax and the box deltas for `refine`."""
        raise TypeError(f"{type(self).__name__} does not define regions()")

    def scores(self, features, proposals: list[Proposals]) -> Tensor:
        return self.regions(features, proposals)[0]

    def objectness(self, features, proposals: list[Proposals]) -> Tensor:
        """Of the region proposal network, at the anchors that became the proposals."""
        logits, _ = self.objectness_and_deltas(features)
        return torch.cat([rows[one.anchor] for rows, one in zip(logits, proposals, strict=True)])

    def refine(self, features, proposals: list[Proposals], deltas: Tensor) -> Tensor:
        """Final boxes in the frame of the image: (R, C - 1, 4), or (R, 1, 4) if all classes share one box."""
        raise TypeError(f"{type(self).__name__} does not define refine()")

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Detections]:
        features = self.features(images)
        proposals = self.propose(features, nms=self.proposal_nms, limit=self.proposals, candidates=self.candidates)
        counts = [len(one) for one in proposals]
        if len(images) > 1:  # a product of matrices may round a row differently if there are more or fewer of them
            proposals = [_filled(one, self.proposals) for one in proposals]
        scores, deltas = self.regions(features, proposals)
        refined = self.refine(features, proposals, deltas)
        rows = [len(one) for one in proposals]
        parts = zip(refined.split(rows), self.probabilities(scores).split(rows), counts, strict=True)
        return [self._detections(boxes[:count], values[:count]) for boxes, values, count in parts]

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


def _filled(proposals: Proposals, count: int) -> Proposals:
    """As many boxes as `count`: those of an image, then boxes that nobody reads."""
    more = proposals.boxes.new_tensor([[0.0, 0.0, 15.0, 15.0]]).expand(max(count - len(proposals), 0), 4)
    return Proposals(torch.cat([proposals.boxes, more]))


def rois(proposals: list[Proposals], maps: Tensor) -> Tensor:
    """Proposals of a batch as rows (image, x_min, y_min, x_max, y_max), (R, 5), of the type of `maps`."""
    image = torch.cat([maps.new_full((len(one), 1), i) for i, one in enumerate(proposals)])
    return torch.cat([image, torch.cat([one.boxes for one in proposals]).to(maps)], 1)
