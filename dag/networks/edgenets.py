"""ESPNetv2 and DiCENet for segmentation, with the layer names of the published weight files.

Mehta et al., "ESPNetv2: A Light-weight, Power Efficient, and General Purpose Convolutional Neural Network", CVPR 2019;
Mehta et al., "DiCENet: Dimension-wise Convolutions for Efficient Networks", TPAMI 2020.  Both have the same decoder:
four efficient pyramid pools, from the coarsest map up, combined with projections of the encoder's maps.  The image is
resized to the square input size used in training, and the scores are resized back with aligned corners.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import ceil, gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dag.networks.interface import Segmenter

# ImageNet's mean and standard deviation, RGB in 0..1.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Channels of the maps at stride 2, 4, 8 and 16, by width multiplier.
ESPNETV2 = {0.5: (16, 32, 64, 128), 1.0: (32, 64, 128, 256), 1.5: (32, 96, 192, 384), 2.0: (32, 128, 256, 512)}
DICENET = {
    0.2: (16, 16, 32, 64),
    0.5: (24, 24, 48, 96),
    0.75: (24, 24, 86, 172),
    1.0: (24, 24, 116, 232),
    1.25: (24, 24, 144, 288),
    1.75: (24, 24, 210, 420),
}
DECODER = (64, 48, 32)
SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
BRANCHES = 4


def espnetv2(width: float, size: int, labels: Sequence[int] = tuple(range(21))) -> Segmenter:
    """ESPNetv2.

    Parameters
    ----------
    width : float
        Width multiplier: 0.5, 1.0, 1.5 or 2.0.
    size : int
        Height and width of the network's input, in pixels.
    labels : sequence of int
        VOC class ids of the score columns.

    Raises
    ------
    ValueError
        If the width is unknown, or `size` is below 32 or not a multiple of 16.
    """
    channels = _channels(ESPNETV2, width, size)
    names = [f"bu_dec_l{level}" for level in (1, 2, 3, 4)]
    names += [f"merge_enc_dec_l{level}" for level in (2, 3, 4)] + [f"bu_br_l{level}" for level in (2, 3, 4)]
    return _EdgeNet(_EspEncoder(channels), channels, names, size, labels)


def dicenet(width: float, size: int, labels: Sequence[int] = tuple(range(21))) -> Segmenter:
    """DiCENet.

    Parameters
    ----------
    width : float
        Width multiplier: 0.2, 0.5, 0.75, 1.0, 1.25 or 1.75.
    size, labels
        As for `espnetv2`.

    Raises
    ------
    ValueError
        If the width is unknown, or `size` is below 32 or not a multiple of 16.
    """
    channels = _channels(DICENET, width, size)
    sides = ("16x16", "32x32", "64x64", "128x128")
    names = [f"eff_pool_{side}" for side in sides]
    names += [f"proj_enc_{side}" for side in sides[1:]] + [f"bu_br_{side}" for side in sides[1:]]
    return _EdgeNet(_DiceEncoder(channels), channels, names, size, labels)


class _EdgeNet(Segmenter):
    """Encoder `base_net` and the decoder; `names` are those of its pools, projections and activations."""

    channels_last = True

    def __init__(self, encoder: nn.Module, channels: Sequence[int], names: list[str], size: int, labels: Sequence[int]):
        super().__init__()
        self.labels, self.size = tuple(labels), size
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", 255 * torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)
        self.base_net = encoder
        self.pools, self.projections, self.activations = names[:4], names[4:7], names[7:]
        inner = min(len(self.labels) // 2, 16)
        entered = (channels[3], *DECODER)
        for name, before, after in zip(self.pools, entered, (*DECODER, len(self.labels)), strict=True):
            self.add_module(name, _PyramidPool(before, inner, after, last=name == self.pools[-1]))
        for name, before, after in zip(self.projections, channels[2::-1], DECODER, strict=True):
            self.add_module(name, _Projection(before, after))
        for name, count in zip(self.activations, DECODER, strict=True):
            self.add_module(name, nn.Sequential(nn.BatchNorm2d(count), nn.PReLU(count)))

    def body(self, images: Tensor) -> Tensor:
        """Scores (B, C, size / 2, size / 2)."""
        images = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)
        *skips, deepest = self.base_net((images - self.mean) / self.deviation)
        x = self._modules[self.pools[0]](deepest)
        stages = zip(self.projections, self.activations, self.pools[1:], reversed(skips), strict=True)
        for projection, activation, pool, skip in stages:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = self._modules[activation](self._modules[projection](skip) + x)
            x = self._modules[pool](x)
        return x

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        framed = F.interpolate(scores, (self.size, self.size), mode="bilinear", align_corners=True)
        return F.interpolate(framed, size, mode="bilinear", align_corners=True)


# Blocks of the decoder


class _Layers(nn.Module):
    """A sequence of layers as an attribute with the name used in the weight files."""

    def __init__(self, name: str, *layers: nn.Module):
        super().__init__()
        self.name = name
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return self._modules[self.name](x)


def _convolved(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> _Layers:
    """Convolution, batch normalisation, PReLU: `cbr`."""
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return _Layers("cbr", convolution, nn.BatchNorm2d(after), nn.PReLU(after))


def _normed(count: int) -> _Layers:
    """Batch normalisation and PReLU: `br`."""
    return _Layers("br", nn.BatchNorm2d(count), nn.PReLU(count))


class _PyramidPool(nn.Module):
    """Efficient pyramid pool: depthwise convolutions of the map at five scales, merged (DiCENet, section 4.3)."""

    def __init__(self, before: int, inner: int, after: int, last: bool):
        super().__init__()
        count = inner * len(SCALES)
        self.projection_layer = _convolved(before, inner, 1)
        self.stages = nn.ModuleList(nn.Conv2d(inner, inner, 3, 1, 1, groups=inner, bias=False) for _ in SCALES)
        self.merge_layer = nn.Sequential(
            _normed(count),
            nn.ChannelShuffle(len(SCALES)),
            _convolved(count, inner, 3, groups=inner),
            nn.Conv2d(inner, after, 1, bias=last),
        )
        self.br = nn.Identity() if last else _normed(after)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection_layer(x)
        size, found = tuple(x.shape[-2:]), []
        for scale, stage in zip(SCALES, self.stages, strict=True):
            scaled = tuple(max(ceil(side * scale), 5) for side in size)
            found.append(_fitted(stage(_fitted(x, scaled, scale > 1)), size, scale < 1))
        return self.br(self.merge_layer(torch.cat(found, 1)))


def _fitted(x: Tensor, size: tuple[int, int], grows: bool) -> Tensor:
    """Resize maps: bilinear interpolation to enlarge, adaptive average pooling to shrink."""
    if tuple(x.shape[-2:]) == size:
        return x
    if grows:
        return F.interpolate(x, size, mode="bilinear", align_corners=True)
    return F.adaptive_avg_pool2d(x, size)


class _Projection(nn.Module):
    """Grouped convolution with channel weights from global average pooling (efficient point-wise convolution)."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.wt_layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(before, after, 1, bias=False), nn.Sigmoid())
        self.expansion_layer = _convolved(before, after, 3, groups=gcd(before, after))

    def forward(self, x: Tensor) -> Tensor:
        return self.expansion_layer(x) * self.wt_layer(x)


