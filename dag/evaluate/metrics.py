"""mIoU and PASCAL VOC average precision, for the set and for bootstrap resamples of its images.

Both metrics are functions of per-image statistics (a confusion matrix; matched
detections), so a resample is a vector of image weights: an image with weight w counts as w
copies of it.  All scores are evaluated for a matrix of weights (B, N) at once; a single row of
ones is the plain score.  The same weights for every cell of a table make differences paired.

Scores are percentages.  Columns of `per_class` are class ids; NaN marks classes that are
excluded from the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dag.data.classes import OTHER, VOC, VOID, ClassList

SURE = 0.5  # detections with a lower score are not drawn and do not count for `objects_found`
_CHUNK = 2**22  # weights gathered at a time: 32 MiB


def bootstrap_weights(images: int, resamples: int, seed: int) -> np.ndarray:
    """How often each image is drawn in each resample, int64 (resamples, images); rows sum to `images`."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)


def confusion_matrix(
    truth: np.ndarray, prediction: np.ndarray, classes: int = len(VOC.names), other: bool = False
) -> np.ndarray:
    """Pixels by true and predicted class.

    Parameters
    ----------
    truth : ndarray of integers, any shape
        Class ids; 255 (void) pixels are not counted.
    prediction : ndarray of integers, the same shape
        Class ids.
    classes : int
        C, with background.
    other : bool
        Whether predictions may be 254, a class that the image set does not have.

    Returns
    -------
    ndarray, int64 (C, C), or (C, C + 1) with `other`
        Row: true class, column: predicted class, the last one that of other classes.

    Raises
    ------
    ValueError
        If the shapes differ or a label is out of range.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(
            f"label map {truth.shape} and prediction {prediction.shape} differ in shape; predict at image size"
        )
    counted, columns = truth != VOID, classes + other
    truth, prediction = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    if other:
        prediction[prediction == OTHER] = classes
    for name, labels, most in (("label map", truth, classes), ("prediction", prediction, columns)):
        if labels.size and not (labels.min() >= 0 and labels.max() < most):
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise ValueError(f"{name} holds label {wrong}; use class ids 0..{classes - 1}")
    return np.bincount(truth * columns + prediction, minlength=classes * columns).reshape(classes, columns)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of every class, (..., C) in [0, 1], of `confusion_matrix` (..., C, C or C + 1).

    NaN for a class that occurs neither in the truth nor in the prediction.
    """
    confusion = np.asarray(confusion, np.float64)
    common = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = confusion.sum(-1) + confusion.sum(-2)[..., : common.shape[-1]] - common
    return np.divide(common, union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Mean `iou` over the classes that occur, percent, (...) of confusion matrices (..., C, C)."""
    return 100 * _mean(iou(confusion))


def foreground_mean_iou(confusion: np.ndarray, ground: int = 0) -> np.ndarray:
    """`mean_iou` without background `ground`, which no attack touches and which alone keeps mIoU above 0."""
    return 100 * _mean(np.delete(iou(confusion), ground, -1))


def segmentation_scores(
    confusions: np.ndarray, weights: np.ndarray | None = None, ground: int | None = 0
) -> dict[str, np.ndarray]:
    """mIoU of a set of images.

    Parameters
    ----------
    confusions : ndarray of integers (N, C, C or C + 1)
        One matrix per image; they are added before the IoU is taken.
    weights : ndarray of integers (B, N), optional
        Copies of each image; one row of ones if not given.
    ground : int, optional
        Class id of the background.

    Returns
    -------
    dict
        `score` (B,): mIoU; `companion` (B,): mIoU of the foreground classes, or the following where there is no
        background; `per_class` (B, C); `image mIoU` (B,):
        mean over the images of the mIoU of each; `pixel accuracy` (B,): share of the pixels of the set that are
        right.  All in percent.

    Raises
    ------
    ValueError
        If the number of images differs.
    """
    confusions = np.asarray(confusions, np.float64)
    weights = check_weights(weights, len(confusions))
    # float64 for a fast product; sums of pixels stay far below 2^53 and are exact
    total = (weights.astype(np.float64) @ confusions.reshape(len(confusions), -1)).reshape(-1, *confusions.shape[1:])
    each = _weighted_mean(mean_iou(confusions), weights)
    return {
        "score": mean_iou(total),
        "companion": each if ground is None else foreground_mean_iou(total, ground),
        "per_class": 100 * iou(total),
        "image mIoU": each,
        "pixel accuracy": 100 * _share(np.trace(total, axis1=1, axis2=2), total.sum((1, 2))),
    }


@dataclass(frozen=True)
class Matches:
    """Matches of N images for VOC average precision, sorted by class, best score first.

    Detections that fell on a `difficult` object are left out: they do not count.

    Attributes
    ----------
    labels : ndarray, int64 (D,)
        Class ids.
    scores : ndarray, float64 (D,)
    hits : ndarray, bool (D,)
        True positive or false positive.
    images : ndarray, int64 (D,)
        Number of the image, 0..N-1.
    counts : ndarray, int64 (N, C)
        Objects of each class in each image that are not difficult.
    """

    labels: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    images: np.ndarray
    counts: np.ndarray


def match_detections(
    truths: Sequence, detections: Sequence, threshold: float = 0.5, classes: ClassList = VOC
) -> Matches:
    """Compare detections with objects by the rules of the VOC 2007 development kit.

    A detection belongs to the object of its class and image that it overlaps most (the first, in a
    tie).  If their IoU is at least `threshold`, it is a hit when it is the best-scored detection
    of that object, does not count when the object is difficult, and is a false positive
    otherwise; below `threshold` it is a false positive.  The kit tests IoU >= 0.5, as here;
    py-faster-rcnn tests IoU > 0.5.

    Parameters
    ----------
    truths : sequence of N objects with `boxes` (R, 4), `labels` (R,), `difficult` (R,)
        E.g. `dag.data.truths.Objects`.
    detections : sequence of N objects with `boxes` (D, 4), `labels` (D,), `scores` (D,)
        In any order; of equal scores the earlier one comes first.
    threshold : float
    classes : ClassList
        What the labels are.

    Raises
    ------
    ValueError
        If the sequences differ in length or a detection is malformed.
    """
    if len(truths) != len(detections):
        raise ValueError(f"{len(truths)} images have objects but {len(detections)} have detections; give both for each")
    counts = np.zeros((len(truths), len(classes.names)), np.int64)
    columns = [[np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, bool)], [np.empty(0, np.int64)]]
    for image, (truth, detection) in enumerate(zip(truths, detections, strict=True)):
        np.add.at(counts[image], truth.labels[~truth.difficult], 1)
        labels, scores, hits = _match(truth, *_checked(image, detection, classes), threshold)
        for column, values in zip(columns, (labels, scores, hits, np.full(len(labels), image)), strict=True):
            column.append(values)
    labels, scores, hits, images = (np.concatenate(column) for column in columns)
    order = np.lexsort((-scores, labels))
    return Matches(labels[order], scores[order], hits[order], images[order], counts)


def detection_scores(matches: Matches, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """VOC mean average precision of a set of images.

    The precision-recall curve has one point per distinct score: detections of equal score share a
    point, so that their order does not matter.
    A class without (not difficult) objects is left out of the mean, separately in every resample.

    Parameters
    ----------
    matches : Matches
        Of N images.
    weights : ndarray of integers (B, N), optional
        Copies of each image; one row of ones if not given.

    Returns
    -------
    dict
        `score` (B,): mean of the 11-point interpolated AP (VOC 2007); `companion` (B,): mean of
        the area under the interpolated curve (VOC 2010 on); `per_class` (B, C): 11-point AP; `objects found` (B,):
        share of the objects that a detection with a score of at least `SURE` has found.  All in percent.

    Raises
    ------
    ValueError
        If the number of images differs.
    """
    weights = check_weights(weights, len(matches.counts))
    classes = matches.counts.shape[1]
    points, area = (np.full((len(weights), classes), np.nan) for _ in range(2))
    bounds = np.searchsorted(matches.labels, np.arange(classes + 1))
    for label in range(classes):
        rows = slice(bounds[label], bounds[label + 1])
        counts = matches.counts[:, label]
        step = max(1, _CHUNK // max(1, rows.stop - rows.start))
        for start in range(0, len(weights), step):
            chunk = slice(start, start + step)
            points[chunk, label], area[chunk, label] = _average_precision(
                matches.scores[rows], matches.hits[rows], matches.images[rows], counts, weights[chunk]
            )
    return {
        "score": 100 * _mean(points),
        "companion": 100 * _mean(area),
        "per_class": 100 * points,
        "objects found": 100 * _share(weights @ objects_found(matches), weights @ matches.counts.sum(1)),
    }


def objects_found(matches: Matches) -> np.ndarray:
    """Objects of every image that a detection with a score of at least `SURE` has found, int64 (N,)."""
    found = matches.images[matches.hits & (matches.scores >= SURE)]
    return np.bincount(found, minlength=len(matches.counts))


def _average_precision(
    scores: np.ndarray, hits: np.ndarray, images: np.ndarray, counts: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """11-point and area AP of one class, each (B,) in [0, 1]; NaN without objects.

    Precision rises only at a hit, so the curve is evaluated at the groups of equal score with a
    hit: a few hundred points instead of all detections.
    """
    objects = weights @ counts
    absent = np.where(objects > 0, 0.0, np.nan)
    found_here = np.cumsum(hits)
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))
    ends = ends[np.diff(found_here[ends], prepend=0) > 0]
    if len(ends) == 0:
        return absent, absent
    starts = np.append(0, ends[:-1] + 1)
    counted = np.add.reduceat(weights[:, images[: ends[-1] + 1]], starts, axis=1).cumsum(1)
    first_hits = np.append(0, found_here[ends[:-1]])
    found = np.add.reduceat(weights[:, images[hits]], first_hits, axis=1).cumsum(1)
    precision = np.divide(found, counted, out=np.zeros(found.shape), where=counted > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # a recall of k/10 is reached when 10 found >= k objects: integers, because 0.1 * 3 > 0.3
    padded = np.pad(envelope, ((0, 0), (0, 1)))
    points = sum(
        np.take_along_axis(padded, (10 * found < k * objects[:, None]).sum(1, keepdims=True), 1)[:, 0]
        for k in range(11)
    )
    area = (np.diff(found, axis=1, prepend=0) * envelope).sum(1)
    return points / 11 + absent, area / np.maximum(objects, 1) + absent


def _match(
    truth, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and hits of the counted detections of one image."""
    order = np.argsort(-scores, kind="stable")
    boxes, labels, scores = boxes[order], labels[order], scores[order]
    if len(truth.labels) == 0:
        return labels, scores, np.zeros(len(labels), bool)
    overlap = np.where(labels[:, None] == truth.labels, _overlaps(boxes, truth.boxes), 0.0)
    best = overlap.argmax(1)
    on_object = overlap[np.arange(len(labels)), best] >= threshold
    on_difficult = on_object & truth.difficult[best]
    candidates = np.flatnonzero(on_object)
    hits = np.zeros(len(labels), bool)
    hits[candidates[np.unique(best[candidates], return_index=True)[1]]] = True
    return labels[~on_difficult], scores[~on_difficult], hits[~on_difficult]


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes (D, 4) and (R, 4), (D, R); the last pixel belongs to a box, as in VOC."""
    a, b = a[:, None].astype(np.float64), b.astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    common = sides.clip(0).prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2] + 1).prod(-1) for box in (a, b))
    return common / (area_a + area_b - common)


def _checked(image: int, detection, classes: ClassList) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes, labels = np.asarray(detection.boxes), np.asarray(detection.labels, np.int64)
    scores = np.asarray(detection.scores, np.float64)
    if boxes.shape != (len(labels), 4) or labels.shape != scores.shape:
        raise ValueError(
            f"image number {image}: {boxes.shape} boxes, {labels.shape} labels and {scores.shape} scores; "
            "give (D, 4), (D,) and (D,)"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(f"image number {image}: a box or score is not finite; predict again")
    if strange := set(labels.tolist()) - set(classes.foreground):
        raise ValueError(
            f"image number {image}: a detection's class is {min(strange)}; use class ids 0..{len(classes.names) - 1}, "
            "without that of background"
        )
    return boxes, labels, scores


def check_weights(weights: np.ndarray | None, images: int) -> np.ndarray:
    """Copies of each image, int64 (B, N); one row of ones if None.  Raises `ValueError` if they do not fit."""
    weights = np.ones((1, images), np.int64) if weights is None else np.asarray(weights)
    if weights.ndim != 2 or weights.shape[1] != images:
        raise ValueError(f"weights {weights.shape} do not fit {images} images; give (resamples, {images})")
    if weights.dtype.kind not in "iu":
        raise ValueError(f"weights are {weights.dtype}, but count copies of images; give integers")
    return weights.astype(np.int64, copy=False)


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of one value an image (N,), NaN where it has none, for every row of weights (B, N)."""
    present = ~np.isnan(values)
    return _share(weights @ np.where(present, values, 0), weights @ present)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN if whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis, ignoring NaN; NaN if all are."""
    present = ~np.isnan(values)
    count = present.sum(-1)
    total = np.where(present, values, 0).sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
