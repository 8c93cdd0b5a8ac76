"""Layers of Caffe that differ from torch's, and the bodies VGG16 and ResNet with Caffe's layer names.

Modules with weights have the names of Caffe's layers, so that `dag.networks.caffe.caffemodel.load` finds their
blobs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Names of the residual blocks of the stages res2 to res5.
RESNET50 = ("abc", "abcd", "abcdef", "abc")
RESNET101 = ("abc", ("a", *(f"b{i}" for i in range(1, 4))), ("a", *(f"b{i}" for i in range(1, 23))), "abc")

VGG16_WIDTHS = {"conv1": 64, "conv2": 128, "conv3": 256, "conv4": 512, "conv5": 512}


def prepare(images: Tensor, mean: Tensor) -> Tensor:
    """Input of Caffe's networks from RGB images (B, 3, H, W): BGR minus the BGR `mean` (3, 1, 1)."""
    return images.flip(1) - mean


def max_pool(maps: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """Max pooling; Caffe rounds sizes up, so the last window may be only partly inside."""
    return F.max_pool2d(maps, kernel, stride, padding, ceil_mode=True)


def average_pool(maps: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """Average pooling; zeros of the padding count, positions beyond the padding do not."""
    return F.avg_pool2d(maps, kernel, stride, padding, ceil_mode=True, count_include_pad=True)


def lrn_across(maps: Tensor, size: int, alpha: float, beta: float) -> Tensor:
    """x * (1 + alpha / n * sum x^2)^-beta over n = `size` neighbouring channels."""
    return F.local_response_norm(maps, size, alpha, beta, k=1.0)


def lrn_within(maps: Tensor, size: int, alpha: float, beta: float) -> Tensor:
    """x * (1 + alpha / n^2 * sum x^2)^-beta over a window of n x n = `size` x `size` pixels (n odd)."""
    mean_square = F.avg_pool2d(maps.square(), size, 1, size // 2, count_include_pad=True)
    return maps * (1 + alpha * mean_square) ** -beta


def dropout(maps: Tensor, ratio: float, training: bool, scale_train: bool = True) -> Tensor:
    """Dropout; without `scale_train` the output is multiplied by 1 - `ratio` at test time.

    Training then sets values to 0 without scaling the others.
    """
    maps = F.dropout(maps, ratio, training)
    return maps if scale_train else maps * (1 - ratio)


def interp(maps: Tensor, shrink: int = 1, zoom: int = 1) -> Tensor:
    """DeepLab's Interp layer: bilinear resizing of maps (B, C, h, w) with aligned corners.

    `shrink` changes a size n to (n - 1) // shrink + 1, then `zoom` changes it to (n - 1) * zoom + 1.
    """
    size = [(length - 1) // shrink * zoom + 1 for length in maps.shape[-2:]]
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def crop(maps: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """Crop maps (B, C, h, w) to `size` = (H, W), beginning `offset` pixels from the top and from the left.

    Raises
    ------
    ValueError
        If the maps are too small; slicing alone would return less.
    """
    height, width = size
    if maps.shape[-2] < offset + height or maps.shape[-1] < offset + width:
        raise ValueError(
            f"maps of {maps.shape[-2]} x {maps.shape[-1]} cannot be cropped to {height} x {width} at offset {offset}; "
            "give larger images"
        )
    return maps[..., offset : offset + height, offset : offset + width]


def deconvolution(channels: int, kernel: int, stride: int) -> nn.ConvTranspose2d:
    """Deconvolution without bias, initialised as bilinear interpolation of each channel.

    The weight has the shape (C, C, k, k), as in Caffe's files.  Along one axis the bilinear kernel
    is 1 - |i - c| / f with f = (k + 1) // 2 and the centre c = f - 1 (odd k) or f - 1/2 (even k);
    Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, section 3.3.
    """
    layer = nn.ConvTranspose2d(channels, channels, kernel, stride, bias=False)
    factor = (kernel + 1) // 2
    centre = factor - 1 if kernel % 2 else factor - 0.5
    profile = 1 - (torch.arange(kernel) - centre).abs() / factor
    with torch.no_grad():
        layer.weight.copy_(torch.eye(channels)[:, :, None, None] * profile[:, None] * profile)
    return layer


class InPlace(nn.Module):
    """A layer that Caffe computes in place, so that its output has the blob name of its input (`compare.py`)."""


class Dropout(InPlace):
    """`dropout` as a layer."""

    def __init__(self, ratio: float, scale_train: bool = True):
        super().__init__()
        self.ratio, self.scale_train = ratio, scale_train

    def forward(self, maps: Tensor) -> Tensor:
        return dropout(maps, self.ratio, self.training, self.scale_train)


class BatchNorm(nn.Module):
    """Caffe's three blobs: sums of means and of variances, and the factor that both are divided by."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("factor", torch.ones(1))


class Scale(InPlace):
    """Caffe's two blobs, gamma and beta."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor, norm: BatchNorm) -> Tensor:
        return normalise(maps, norm, self)


def normalise(maps: Tensor, norm: BatchNorm, scale: Scale, epsilon: float = 1e-5) -> Tensor:
    """BatchNorm and Scale on maps (B, C, h, w), with the stored statistics in training too.

    Both are computed as one affine map per channel, so no copy of `maps` is kept for the gradient.
    """
    share = torch.where(norm.factor == 0, norm.factor, 1 / norm.factor)
    gain = scale.gamma / (norm.variance * share + epsilon).sqrt()
    shift = scale.beta - gain * norm.mean * share
    return torch.addcmul(shift[:, None, None], maps, gain[:, None, None])


class VGG16(nn.ModuleDict):
    """The thirteen convolutions of VGG16 (Simonyan and Zisserman, 2015), conv1_1 to conv5_3.

    Parameters
    ----------
    widths : mapping of str to int
        Channels of conv1 to conv5, see `VGG16_WIDTHS`.
    padding : int
        Padding of the first convolution.
    dilation : int
        Dilation of the last three convolutions (DeepLab).
    """

    def __init__(self, widths: Mapping[str, int] = VGG16_WIDTHS, padding: int = 1, dilation: int = 1):
        super().__init__()
        inputs = 3
        for block, layers in enumerate((2, 2, 3, 3, 3), 1):
            spread = dilation if block == 5 else 1
            for layer in range(1, layers + 1):
                outputs, margin = widths[f"conv{block}"], padding if block == layer == 1 else spread
                self[f"conv{block}_{layer}"] = nn.Conv2d(inputs, outputs, 3, 1, margin, spread)
                inputs = outputs

    def forward(self, images: Tensor, pools: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
        """Outputs of the five blocks, each after its pool (nn.Identity() for a block without one)."""
        outputs = []
        for block, (layers, pool) in enumerate(zip((2, 2, 3, 3, 3), pools, strict=True), 1):
            for layer in range(1, layers + 1):
                images = F.relu(self[f"conv{block}_{layer}"](images), inplace=True)
            images = pool(images)
            outputs.append(images)
        return outputs


class ResNet(nn.ModuleDict):
    """ResNet as released for Caffe (He et al., 2016): the first 1x1 convolutions of a stage have its stride.

    Parameters
    ----------
    blocks : sequence of sequence of str
        Names of the blocks of the four stages: `RESNET50` or `RESNET101`.
    strides, dilations : sequence of int
        Strides of the four stages, dilations of their 3x3 convolutions.
    pool_padding : int
        Padding of pool1.
    bias : bool
        Whether conv1 has a bias, as in the released ResNet-50.
    width : int
        Channels of conv1; stages have 4, 8, 16 and 32 times as many.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[str]],
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        pool_padding: int = 0,
        bias: bool = False,
        width: int = 64,
    ):
        super().__init__()
        self.blocks, self.pool_padding = blocks, pool_padding
        self._add("conv1", 3, width, 7, 2, 1, bias)
        inputs = width
        for stage, (names, stage_stride, dilation) in enumerate(zip(blocks, strides, dilations, strict=True), 2):
            narrow = width * 2 ** (stage - 2)
            for number, name in enumerate(names):
                stride = 1 if number else stage_stride
                if number == 0:
                    self._add(f"res{stage}{name}_branch1", inputs, 4 * narrow, 1, stride)
                self._add(f"res{stage}{name}_branch2a", inputs, narrow, 1, stride)
                self._add(f"res{stage}{name}_branch2b", narrow, narrow, 3, 1, dilation)
                self._add(f"res{stage}{name}_branch2c", narrow, 4 * narrow, 1)
                inputs = 4 * narrow

    def forward(self, images: Tensor) -> list[Tensor]:
        """Outputs of the stages res2 to res5, after ReLU."""
        maps = F.relu(self._convolve("conv1", images), inplace=True)
        maps = max_pool(maps, 3, 2, self.pool_padding)
        outputs = []
        for stage, names in enumerate(self.blocks, 2):
            for number, name in enumerate(names):
                block = f"res{stage}{name}_branch"
                shortcut = maps if number else self._convolve(block + "1", maps)
                maps = F.relu(self._convolve(block + "2a", maps), inplace=True)
                maps = F.relu(self._convolve(block + "2b", maps), inplace=True)
                maps = F.relu(self._convolve(block + "2c", maps) + shortcut, inplace=True)
            outputs.append(maps)
        return outputs

    def _add(
        self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, bias: bool = False
    ) -> None:
        padding = dilation * (kernel // 2)
        self[name] = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=bias)
        norm, scale = _partners(name)
        self[norm], self[scale] = BatchNorm(outputs), Scale(outputs)

    def _convolve(self, name: str, maps: Tensor) -> Tensor:
        norm, scale = _partners(name)
        return self[scale](self[name](maps), self[norm])


def _partners(name: str) -> tuple[str, str]:
    """Names of the BatchNorm and the Scale layer that follow a convolution."""
    ending = name.removeprefix("res") if name.startswith("res") else f"_{name}"
    return f"bn{ending}", f"scale{ending}"


def choose_widths(default: Mapping[str, int], widths: Mapping[str, int] | None) -> dict[str, int]:
    """`default` updated by `widths`.

    Raises
    ------
    ValueError
        If a layer is not in `default`.
    """
    unknown = sorted((widths or {}).keys() - default.keys())
    if unknown:
        raise ValueError(f"widths: there is no layer {unknown[0]!r}; known are {', '.join(default)}")
    return {**default, **(widths or {})}