# ESPNetv2


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _esp_layer(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True):
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    activation = {"act": nn.PReLU(after)} if act else {}
    return _named(conv=convolution, bn=nn.BatchNorm2d(after), **activation)


class _Eesp(nn.Module):
    """Extremely efficient spatial pyramid: reduction, cumulative sums of dilated depthwise branches, expansion."""

    def __init__(self, before: int, after: int, reach: int, stride: int = 1):
        super().__init__()
        part = after // BRANCHES
        kernels = sorted(size if size <= reach else 3 for size in range(3, 3 + 2 * BRANCHES, 2))
        self.stride = stride
        self.proj_1x1 = _esp_layer(before, part, 1, groups=BRANCHES)
        self.spp_dw = nn.ModuleList(
            _named(conv=nn.Conv2d(part, part, 3, stride, size // 2, size // 2, groups=part, bias=False))
            for size in kernels
        )
        self.br_after_cat = _named(bn=nn.BatchNorm2d(after), act=nn.PReLU(after))
        self.conv_1x1_exp = _esp_layer(after, after, 1, groups=BRANCHES, act=False)
        self.module_act = nn.PReLU(after)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.proj_1x1(x)
        sums = [self.spp_dw[0](reduced)]
        for branch in self.spp_dw[1:]:
            sums.append(branch(reduced) + sums[-1])
        expanded = self.conv_1x1_exp(self.br_after_cat(torch.cat(sums, 1)))
        # with a stride, the enclosing block applies the activation
        return expanded if self.stride > 1 else self.module_act(expanded + x)


class _Down(nn.Module):
    """Halve the resolution: parallel average pooling and EESP, plus features of the downsampled image."""

    def __init__(self, before: int, after: int, reach: int):
        super().__init__()
        self.eesp = _Eesp(before, after - before, reach, stride=2)
        self.inp_reinf = nn.Sequential(_esp_layer(3, 3, 3), _esp_layer(3, after, 1, act=False))
        self.act = nn.PReLU(after)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        joined = torch.cat([_halved(x), self.eesp(x)], 1)
        while image.shape[2] > joined.shape[2]:
            image = _halved(image)
        return self.act(joined + self.inp_reinf(image))


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 2, 1)


class _EspEncoder(nn.Module):
    def __init__(self, channels: Sequence[int]):
        super().__init__()
        first, second, third, fourth = channels
        self.level1 = _esp_layer(3, first, 3, stride=2)
        self.level2_0 = _Down(first, second, 13)
        self.level3_0 = _Down(second, third, 11)
        self.level3 = nn.Sequential(*(_Eesp(third, third, 9) for _ in range(3)))
        self.level4_0 = _Down(third, fourth, 9)
        self.level4 = nn.Sequential(*(_Eesp(fourth, fourth, 7) for _ in range(7)))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps at stride 2, 4, 8 and 16."""
        first = self.level1(image)
        second = self.level2_0(first, image)
        third = self.level3(self.level3_0(second, image))
        return [first, second, third, self.level4(self.level4_0(third, image))]


# DiCENet


class _Dice(nn.Module):
    """Dimension-wise convolution over channels, rows and columns, and their fusion (DiCENet, section 3).

    Rows and columns are convolved at size `side`, that of the map for ImageNet's 224-pixel images.
    """

    def __init__(self, count: int, side: int):
        super().__init__()
        self.side = side
        self.conv_channel = nn.Conv2d(count, count, 3, 1, 1, groups=count, bias=False)
        self.conv_width = nn.Conv2d(side, side, 3, 1, 1, groups=side, bias=False)
        self.conv_height = nn.Conv2d(side, side, 3, 1, 1, groups=side, bias=False)
        self.br_act = _normed(3 * count)
        self.weight_avg_layer = _convolved(3 * count, count, 1, groups=count)
        self.proj_layer = _convolved(count, count, 3, groups=count)
        self.linear_comb_layer = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(count, count // 4, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(count // 4, count, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        size = height, width = tuple(x.shape[-2:])
        rows = _fitted(x, (self.side, width), height < self.side)
        rows = self.conv_height(rows.transpose(1, 2)).transpose(1, 2)
        columns = _fitted(x, (height, self.side), width < self.side)
        columns = self.conv_width(columns.transpose(1, 3)).transpose(1, 3)
        found = (
            self.conv_channel(x),
            _fitted(rows, size, height > self.side),
            _fitted(columns, size, width > self.side),
        )
        mixed = self.weight_avg_layer(F.channel_shuffle(self.br_act(torch.cat(found, 1)), 3))
        return self.proj_layer(mixed) * self.linear_comb_layer(mixed)


class _StridedDice(nn.Module):
    """Halve the resolution and double the channels."""

    def __init__(self, count: int, side: int):
        super().__init__()
        self.left_layer = nn.Sequential(_convolved(count, count, 3, 2, groups=count), _convolved(count, count, 1))
        self.right_layer = nn.Sequential(nn.AvgPool2d(3, 2, 1), _Dice(count, side), _convolved(count, count, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.channel_shuffle(torch.cat([self.left_layer(x), self.right_layer(x)], 1), 2)


class _ShuffledDice(nn.Module):
    """Convolve half of the channels; the others pass unchanged."""

    def __init__(self, before: int, after: int, side: int):
        super().__init__()
        self.kept = round(0.5 * before)
        changed = after - self.kept
        self.layer_right = nn.Sequential(_convolved(before - self.kept, changed, 1), _Dice(changed, side))

    def forward(self, x: Tensor) -> Tensor:
        right = self.layer_right(x[:, self.kept :])
        return F.channel_shuffle(torch.cat([x[:, : self.kept], right], 1), 2)


class _DiceEncoder(nn.Module):
    def __init__(self, channels: Sequence[int]):
        super().__init__()
        first, second, third, fourth = channels
        self.level1 = _convolved(3, first, 3, 2)
        self.level2 = nn.MaxPool2d(3, 2, 1)
        self.level3 = _dice_level(second, third, 3, 28)
        self.level4 = _dice_level(third, fourth, 7, 14)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps at stride 2, 4, 8 and 16."""
        first = self.level1(image)
        second = self.level2(first)
        third = self.level3(second)
        return [first, second, third, self.level4(third)]


def _dice_level(before: int, after: int, repeats: int, side: int) -> nn.Sequential:
    blocks = [_ShuffledDice(2 * before if not number else after, after, side) for number in range(repeats)]
    return nn.Sequential(_StridedDice(before, side), *blocks)


def _channels(known: dict[float, tuple[int, ...]], width: float, size: int) -> tuple[int, ...]:
    if width not in known:
        raise ValueError(f"width {width} is unknown; choose {', '.join(map(str, known))}")
    if size % 16 or size < 32:
        raise ValueError(f"size {size} is no multiple of 16; the published networks have 256 or 384")
    return known[width]
