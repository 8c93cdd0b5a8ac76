"""Several draws of an attack: the mean of their scores, with their spread in every resample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pooled(draws: Sequence[NDArray], rng: np.random.Generator) -> NDArray:
    """Mean over the draws of a score, plain and in every resample of the images.

    The mean of every resample is shifted by the change of the plain mean when the draws are resampled too, with
    replacement, times sqrt(N / (N - 1)).  The variance over the resamples is then that over the images plus s^2 / N,
    with the unbiased variance s^2 of N draws.

    Parameters
    ----------
    draws : sequence of ndarray (1 + resamples,)
        One per draw: the plain score first, then one per resample; at least two.
    rng : numpy.random.Generator
        With the same seed for all metrics and cells, so that they stay paired.
    """
    scores = np.stack(draws)
    number, resamples = len(scores), scores.shape[1] - 1
    mean = scores.mean(0)
    picked = scores[:, 0][rng.integers(number, size=(number, resamples))].mean(0)
    mean[1:] += np.sqrt(number / (number - 1)) * (picked - mean[0])
    return mean
