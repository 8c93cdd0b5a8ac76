"""Input diversity: gradients of resized and padded images, for perturbations that transfer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from dag.networks.interface import Proposals

# Factors by which an image is resized, before it is padded to its size.
LEAST, MOST = 0.9, 1.0


def diversified(x: Tensor, problem, probability: float, rng: np.random.Generator):
    """A perturbed image, resized and padded at random, and the problem with its targets moved accordingly.

    Xie et al., "Improving Transferability of Adversarial Examples with Input Diversity", CVPR 2019, for dense targets:
    a pixel becomes the nearest pixel to its moved centre, a box is resized and moved.

    Parameters
    ----------
    x : Tensor (3, H, W)
    problem : dag.attack.engine.Problem
        `where` are pixels, y * W + x, or `Proposals`.
    probability : float
        Probability of a change; otherwise both are returned unchanged.
    rng : numpy.random.Generator
        Seeded by image and iteration.

    Raises
    ------
    ValueError
        If proposals are rows of a single-stage network's output, which do not move with the image.
    """
    height, width = x.shape[-2:]
    changed, factor, down, right = rng.random() < probability, rng.uniform(LEAST, MOST), *rng.random(2)
    high, wide = (max(1, round(factor * length)) for length in (height, width))
    if not changed:
        return x, problem
    # any of the possible places, with equal probability
    top, left = int(down * (height - high + 1)), int(right * (width - wide + 1))
    small = F.interpolate(x[None], (high, wide), mode="bilinear", align_corners=False)[0]
    seen = F.pad(small, (left, width - wide - left, top, height - high - top))
    if isinstance(problem.where, Proposals):
        if problem.where.index is not None:
            raise ValueError("the proposals of this network stay where they are when the image is resized")
        scale = problem.where.boxes.new_tensor([wide / width, high / height] * 2)
        last, offset = scale.new_tensor([0, 0, 1, 1]), scale.new_tensor([left, top] * 2)
        boxes = (problem.where.boxes + last) * scale - last + offset
        return seen, replace(problem, where=Proposals(boxes))
    rows = _moved(problem.where // width, high / height, top, height)
    columns = _moved(problem.where % width, wide / width, left, width)
    return seen, replace(problem, where=rows * width + columns)


def _moved(place: Tensor, ratio: float, offset: int, length: int) -> Tensor:
    """Nearest pixels, int64, of pixels whose axis was resized by `ratio` and shifted by `offset`."""
    return ((place + 0.5) * ratio - 0.5 + offset).round().long().clamp(0, length - 1)
