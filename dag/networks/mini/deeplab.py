"""Miniature DeepLab: a body without its last downsampling, and parallel dilated score layers."""

from __future__ import annotations

from torch import Tensor, nn

from dag.networks.interface import Segmenter
from dag.networks.mini import bodies
from dag.networks.mini.fcn import enlarge


class DeepLab(Segmenter):
    """Sum of 3x3 score convolutions of several dilations (Chen et al., DeepLab v2: ASPP)."""

    def __init__(self, trunk: bodies.Body, labels: tuple[int, ...], dilations: tuple[int, ...]):
        super().__init__()
        self.labels = tuple(labels)
        self.trunk = trunk
        self.score = nn.ModuleList(
            nn.Conv2d(trunk.widths[1], len(labels), 3, padding=dilation, dilation=dilation) for dilation in dilations
        )

    def body(self, images: Tensor) -> Tensor:
        _, deep = self.trunk(images)
        return sum(score(deep) for score in self.score)

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return enlarge(scores, self.trunk.stride, size)


def deeplab(body: str, labels: tuple[int, ...], dilations: tuple[int, ...] = (2, 4, 6)) -> DeepLab:
    """Miniature DeepLab.

    Parameters
    ----------
    body : str
        Name of the body, see `dag.networks.mini.bodies`.
    labels : sequence of int
        VOC class ids of the score columns, background (0) included.
    dilations : sequence of int
        One score convolution each; the scores are added.
    """
    return DeepLab(bodies.body(body, dilated=True), labels, dilations)
