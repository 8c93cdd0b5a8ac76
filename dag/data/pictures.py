"""Images and perturbations in exchange formats: 8-bit PNG and JPEG, NumPy arrays."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dag.data.image_sets import ImageError

# Tolerated excess of a perturbed image over 0..255 in grey levels: rounding of other programs.
BEYOND = 1e-3


def perturbation_file(folder: str | Path, image_id: str) -> Path:
    """File of a perturbation of an image: ID.npy, or ID.png, the perturbed image, if there is no other."""
    array = Path(folder, f"{image_id}.npy")
    return array if array.is_file() else Path(folder, f"{image_id}.png")


def check_perturbations(folder: str | Path, ids: Iterable[str]) -> None:
    """Refuse a folder that lacks the perturbation of an image; raises `ImageError` with the first of them."""
    for image_id in ids:
        if not perturbation_file(folder, image_id).is_file():
            raise ImageError(f"{folder}: there is neither {image_id}.npy nor {image_id}.png")


def read_perturbation(folder: str | Path, image_id: str, image: NDArray, unclipped: bool = False) -> NDArray:
    """Read an imported perturbation of an image.

    Parameters
    ----------
    folder : str or Path
        Holds ID.npy, the perturbation r (3, H, W) in grey levels, or ID.png, the perturbed image in RGB of 8 bits.
    image_id : str
    image : ndarray, float32 (3, H, W)
        In 0..255.
    unclipped : bool
        Allow image + r beyond 0..255.

    Returns
    -------
    ndarray, float32 (3, H, W)

    Raises
    ------
    ImageError
        If there is no such file, it cannot be read, has another shape or values that are not finite, or leads
        out of 0..255.
    """
    check_perturbations(folder, [image_id])
    path = perturbation_file(folder, image_id)
    try:
        found = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _pixels(path)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise ImageError(f"{path}: cannot be read ({str(error).strip().partition(chr(10))[0]})") from error
    if found.shape != image.shape or found.dtype.kind not in "fiu":
        raise ImageError(
            f"{path}: {found.dtype} of the shape {found.shape}, the image has {image.shape}; write numbers (3, H, W), "
            "in the frame of the image"
        )
    if path.suffix == ".png":
        return found - image
    r = found.astype(np.float32)
    if not np.isfinite(r).all():
        raise ImageError(f"{path}: has values that are not finite")
    lowest, highest = float((image + r).min()), float((image + r).max())
    if not unclipped and (lowest < -BEYOND or highest > 255 + BEYOND):
        raise ImageError(
            f"{path}: image + r reaches from {lowest:.6g} to {highest:.6g}, beyond 0..255; give r in grey levels of an "
            "image, or say `unclipped: true` if victims are to see it truncated"
        )
    return r


def _pixels(path: Path) -> NDArray:
    with Image.open(path) as picture:
        if picture.mode != "RGB":
            raise ValueError(f"its mode is {picture.mode}; write RGB of 8 bits")
        return np.asarray(picture, np.float32).transpose(2, 0, 1)


def through_jpeg(image: NDArray, quality: int) -> NDArray:
    """An image (3, H, W) of whole grey levels after JPEG compression, float32.

    Chroma is subsampled by 2, as usual.
    """
    file = io.BytesIO()
    picture = Image.fromarray(image.astype(np.uint8).transpose(1, 2, 0))
    picture.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file), np.float32).transpose(2, 0, 1).copy()
