"""Arithmetic on perturbations, and the names that say how each was made.

A perturbation r is float32 (3, H, W) in grey levels (0..255 scale), in the frame of its image.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PIXELS = ("float", "8-bit")

_NAME = r"[a-z0-9][a-z0-9-]*"
SOURCE_PATTERN = rf"{_NAME}(?:@{_NAME})?"
RECIPE_PATTERN = rf"{SOURCE_PATTERN}(?:\+{SOURCE_PATTERN})*(?:\.permuted-[1-9][0-9]*)?"


@dataclass(frozen=True)
class Recipe:
    """How a perturbation is made; `str(recipe)` is its name.

    Attributes
    ----------
    sources : tuple of str
        Sources whose perturbations are summed, "network" or "network@variant"; empty for `none`.
    draw : int
        Number of the permuted draw, counted from 1; 0 if not permuted.
    """

    sources: tuple[str, ...]
    draw: int = 0

    def __str__(self) -> str:
        return ("+".join(self.sources) or "none") + (f".permuted-{self.draw}" if self.draw else "")


def parse(name: str) -> Recipe:
    """Recipe of a perturbation's name, e.g. ``fr-zf-07+fr-vgg-07.permuted-1``.

    Raises
    ------
    ValueError
        If the name is not well formed or names a source twice.
    """
    if name == "none":
        return Recipe(())
    base, _, draw = name.partition(".permuted-")
    sources = tuple(base.split("+"))
    if not re.fullmatch(RECIPE_PATTERN, name) or "none" in sources:
        raise ValueError(
            f"{name!r} is not the name of a perturbation; write none, network, network@variant, "
            "a sum a+b, or any of them with .permuted-1"
        )
    if len(set(sources)) < len(sources):
        raise ValueError(f"{name!r} adds the same perturbation twice; name each source once")
    return Recipe(sources, int(draw or 0))


def generator(*parts: object) -> np.random.Generator:
    """Random generator seeded by the given parts alone, the same on every machine and in any order."""
    text = "\x1f".join(str(part) for part in parts)
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16]))


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

    The control of the paper's section 3.4: the values stay, their spatial structure goes.
    """
    _, height, width = r.shape
    return r[:, rng.permutation(height)][:, :, rng.permutation(width)]


def perceptibility(r: NDArray) -> float:
    """p = sqrt(mean over pixels of ||r_k||^2), r_k the RGB vector scaled to [0, 1] (section 3.5.3)."""
    return float(np.sqrt(np.mean(np.sum((r.astype(np.float64) / 255) ** 2, axis=0))))


def apply(image: NDArray, r: NDArray, pixels: str) -> NDArray:
    """The perturbed image as a network sees it: truncated to [0, 255], and rounded if `pixels` is "8-bit".

    Raises
    ------
    ValueError
        If the shapes differ or `pixels` is unknown.
    """
    if image.shape != r.shape:
        raise ValueError(f"a perturbation of shape {r.shape} does not fit an image of shape {image.shape}")
    if pixels not in PIXELS:
        raise ValueError(f"pixels {pixels!r} is unknown; choose from {', '.join(PIXELS)}")
    perturbed = np.clip(image + r, 0, 255, dtype=np.float32)
    return np.rint(perturbed) if pixels == "8-bit" else perturbed
