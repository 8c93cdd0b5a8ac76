"""Display names of perturbations, pixels and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dag.workflow.names import check_pixels, parse

if TYPE_CHECKING:  # jobs are planned without it
    import pandas as pd

CONTROL_WORDS = {"permuted": "permuted", "signs": "random signs", "gaussian": "Gaussian noise"}


def row_label(perturbation: str, labels: Mapping[str, str], symbols: Mapping[str, str]) -> str:
    """Display name of a perturbation: "none", "FR-ZF-07 (r1)", "r1 + r3 (permuted)".

    A source without a symbol is shown by its label.  The variant of the attack is in the
    brackets, or, if summands differ, after each of them: "r1@algorithm-1 + r5".

    Raises
    ------
    ValueError
        If the name is malformed or a source has no label.
    """
    if perturbation == "none":
        return "none"
    recipe = parse(perturbation)
    networks, variants = zip(*(source.partition("@")[::2] for source in recipe.sources), strict=True)
    for network in networks:
        if network not in labels:
            raise ValueError(f"perturbation {perturbation!r} names network {network!r}, which has no label")
    changes = [
        f"p = {recipe.scale} · 10⁻³" if recipe.scale else "",
        f"{CONTROL_WORDS[recipe.control]} {recipe.draw or ''}".rstrip() if recipe.control else "",
    ]
    if len(networks) == 1:
        text, notes = labels[networks[0]], [symbols.get(networks[0], ""), variants[0], *changes]
    else:
        shared = variants[0] if len(set(variants)) == 1 else ""
        summands = [
            symbols.get(network, labels[network]) + (f"@{variant}" if variant and not shared else "")
            for network, variant in zip(networks, variants, strict=True)
        ]
        text, notes = " + ".join(summands), [shared, *changes]
    notes = ", ".join(note for note in notes if note)
    return f"{text} ({notes})" if notes else text


def pixel_words(pixels: str) -> str:
    """Display name of the kind of pixels that the victims see."""
    check_pixels(pixels)
    known = {"float": "float pixels, not rounded", "8-bit": "pixels rounded to 8 bits"}
    return known.get(pixels) or f"images saved as JPEG files of quality {pixels.removeprefix('jpeg-')}"


def images_of(image_set: str, count: int, missing: str) -> str:
    """Number of images behind a score, and the ids of missing ones."""
    ids = missing.split()
    of = f" of {image_set}" if image_set else ""
    return f"{count} of {count + len(ids)} images{of}, missing: {listed(ids)}" if ids else f"{count} images{of}"


# Shown with all images and scores of image sets without annotations.
UNANNOTATED = "no truth is annotated; what counts as true is each network's own prediction on the clean image"


def truth_words(victim: Mapping) -> str:
    """Reference of a victim's scores, unless it is the complete annotation; see `dag.evaluate.score`."""
    if victim.get("truth") == "clean":
        return UNANNOTATED
    what = "pixels" if victim["task"] == "segmentation" else "objects"
    ignored = [f"{name} ({count})" for name, count in victim.get("ignored", {}).items()]
    return f"{what} of classes that the network does not know do not count: {', '.join(ignored)}" if ignored else ""


def truths_of(frame: pd.DataFrame) -> list[str]:
    """`truth_words` of all columns of a table, as sentences."""
    if "truth" not in frame:
        return []
    labels = frame[frame.truth.fillna("") != ""].groupby("truth", sort=False).column_label.unique()
    return [f"{', '.join(names)}: {text}." for text, names in labels.items()]


def listed(ids: Sequence[str], shown: int = 8) -> str:
    """The first ids, and the number of the others."""
    rest = f" and {len(ids) - shown} more (all in the CSV file)" if len(ids) > shown else ""
    return ", ".join(ids[:shown]) + rest
