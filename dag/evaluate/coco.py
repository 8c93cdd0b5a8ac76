"""COCO average precision, AP@[.5:.95], for the set and for bootstrap resamples of its images.

pycocotools matches detections with objects, image by image.  Its accumulation is reimplemented here with a weight for
every image, as in `dag.evaluate.metrics`: the score of a resample is that of pycocotools on a set with copies of the
drawn images (copies of a detection in sequence), and only the counting is repeated.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dag.evaluate.metrics import check_weights

# Largest number of detections of a class in an image that count.
MOST = 100
_RECALLS = np.linspace(0, 1, 101)
_CHUNK = 2**22  # weights gathered at a time: 32 MiB


@dataclass(frozen=True)
class ClassMatches:
    """Matches of one class in N images, for its average precision; best score first.

    Attributes
    ----------
    hits, counted : ndarray, bool (10, D)
        For each IoU threshold .5, .55, ... .95: true positive; either that or false positive.
    images : ndarray, int64 (D,)
        Number of the image, 0..N-1.
    objects : ndarray, int64 (N,)
        Objects in each image that are not difficult.
    """

    hits: np.ndarray
    counted: np.ndarray
    images: np.ndarray
    objects: np.ndarray


def match_coco(truths: Sequence, detections: Sequence) -> dict[int, ClassMatches]:
    """Compare detections with objects by the rules of COCO, class by class.

    A difficult object is treated as a crowd: it need not be found, and detections inside it do not count.  The last
    pixel belongs to a box, as everywhere here, so a box is `x_max - x_min + 1` wide.

    Parameters
    ----------
    truths : sequence of N objects with `boxes` (R, 4), `labels` (R,), `difficult` (R,)
    detections : sequence of N objects with `boxes` (D, 4), `labels` (D,), `scores` (D,)
        Of equal scores the earlier one comes first.

    Returns
    -------
    dict
        By class id, of the classes that have objects.

    Raises
    ------
    ValueError
        If the sequences differ in length.
    """
    if len(truths) != len(detections):
        raise ValueError(f"{len(truths)} images have objects but {len(detections)} have detections; give both for each")
    labels = sorted({int(label) for truth in truths for label in truth.labels})
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        true = _annotations(labels, truths, lambda truth, row: {"iscrowd": int(truth.difficult[row])})
        seen = _annotations(labels, detections, lambda found, row: {"score": float(found.scores[row])})
        evaluation = COCOeval(true, seen, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [MOST]
        evaluation.evaluate()
    images, per_class = len(truths), {}
    for k, label in enumerate(labels):
        per_class[label] = _class_matches(evaluation.evalImgs[k * images : (k + 1) * images])
    return per_class


def coco_scores(matches: dict[int, ClassMatches], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """AP@[.5:.95] of a set of images.

    Parameters
    ----------
    matches : dict
        From `match_coco`, of N images.
    weights : ndarray of integers (B, N), optional
        Copies of each image; one row of ones if not given.

    Returns
    -------
    dict
        `COCO AP` (B,): mean over classes and IoU thresholds of the precision at 101 recalls, in percent; a class
        without (not difficult) objects is left out of the mean, separately in every resample.  `per_class`: {class:
        (B,)}.

    Raises
    ------
    ValueError
        If the number of images differs.
    """
    if not matches:
        count = 1 if weights is None else len(weights)
        return {"COCO AP": np.full(count, np.nan), "per_class": {}}
    weights = check_weights(weights, len(next(iter(matches.values())).objects))
    per_class = {}
    for label, known in matches.items():
        step = max(1, _CHUNK // max(1, len(known.images)))
        parts = [_average_precision(known, weights[start : start + step]) for start in range(0, len(weights), step)]
        per_class[label] = 100 * np.concatenate(parts)
    values = np.stack(list(per_class.values()))
    present = ~np.isnan(values)
    total, count = np.where(present, values, 0).sum(0), present.sum(0)
    mean = np.divide(total, count, out=np.full(len(weights), np.nan), where=count > 0)
    return {"COCO AP": mean, "per_class": per_class}


def _average_precision(known: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """Mean over the IoU thresholds of one class, (B,) in [0, 1]; NaN without objects.

    Copies of a false positive lower the precision and copies of a true positive raise it, so the points after all
    copies of each true positive have the same envelope as the curve with every copy.
    """
    objects = weights @ known.objects
    copies = weights[:, known.images]
    upto = copies.cumsum(1)
    total = np.zeros(len(weights))
    for hits, counted in zip(known.hits, known.counted, strict=True):
        ends = np.flatnonzero(hits)
        if not len(ends):
            continue
        found = copies[:, ends].cumsum(1)
        ignored = np.flatnonzero(~counted)
        ignored_upto = np.pad(copies[:, ignored].cumsum(1), ((0, 0), (1, 0)))
        seen = upto[:, ends] - ignored_upto[:, np.searchsorted(ignored, ends)]
        precision = np.divide(found, seen, out=np.zeros(found.shape), where=seen > 0)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # floats, as in pycocotools: 57 of 100 do not reach its recall of 0.57
        reached = np.searchsorted(_RECALLS, found / np.maximum(objects, 1)[:, None], side="right")
        total += (np.diff(reached, axis=1, prepend=0) * envelope).sum(1) / len(_RECALLS)
    return np.where(objects > 0, total / len(known.hits), np.nan)


def _class_matches(images: list[dict | None]) -> ClassMatches:
    """From pycocotools' records of one class in every image; None: neither objects nor detections."""
    objects = [0 if one is None else int((1 - np.asarray(one["gtIgnore"])).sum()) for one in images]
    found = [(number, one) for number, one in enumerate(images) if one is not None]
    if not found:
        empty = np.zeros((10, 0), bool)
        return ClassMatches(empty, empty, np.zeros(0, np.int64), np.array(objects))
    order = np.argsort(-np.concatenate([one["dtScores"] for _, one in found]), kind="stable")
    matched = np.concatenate([one["dtMatches"] for _, one in found], 1)[:, order] > 0
    counted = ~np.concatenate([one["dtIgnore"] for _, one in found], 1)[:, order].astype(bool)
    numbers = np.concatenate([np.full(len(one["dtScores"]), number) for number, one in found])[order]
    return ClassMatches(matched & counted, counted, numbers, np.array(objects))


def _annotations(labels: list[int], images: Sequence, more) -> COCO:
    """Boxes of those labels as COCO's annotations of images 0..N-1, with the fields that `more(image, row)` gives."""
    wanted, annotations = set(labels), []
    for number, one in enumerate(images):
        for row, (box, label) in enumerate(zip(np.asarray(one.boxes, np.float64), one.labels, strict=True)):
            if int(label) in wanted:
                x, y, width, height = *box[:2], *(box[2:] - box[:2] + 1)
                place = {"image_id": number, "category_id": int(label), "id": len(annotations) + 1}  # 0 is "no match"
                shape = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
                annotations.append(place | shape | more(one, row))
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(len(images))],
        "categories": [{"id": label} for label in labels],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
