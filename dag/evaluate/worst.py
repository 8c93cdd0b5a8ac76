"""The worst of several attacks: for every image the one after which the network does worst."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dag.evaluate.metrics import mean_iou


def worst_confusions(confusions: NDArray, rng: np.random.Generator) -> NDArray:
    """Choose an attack for every image so that the mIoU of the set is low.

    mIoU is not a mean over images, so the worst attack on each image need not be the worst for the set.  Start from
    the attack with the lowest mIoU; visit the images in random order and choose, for each, the attack that lowers the
    mIoU of the set most; repeat until nothing changes (Croce et al., ECCV 2024).  The result is never above the lowest
    single attack.

    Parameters
    ----------
    confusions : ndarray of integers (A, N, C, C)
        Of A attacks on N images, see `dag.evaluate.metrics.confusion_matrix`.
    rng : Generator
        Generator of the order.

    Returns
    -------
    ndarray, int64 (N,)
        The attack of every image.
    """
    confusions = np.asarray(confusions)
    images = confusions.shape[1]
    chosen = np.full(images, int(np.argmin(mean_iou(confusions.sum(1)))))
    total = confusions[chosen[0]].sum(0)
    lowest, changed = float(mean_iou(total)), True
    while changed:
        changed = False
        for image in rng.permutation(images):
            totals = total - confusions[chosen[image], image] + confusions[:, image]
            reached = mean_iou(totals)
            best = int(np.argmin(reached))
            if reached[best] < lowest:
                lowest, total, chosen[image], changed = float(reached[best]), totals[best], best, True
    return chosen


def worst_detections(scores: NDArray, false: NDArray) -> NDArray:
    """Choose for every image the attack after which it has the lowest score.

    Parameters
    ----------
    scores : ndarray (A, N)
        mAP of every image alone after each of A attacks; NaN without objects.
    false : ndarray (A, N)
        Sum of the scores of its false positives.

    Returns
    -------
    ndarray, int64 (N,)
        The attack of every image; of equals, and without objects, that with the most false positives, then the first.
    """
    scores = np.nan_to_num(np.asarray(scores, np.float64))
    return np.where(scores == scores.min(0), false, -1).argmax(0)
