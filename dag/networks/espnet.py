"""ESPNet with its decoder, with the layer names of the published weight files.

Mehta et al., "ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic Segmentation", ECCV 2018:
section 3 (module) and Figure 4d (network).  The encoder halves the resolution three times.  Levels 2 and 3 concatenate
the input and the output of their modules, levels 1 and 2 also the downsampled image; the decoder upsamples the class
scores to the size of the image in three steps.

Details that the paper does not specify follow from the published file: images are BGR, minus `MEAN`, divided by
`DEVIATION` and by 255, and batch normalisation adds 10^-3 to the variance.  Only with these, and this order of the
concatenated maps, are the stored statistics of every layer's input nearly those of CamVid's test images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dag.networks.interface import Segmenter

# CamVid's 367 training images, BGR in 0..255, as in other loaders of CamVid.  With the statistics of the 39 test
# images at hand the score is 0.6 points lower, with those of ImageNet 43.
MEAN, DEVIATION = (110.33, 108.41, 105.03), (72.13, 72.69, 69.90)
# Channels that enter the decoder from levels 1 and 2: 16 and 2 x 64, plus 3 of the image each.
FIRST, SECOND = 19, 131
DILATIONS = (1, 2, 4, 8, 16)
EPSILON = 1e-3


def espnet(
    p: int = 2,
    q: int = 8,
    size: Sequence[int] = (360, 480),
    labels: Sequence[int | None] = (*range(11), None),
) -> Segmenter:
    """ESPNet for images of CamVid.

    Parameters
    ----------
    p, q : int
        Number of modules in levels 2 and 3, without the strided one.
    size : (int, int)
        Height and width in pixels to which images are resized.
    labels : sequence of int or None
        Class id of each score column of the weight file.  A column labelled None, that of unlabelled pixels, is
        dropped.

    Raises
    ------
    ValueError
        If `size` is not a pair of positive multiples of 8.
    """
    if len(size) != 2 or any(side < 8 or side % 8 for side in size):
        raise ValueError(f"size {tuple(size)} is not a height and a width that are multiples of 8")
    return _EspNet(p, q, tuple(size), tuple(labels))


class _EspNet(Segmenter):
    def __init__(self, p: int, q: int, size: tuple[int, int], labels: tuple[int | None, ...]):
        super().__init__()
        self.size, count = size, len(labels)
        self.labels = tuple(label for label in labels if label is not None)
        self.columns = [column for column, label in enumerate(labels) if label is not None]
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", 255 * torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)
        self.encoder = _Encoder(p, q, count)
        self.br = nn.BatchNorm2d(count, EPSILON)
        self.up_l3 = nn.Sequential(_doubled(count))
        self.level3_C = _convolution(SECOND, count, 1)
        self.combine_l2_l3 = nn.Sequential(_normed(2 * count), _Esp(2 * count, count, residual=False))
        self.up_l2 = nn.Sequential(_doubled(count), _normed(count))
        self.conv = _convolved(FIRST + count, count)
        self.classifier = _doubled(count)

    def body(self, images: Tensor) -> Tensor:
        """Scores (B, C, height, width) at the size of the network's input."""
        images = F.interpolate(images, self.size, mode="bilinear", align_corners=False)
        first, second, x = self.encoder((images.flip(1) - self.mean) / self.deviation)
        x = torch.cat([self.level3_C(second), self.up_l3(self.br(x))], 1)
        x = torch.cat([self.up_l2(self.combine_l2_l3(x)), first], 1)
        return self.classifier(self.conv(x))[:, self.columns]

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(scores, size, mode="bilinear", align_corners=False)


class _Encoder(nn.Module):
    def __init__(self, p: int, q: int, count: int):
        super().__init__()
        self.level1 = _convolved(3, 16, stride=2)
        self.b1 = _normed(FIRST)
        self.level2_0 = _HalvingEsp(FIRST, 64)
        self.level2 = nn.Sequential(*(_Esp(64, 64) for _ in range(p)))
        self.b2 = _normed(SECOND)
        self.level3_0 = _HalvingEsp(SECOND, 128)
        self.level3 = nn.Sequential(*(_Esp(128, 128) for _ in range(q)))
        self.b3 = _normed(256)
        self.classifier = _convolution(256, count, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (B, FIRST, h, w) and (B, SECOND, h / 2, w / 2) and class scores (B, C, h / 4, w / 4)."""
        half = F.avg_pool2d(image, 3, 2, 1)
        first = self.b1(torch.cat([self.level1(image), half], 1))
        entered = self.level2_0(first)
        second = self.b2(torch.cat([self.level2(entered), entered, F.avg_pool2d(half, 3, 2, 1)], 1))
        entered = self.level3_0(second)
        return first, second, self.classifier(self.b3(torch.cat([entered, self.level3(entered)], 1)))


class _Pyramid(nn.Module):
    """Reduction, convolutions of growing dilation, cumulative sums, concatenation (section 3, hierarchical fusion)."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1):
        super().__init__()
        part = after // len(DILATIONS)
        self.c1 = _convolution(before, part, kernel, stride)
        for dilation in DILATIONS:
            width = part if dilation > 1 else after - (len(DILATIONS) - 1) * part  # with the remainder of the division
            self.add_module(f"d{dilation}", _convolution(part, width, 3, dilation=dilation))

    def joined(self, x: Tensor) -> Tensor:
        reduced = self.c1(x)
        first, *others = (self._modules[f"d{dilation}"](reduced) for dilation in DILATIONS)
        return torch.cat([first, *accumulate(others)], 1)


class _Esp(_Pyramid):
    """Efficient spatial pyramid, with a skip connection if `residual`."""

    def __init__(self, before: int, after: int, residual: bool = True):
        super().__init__(before, after, 1)
        self.residual = residual
        self.bn = _normed(after)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x + self.joined(x) if self.residual else self.joined(x))


class _HalvingEsp(_Pyramid):
    """Efficient spatial pyramid with a strided first convolution."""

    def __init__(self, before: int, after: int):
        super().__init__(before, after, 3, stride=2)
        self.bn, self.act = nn.BatchNorm2d(after, EPSILON), nn.PReLU(after)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.joined(x)))


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _convolution(before: int, after: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return _named(conv=nn.Conv2d(before, after, kernel, stride, padding, dilation, bias=False))


def _normed(count: int) -> nn.Sequential:
    return _named(bn=nn.BatchNorm2d(count, EPSILON), act=nn.PReLU(count))


def _convolved(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict([*_convolution(before, after, 3, stride).named_children(), *_normed(after).named_children()])
    )


def _doubled(count: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(count, count, 2, 2, bias=False)
