"""Miniature FCN (Long et al., 2015): FCN-Alex with one score layer, FCN-VGG with a skip layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dag.networks.interface import Segmenter
from dag.networks.mini import bodies
from dag.networks.mini.bodies import convolution


class FCN(Segmenter):
    """Score layers on the feature maps of a body, bilinear upsampling.

    With `skip`, the scores of the shallow map (stride 4) are added to those of the deep one
    (stride 8) before upsampling, as FCN-8s adds those of pool3 and pool4 (Long et al., 2015).
    """

    def __init__(self, trunk: bodies.Body, labels: tuple[int, ...], skip: bool, width: int):
        super().__init__()
        self.labels = tuple(labels)
        self.trunk = trunk
        shallow, deep = trunk.widths
        self.head = nn.Sequential(convolution(deep, width, 3), convolution(width, width, 1))
        self.score = nn.Conv2d(width, len(labels), 1)
        self.skip = nn.Conv2d(shallow, len(labels), 1) if skip else None
        self.stride = 4 if skip else trunk.stride

    def body(self, images: Tensor) -> Tensor:
        shallow, deep = self.trunk(images)
        scores = self.score(self.head(deep))
        if self.skip is None:
            return scores
        return enlarge(scores, self.trunk.stride // 4, shallow.shape[-2:]) + self.skip(shallow)

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return enlarge(scores, self.stride, size)


def enlarge(maps: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of maps (B, C, h, w) by an integer `factor`, cropped to `size` = (H, W).

    The factor does not depend on the image size, so cells have the same centres in all images.
    """
    if factor == 1:
        return maps
    height, width = size
    whole = F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
    return whole[:, :, :height, :width]


def fcn(body: str, labels: tuple[int, ...], skip: bool = False, width: int = 80) -> FCN:
    """Miniature FCN.

    Parameters
    ----------
    body : str
        Name of the body, see `dag.networks.mini.bodies`.
    labels : sequence of int
        VOC class ids of the score columns, background (0) included.
    skip : bool
        Add the scores of the shallow map.
    width : int
        Channels of the two layers before the scores.
    """
    return FCN(bodies.body(body), labels, skip, width)
