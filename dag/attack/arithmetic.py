"""Arithmetic on perturbations: sums, multiples, controls, perceptibility, and how a perturbed image reaches a network.

A perturbation r is float32 (3, H, W) in grey levels (0..255 scale), in the frame of its image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dag.data.pictures import through_jpeg
from dag.workflow.names import check_pixels


def add(perturbations: list[NDArray]) -> NDArray:
    """Sum of perturbations of the same image (paper, section 4.4).

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    shapes = {r.shape for r in perturbations}
    if len(shapes) != 1:
        raise ValueError(f"perturbations of different shapes {sorted(shapes)} cannot be added; are they of one image?")
    return np.sum(perturbations, axis=0, dtype=np.float32)


def permute(r: NDArray, rng: np.random.Generator) -> NDArray:
    """Shuffle the rows and the columns of r, each by one permutation common to the channels.

    The control of the paper's section 3.4: keeps the values, destroys their spatial structure.
    """
    _, height, width = r.shape
    return r[:, rng.permutation(height)][:, :, rng.permutation(width)]


def random_signs(r: NDArray, rng: np.random.Generator) -> NDArray:
    """Every value of r with a random sign: magnitudes keep their place, directions are lost."""
    return np.where(rng.random(r.shape) < 0.5, -r, r)


def gaussian(r: NDArray, rng: np.random.Generator) -> NDArray:
    """White Gaussian noise of the shape, the type and exactly the perceptibility of r."""
    return scale(rng.standard_normal(r.shape).astype(r.dtype), perceptibility(r))


def scale(r: NDArray, p: float) -> NDArray:
    """Multiple of r with the perceptibility p; zero stays zero."""
    present = perceptibility(r)
    return r * r.dtype.type(p / present if present else 0)


_DRAWN = {"permuted": permute, "signs": random_signs, "gaussian": gaussian}


def control(r: NDArray, kind: str, rng: np.random.Generator) -> NDArray:
    """A draw of the control `kind` of r, see `CONTROLS`."""
    return _DRAWN[kind](r, rng)


def perceptibility(r: NDArray) -> float:
    """p = sqrt(mean over pixels of ||r_k||^2), r_k the RGB vector scaled to [0, 1] (section 3.5.3)."""
    scaled = r.astype(np.float64)
    scaled /= 255
    scaled *= scaled
    return float(np.sqrt(np.mean(np.sum(scaled, axis=0))))


def largest(r: NDArray) -> float:
    """Largest magnitude of a value of r, in grey levels."""
    return float(max(r.max(), -r.min()))


def apply(image: NDArray, r: NDArray, pixels: str) -> NDArray:
    """The perturbed image as a network sees it, float32 (3, H, W) in [0, 255].

    Truncated to [0, 255] ("float"), also rounded ("8-bit"), or rounded, written as a JPEG file and read
    again ("jpeg-75": quality 75, colours at half the resolution, as is common).

    Raises
    ------
    ValueError
        If the shapes differ or `pixels` is unknown.
    """
    if image.shape != r.shape:
        raise ValueError(f"a perturbation of shape {r.shape} does not fit an image of shape {image.shape}")
    check_pixels(pixels)
    perturbed = np.clip(image + r, 0, 255, dtype=np.float32)
    if pixels == "float":
        return perturbed
    rounded = np.rint(perturbed)
    if pixels == "8-bit":
        return rounded
    return through_jpeg(rounded, int(pixels.removeprefix("jpeg-")))
