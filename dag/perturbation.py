"""Arithmetic on perturbations, and the names that say how each was made.

A perturbation r is float32 (3, H, W) in grey levels (0..255 scale), in the frame of its image.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# How a perturbed image reaches a network: as it is, rounded, or as a JPEG file of a quality from 1 to 100.
PIXELS_PATTERN = r"float|8-bit|jpeg-(?:[1-9][0-9]?|100)"

# Controls: a random field that has something of r and lacks its structure, several draws each.
CONTROLS = {
    "permuted": "rows and columns of the perturbation shuffled",
    "signs": "signs of the perturbation's values drawn anew",
    "gaussian": "Gaussian noise of the perturbation's perceptibility",
}

_NAME = r"[a-z0-9][a-z0-9-]*"
_CONTROL = "|".join(CONTROLS)
SOURCE_PATTERN = rf"{_NAME}(?:@{_NAME})?"
SUM_PATTERN = rf"{SOURCE_PATTERN}(?:\+{SOURCE_PATTERN})*"
SCALED_PATTERN = rf"{SUM_PATTERN}(?:\.p-[1-9][0-9]*)?"
RECIPE_PATTERN = (
    rf"(?P<sum>{SUM_PATTERN})(?:\.p-(?P<scale>[1-9][0-9]*))?(?:\.(?P<control>{_CONTROL})(?:-(?P<draw>[1-9][0-9]*))?)?"
)


@dataclass(frozen=True)
class Recipe:
    """How a perturbation is made; `str(recipe)` is its name.

    Attributes
    ----------
    sources : tuple of str
        Sources whose perturbations are summed, "network" or "network@variant"; empty for `none`.
    scale : int
        Perceptibility that the sum is scaled to on every image, in 10⁻³; 0 if it is left as it is.
    control : str
        One of `CONTROLS`, made of all that; "" if this is no control.
    draw : int
        Number of the control's draw, counted from 1; 0 for the mean over all draws, which a table can
        show and no file holds.
    """

    sources: tuple[str, ...]
    scale: int = 0
    control: str = ""
    draw: int = 0

    def __str__(self) -> str:
        scale = f".p-{self.scale}" if self.scale else ""
        control = f".{self.control}" if self.control else ""
        return ("+".join(self.sources) or "none") + scale + control + (f"-{self.draw}" if self.draw else "")

    @property
    def is_mean(self) -> bool:
        """Whether this is the mean over the draws of a control."""
        return bool(self.control) and not self.draw


def parse(name: str) -> Recipe:
    """Recipe of a perturbation's name, e.g. ``fr-zf-07+fr-vgg-07.p-4.permuted-1``.

    Raises
    ------
    ValueError
        If the name is not well formed or names a source twice.
    """
    if name == "none":
        return Recipe(())
    found = re.fullmatch(RECIPE_PATTERN, name)
    sources = tuple(found["sum"].split("+")) if found else ()
    if not found or "none" in sources:
        raise ValueError(
            f"{name!r} is not the name of a perturbation; write none, network, network@variant, a sum a+b, any of them "
            f"scaled to a perceptibility of 4 · 10⁻³, a.p-4, or a control ({', '.join(CONTROLS)}) of any, a.permuted-1"
        )
    if len(set(sources)) < len(sources):
        raise ValueError(f"{name!r} adds the same perturbation twice; name each source once")
    return Recipe(sources, int(found["scale"] or 0), found["control"] or "", int(found["draw"] or 0))


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


def random_signs(r: NDArray, rng: np.random.Generator) -> NDArray:
    """Every value of r with a sign of its own, drawn anew: what is where stays, which way it pushes goes."""
    return np.where(rng.random(r.shape) < 0.5, -r, r)


def gaussian(r: NDArray, rng: np.random.Generator) -> NDArray:
    """White Gaussian noise of the shape, the type and exactly the perceptibility of r."""
    return scale(rng.standard_normal(r.shape).astype(r.dtype), perceptibility(r))


def scale(r: NDArray, p: float) -> NDArray:
    """Multiple of r that has the perceptibility p; zero stays zero, for it has no direction."""
    present = perceptibility(r)
    return r * r.dtype.type(p / present if present else 0)


_DRAWN = {"permuted": permute, "signs": random_signs, "gaussian": gaussian}


def control(r: NDArray, kind: str, rng: np.random.Generator) -> NDArray:
    """A draw of the control `kind` of r, see `CONTROLS`."""
    return _DRAWN[kind](r, rng)


def perceptibility(r: NDArray) -> float:
    """p = sqrt(mean over pixels of ||r_k||^2), r_k the RGB vector scaled to [0, 1] (section 3.5.3)."""
    return float(np.sqrt(np.mean(np.sum((r.astype(np.float64) / 255) ** 2, axis=0))))


def check_pixels(pixels: str) -> None:
    """Raise ValueError if `pixels` is none of "float", "8-bit", "jpeg-1" ... "jpeg-100"."""
    if not re.fullmatch(PIXELS_PATTERN, pixels):
        raise ValueError(f"pixels {pixels!r} is unknown; choose from float, 8-bit, or jpeg-75 for a file of quality 75")


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
    file = io.BytesIO()
    picture = Image.fromarray(rounded.astype(np.uint8).transpose(1, 2, 0))
    picture.save(file, "JPEG", quality=int(pixels.removeprefix("jpeg-")), subsampling="4:2:0")
    return np.asarray(Image.open(file), np.float32).transpose(2, 0, 1).copy()
