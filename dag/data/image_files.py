"""Image files: opened, measured, read, and found in a folder."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ENDINGS = (".jpg", ".jpeg", ".png")  # of image files, in upper or lower case

# Pillow warns of images with more than 89 million pixels and does not name them; `opened` refuses them by name.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def read_picture(path: str | Path) -> NDArray[np.float32]:
    """An image file, RGB (3, H, W) in [0, 255], with its pixels in the order in which they are stored.

    Raises
    ------
    ValueError
        If the file is missing or damaged, has more pixels than Pillow's limit, more than 8 bits a channel, or
        transparency.
    """
    with opened(Path(path)) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"{path}: its pixels have more than 8 bits ({image.mode}); save it with 8 bits a channel")
        if image.mode[-1] in "Aa" or "transparency" in image.info:
            raise ValueError(f"{path}: it has transparent pixels ({image.mode}); save it without alpha channel")
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1), dtype=np.float32)


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file, from its header.

    Raises
    ------
    ValueError
        If the file is missing or is no image.
    """
    with opened(Path(path), decode=False) as image:
        return image.height, image.width


def opened(path: Path, decode: bool = True) -> Image.Image:
    """An open image file; without `decode` only its header is read.  Raises `ValueError` if that is impossible."""
    image = None
    try:
        image = Image.open(path)
        if decode:
            image.load()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; check the image id or unpack the data again") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path}: too many pixels ({error}); use a smaller image") from error
    except Exception as error:  # Pillow raises errors of many types on damaged files
        if image is not None:
            image.close()
        raise ValueError(f"{path}: damaged image ({error}); unpack the data again") from error
    return image


def found(folder: str | Path, image_id: str, *endings: str) -> Path:
    """The image file of this name with any of the endings (default: `ENDINGS`); where it would be if there is none."""
    endings = [ending for lower in endings or ENDINGS for ending in (lower, lower.upper())]
    place = Path(folder, image_id + endings[0])
    if place.is_file():
        return place
    return next((path for path in (Path(folder, image_id + ending) for ending in endings) if path.is_file()), place)


def names(folder: str | Path) -> list[str]:
    """Names of the image files of a folder without their endings, sorted.

    Raises
    ------
    ValueError
        If there is no such folder, no image in it, or two of one name.
    """
    try:
        files = [path for path in Path(folder).iterdir() if path.suffix.lower() in ENDINGS and path.name[0] != "."]
    except OSError as error:
        raise ValueError(f"{folder}: no such folder of images; correct image_sets") from error
    stems = sorted(path.stem for path in files)
    twice = [stem for stem, following in pairwise(stems) if stem == following]
    if not stems:
        raise ValueError(f"{folder}: there is no .jpg, .jpeg or .png file in it; correct image_sets")
    if twice:
        raise ValueError(f"{folder}: two images are called {twice[0]} but for their endings; rename one")
    return stems
