"""Label maps in image files: grey ones hold ids, coloured ones and palettes are read by their colours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dag.data.classes import VOID, ClassList
from dag.data.image_files import opened

Colour = tuple[int, int, int]


def read_mask(
    path: Path, image: Path, classes: ClassList, colours: Mapping[Colour, int] | None = None
) -> NDArray[np.uint8]:
    """The class of every pixel, (H, W): positions in the list of classes, 255 = void.

    Parameters
    ----------
    path, image : Path
        The label map, and the image whose size it must have.
    classes : ClassList
        Grey files hold its `values`, or those that are void.
    colours : mapping of colour to int, optional
        Class of each colour in coloured files and palettes; default: from the list.  Palettes are read by colour,
        because image editors renumber them; if no colour is known, the indices are read like a grey file.

    Raises
    ------
    ValueError
        If the file is missing or damaged, has a value or a colour of no class, or differs in size from the image.
    """
    colours = colours_of(classes) if colours is None else colours
    with opened(path) as mask, opened(image, decode=False) as picture:
        if mask.size != picture.size:
            raise ValueError(f"{path}: label map is {_size(mask)} and its image {_size(picture)}; use matching files")
        if mask.mode == "P" and colours:
            return _of_palette(path, mask, colours)
        if mask.mode in ("L", "P"):
            return _of_values(path, np.asarray(mask), classes)
        if mask.mode == "RGB" and colours:
            return _of_colours(path, np.asarray(mask), colours)
        raise ValueError(
            f"{path}: pixels are colours ({mask.mode}), not class ids; use grey PNG files of 8 bits with class ids, "
            "or give the classes their colours"
        )


def colours_of(classes: ClassList) -> dict[Colour, int]:
    """{colour: class} of a list of classes; empty if it has no colours."""
    if not classes.colours:
        return {}
    void = {_rgb(colour): VOID for colour in classes.void if isinstance(colour, str)}
    return void | {_rgb(colour): label for label, colour in enumerate(classes.colours)}


def _rgb(colour: str) -> Colour:
    return tuple(bytes.fromhex(colour[1:]))


def _of_values(path: Path, values: NDArray, classes: ClassList) -> NDArray[np.uint8]:
    table = np.full(256, -1)
    table[[value for value in classes.void if not isinstance(value, str)]] = VOID
    for label, value in enumerate(classes.values):
        if value < len(table):
            table[value] = label
    labels = table[values]
    if (unknown := values[labels < 0]).size:
        raise ValueError(
            f"{path}: label {unknown[0]} is neither a class ({_numbers(classes.values)}) nor void "
            f"({', '.join(map(str, classes.void)) or 'none is'}); correct the file or the list of classes"
        )
    return labels.astype(np.uint8)


def _numbers(values: tuple[int, ...]) -> str:
    if values == tuple(range(values[0], values[0] + len(values))):
        return f"{values[0]}..{values[-1]}"
    return ", ".join(map(str, values[:9])) + (" ..." if len(values) > 9 else "")


def _of_palette(path: Path, mask: Image.Image, colours: Mapping[Colour, int]) -> NDArray[np.uint8]:
    """Indices that do not occur are ignored."""
    palette = np.reshape(mask.getpalette("RGB"), (-1, 3))
    ids = np.zeros(256, np.uint8)
    for _, index in mask.getcolors():
        colour = tuple(palette[index].tolist()) if index < len(palette) else "none"
        if colour not in colours:
            raise ValueError(
                f"{path}: palette index {index} has the colour {colour}, which no class has; "
                "use the palette of the classes, or a grey PNG file of class ids"
            )
        ids[index] = colours[colour]
    return ids[np.asarray(mask)]


def _of_colours(path: Path, pixels: NDArray, colours: Mapping[Colour, int]) -> NDArray[np.uint8]:
    codes = pixels.astype(np.int64) @ [1 << 16, 1 << 8, 1]
    found, places = np.unique(codes, return_inverse=True)
    known = {(red << 16) + (green << 8) + blue: label for (red, green, blue), label in colours.items()}
    for code in found.tolist():
        if code not in known:
            raise ValueError(
                f"{path}: the colour {(code >> 16, code >> 8 & 255, code & 255)} is that of no class; "
                "correct the file or the colours of the classes"
            )
    return np.array([known[code] for code in found.tolist()], np.uint8)[places].reshape(codes.shape)


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"
