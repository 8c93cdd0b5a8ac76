"""The reference of a victim's scores: annotations, or its predictions on the clean images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from numpy.typing import NDArray

from dag.data.classes import VOC, ClassList, match
from dag.data.readers import Reader
from dag.data.truths import CONFIDENT, Objects, predicted, without
from dag.evaluate.cells import predictions
from dag.evaluate.metrics import Matches, match_detections


@dataclass(frozen=True)
class Truth:
    """Reference of one victim: one truth per image, in ids of the image set's classes.

    `other`: whether the victim predicts classes that the image set does not have.  `ignored`: {class that it does not
    know: pixels or objects that do not count}.
    """

    images: Sequence[NDArray] | Sequence[Objects]
    classes: ClassList
    other: bool
    ignored: dict[str, int]

    def only(self, image: int) -> Truth:
        """That of one image."""
        return replace(self, images=[self.images[image]])

    def matches(self, detections: Sequence) -> Matches:
        return match_detections(self.images, detections, classes=self.classes)


def truths_of(
    reader: Reader, images: list[tuple[Path, str]], networks: Mapping[str, Mapping], shards: list
) -> dict[str, Truth]:
    """Annotations without classes that the victim does not know, or its predictions on the clean images.

    Parameters
    ----------
    reader, images, networks
        As of `dag.evaluate.score.score`.
    shards : list
        From `read_manifest`, one per shard.

    Raises
    ------
    ValueError
        If a truth cannot be read, or there is none and a detector finds no object in the clean images.
    """
    classes, found, annotated = reader.classes, {}, {}
    for victim, entry in networks.items():
        matched, task, ignored = match(_classes(entry), classes), entry["task"], {}
        if not reader.annotated:
            clean, _ = predictions([shard[victim, "none", "float"] for shard in shards], images)
            truths = [predicted(array) for array in clean]
            if task == "detection" and not any(len(truth.labels) for truth in truths):
                raise ValueError(
                    f"image set {reader.name} has no truth, and {victim} finds nothing in clean images with a score "
                    f"of at least {CONFIDENT}: there is nothing to lose; take the network out, or annotate the images"
                )
        else:
            if task not in annotated:
                annotated[task] = [reader.truth(task, image) for image in images]
            truths = annotated[task]
            for label in matched.unknown:
                pairs = [without(truth, [label]) for truth in truths]
                truths, count = [truth for truth, _ in pairs], sum(count for _, count in pairs)
                ignored |= {classes.names[label]: count} if count else {}
        found[victim] = Truth(truths, classes, matched.ground is None and None in matched.seen, ignored)
    return found


def _classes(entry: Mapping) -> ClassList:
    return ClassList.of(entry["classes"]) if "classes" in entry else VOC
