"""Ground truth of an image, and its conversion between the classes of a network and of an image set.

A truth is a label map, uint8 (H, W), or `Objects`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dag.data.classes import OTHER, VOID, Match

# Without annotations, the detections on the clean image with at least this score are the truth.
CONFIDENT = 0.5


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one image.

    Attributes
    ----------
    boxes : ndarray, float32 (R, 4)
        (x_min, y_min, x_max, y_max), 0-based; the last pixel belongs to the box.
    labels : ndarray, int64 (R,)
        Class ids; never background.
    difficult : ndarray, bool (R,)
        Objects that the evaluation ignores: neither their detection nor their absence counts.
    """

    boxes: NDArray
    labels: NDArray
    difficult: NDArray


def predicted(clean: NDArray) -> NDArray | Objects:
    """The truth from a prediction on the clean image, label map (H, W) or detections (D, 6).

    Pixels of a class that the image set does not know are void.
    """
    if clean.dtype == np.uint8:
        return np.where(clean == OTHER, np.uint8(VOID), clean)
    kept = clean[clean[:, 5] >= CONFIDENT]
    return Objects(kept[:, :4].astype(np.float32), kept[:, 4].astype(np.int64), np.zeros(len(kept), bool))


def for_network(truth: NDArray | Objects, match: Match) -> NDArray | Objects:
    """A truth in the class ids of a network; unknown classes become void or are left out."""
    if isinstance(truth, np.ndarray):
        return _table(match.truth, VOID)[truth]
    known = np.array([match.truth[label] is not None for label in truth.labels], bool)
    labels = np.array([match.truth[label] for label in truth.labels[known]], np.int64)
    return Objects(truth.boxes[known], labels, truth.difficult[known])


def for_image_set(prediction: NDArray, match: Match) -> NDArray:
    """A predicted label map (H, W) or detections (D, 6) in the class ids of an image set.

    A class that the image set does not have is background if both know one, or else `OTHER`; detections of such classes
    are left out.
    """
    if prediction.dtype == np.uint8:
        return _table(match.seen, OTHER if match.ground is None else match.ground)[prediction]
    labels = [match.seen[int(label)] for label in prediction[:, 4]]
    found = prediction[np.array([label is not None for label in labels], bool)]
    found[:, 4] = [label for label in labels if label is not None]
    return found


def without(truth: NDArray | Objects, unknown: Iterable[int]) -> tuple[NDArray | Objects, int]:
    """A truth with some classes marked void or difficult, and their number of pixels or objects."""
    ignored = np.isin(truth if isinstance(truth, np.ndarray) else truth.labels, list(unknown))
    if isinstance(truth, np.ndarray):
        return np.where(ignored, np.uint8(VOID), truth), int(ignored.sum())
    return replace(truth, difficult=truth.difficult | ignored), int((ignored & ~truth.difficult).sum())


def _table(labels: tuple[int | None, ...], missing: int) -> NDArray[np.uint8]:
    """Lookup table for the values of a label map."""
    table = np.full(256, VOID, np.uint8)
    table[: len(labels)] = [missing if label is None else label for label in labels]
    table[OTHER] = OTHER
    return table
