"""Images as the files that people share: 8-bit, PNG or JPEG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def through_jpeg(image: NDArray, quality: int) -> NDArray:
    """An image (3, H, W) of whole grey levels as it comes out of a JPEG file, float32.

    Colours are stored at half the resolution, as is common.
    """
    file = io.BytesIO()
    picture = Image.fromarray(image.astype(np.uint8).transpose(1, 2, 0))
    picture.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file), np.float32).transpose(2, 0, 1).copy()
