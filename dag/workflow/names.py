"""Names of perturbations, which encode how a perturbation is made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

# How a perturbed image reaches a network: as it is, rounded, or as a JPEG file of a quality from 1 to 100.
PIXELS_PATTERN = r"float|8-bit|jpeg-(?:[1-9][0-9]?|100)"

# Controls: random fields that share a property of r but not its structure, in several draws.
CONTROLS = {
    "permuted": "rows and columns of the perturbation shuffled",
    "signs": "signs of the perturbation's values drawn anew",
    "gaussian": "Gaussian noise of the perturbation's perceptibility",
}

# Defences of `dag.networks.defences`, with a description of their effect in terms of their arguments.  A source needs
# a gradient and determinism.
DEFENCES = {
    "rounding": "rounded to whole grey levels",
    "jpeg": "written as a JPEG file of quality {quality}",
    "blur": "blurred by a Gaussian with sigma {sigma} pixels",
    "noise": "with Gaussian noise of {sigma} grey levels",
    "resizing": "resized by a factor drawn from {least} to {most}",
}
DEFENDED_SOURCES = ("blur",)

# Objectives on the objectness of proposals, and the column that each wants: no object, or one everywhere.
OBJECTNESS = {"vanishing": 0, "fabrication": 1}

# Images of an image set, from the first, in which adversarial examples are planted.
PLANTED = 2

# The attack of a source made again, `x.drawn-2`, with other adversarial labels and another random start; the source
# itself is the first draw.
DRAWN = "drawn"

_NAME = r"[a-z0-9][a-z0-9-]*"

_CONTROL = "|".join(CONTROLS)

SOURCE_PATTERN = rf"{_NAME}(?:@{_NAME})?"

REPEATED_PATTERN = rf"{SOURCE_PATTERN}(?:\.{DRAWN}-[2-9])?"

SUM_PATTERN = rf"{SOURCE_PATTERN}(?:\+{SOURCE_PATTERN})*"

SCALED_PATTERN = rf"{SUM_PATTERN}(?:\.p-[1-9][0-9]*)?"

DRAWN_PATTERN = rf"{SCALED_PATTERN}(?:\.(?:{_CONTROL})-[1-9][0-9]*)?"

NAME_PATTERN = (
    rf"(?P<sum>{SUM_PATTERN})(?:\.p-(?P<scale>[1-9][0-9]*))?"
    rf"(?:\.(?P<control>{_CONTROL}|{DRAWN})(?:-(?P<draw>[1-9][0-9]*))?)?"
)


@dataclass(frozen=True)
class PerturbationName:
    """How a perturbation is made; `str(recipe)` is its name.

    Attributes
    ----------
    sources : tuple of str
        Sources whose perturbations are summed, "network" or "network@variant"; empty for `none`.
    scale : int
        Perceptibility that the sum is scaled to on every image, in 10⁻³; 0 if it is left as it is.
    control : str
        One of `CONTROLS`, applied last, or `DRAWN`; "" for neither.
    draw : int
        Number of the draw, counted from 1; 0 for the mean over all draws, which a table can
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


def parse(name: str) -> PerturbationName:
    """PerturbationName of a perturbation's name, e.g. ``fr-zf-07+fr-vgg-07.p-4.permuted-1``.

    Raises
    ------
    ValueError
        If the name is not well formed or names a source twice.
    """
    if name == "none":
        return PerturbationName(())
    found = re.fullmatch(NAME_PATTERN, name)
    sources = tuple(found["sum"].split("+")) if found else ()
    if not found or "none" in sources:
        raise ValueError(
            f"{name!r} is not the name of a perturbation; write none, network, network@variant, a sum a+b, any of them "
            f"scaled to a perceptibility of 4 · 10⁻³, a.p-4, or a control ({', '.join(CONTROLS)}) of any, a.permuted-1"
        )
    if len(set(sources)) < len(sources):
        raise ValueError(f"{name!r} adds the same perturbation twice; name each source once")
    return PerturbationName(sources, int(found["scale"] or 0), found["control"] or "", int(found["draw"] or 0))


def check_pixels(pixels: str) -> None:
    """Raise ValueError if `pixels` is none of "float", "8-bit", "jpeg-1" ... "jpeg-100"."""
    if not re.fullmatch(PIXELS_PATTERN, pixels):
        raise ValueError(f"pixels {pixels!r} is unknown; choose from float, 8-bit, or jpeg-75 for a file of quality 75")


def stage_iterations(settings: dict) -> list[int]:
    """Iterations of every stage of an attack; they add up to those of the attack."""
    ends, share = [0], 0.0
    for _, more in settings["stages"]:
        share += more
        ends.append(round(share * settings["iterations"]))
    return [end - begin for begin, end in pairwise(ends)]
