"""A trunk of convolutions computed only where its maps depend on the image.

FCN pads the image by 100 pixels: 375 x 500 becomes 573 x 698.  The border of the maps, which the image does not
reach, depends on the weights and on the size alone.  It is computed once, from an image of zeros, and kept
as a template of every block's output.  A pass computes the window around the image and inserts it into the
template.  Scores and the gradient in the image equal those of the plain network up to rounding.  There is
no gradient in the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Number of sizes whose templates are kept, the last ones used; 375 x 500 takes 32 MB in FCN on VGG16.
KEPT_SIZES = 4


class Layer(NamedTuple):
    """A layer with one geometry for both axes.

    Attributes
    ----------
    apply : callable
        Function of maps and of the zeros (left, right, top, bottom) to pad them with -> maps.
    kernel, stride, padding : int
        In pixels of the input maps; the kernel includes its dilation.
    ceil : bool
        The size is rounded up: the last window may be only partly inside.
    weights : tuple of Tensor
    """

    apply: Callable[[Tensor, tuple[int, int, int, int]], Tensor]
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    ceil: bool = False
    weights: tuple[Tensor, ...] = ()


class Window(NamedTuple):
    """What a block computes along one axis; ranges are (begin, end) in pixels of whole maps.

    Attributes
    ----------
    reads, writes : tuple of int
        Range of the block's input that is read; range of its output that depends on the image.
    size : int
        Length of the whole output.
    padding : list of tuple of int
        Per layer: zeros before and after its input.
    """

    reads: tuple[int, int]
    writes: tuple[int, int]
    size: int
    padding: list[tuple[int, int]]


@dataclass
class Templates:
    """Cache of `outputs`: templates by size (H, W), last used last, and the weights they were computed with."""

    weights: list[_Kept] = field(default_factory=list)
    maps: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)


def convolution(layer: nn.Conv2d) -> Layer:
    """A convolution with square kernel, stride, padding and dilation, and ReLU."""

    def apply(maps: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
        left, right, top, bottom = padding
        if (left, top) != (right, bottom):
            maps, left, top = F.pad(maps, padding), 0, 0
        maps = F.conv2d(maps, layer.weight, layer.bias, layer.stride, (top, left), layer.dilation, layer.groups)
        return F.relu(maps, inplace=True)

    kernel = layer.dilation[0] * (layer.kernel_size[0] - 1) + 1
    return Layer(apply, kernel, layer.stride[0], layer.padding[0], weights=tuple(layer.parameters()))


def max_pool(kernel: int, stride: int) -> Layer:
    """Caffe's max pooling without padding."""
    return Layer(lambda maps, _: F.max_pool2d(maps, kernel, stride, ceil_mode=True), kernel, stride, ceil=True)


def pointwise(function: Callable[[Tensor], Tensor]) -> Layer:
    """A layer that maps every pixel by the same function, independently of the others."""
    return Layer(lambda maps, _: function(maps))


def applies(network: nn.Module, images: Tensor) -> bool:
    """Whether a pass can use templates, and is faster with them.

    It can if `network.elide` is set, the network is in evaluation mode, no weight gets a gradient, the images are
    not on the meta device, and autocast is off.  It is faster if the images get a gradient: an attack makes many
    passes with one size, while an evaluation would mostly use a template once.
    """
    if not network.elide or network.training or not (torch.is_grad_enabled() and images.requires_grad):
        return False
    if images.is_meta or torch.is_autocast_enabled(images.device.type):
        return False
    return not any(weight.requires_grad for weight in network.parameters())


def windows(length: int, blocks: Sequence[Sequence[Layer]]) -> list[Window]:
    """What the blocks compute along an axis on which the image has `length` pixels."""
    found = []
    begin, end, size = 0, length, length  # where the maps depend on the image, and their length
    for block in blocks:
        sizes = []
        for layer in block:
            sizes.append(size)
            begin = max(0, -((layer.kernel - 1 - layer.padding - begin) // layer.stride))
            spare = size + 2 * layer.padding - layer.kernel
            size = (-(-spare // layer.stride) if layer.ceil else spare // layer.stride) + 1
            end = min(size, (end - 1 + layer.padding) // layer.stride + 1)
        first, last, padding = begin, end, []
        for layer, inside in zip(reversed(block), reversed(sizes), strict=True):
            first = first * layer.stride - layer.padding
            last = (last - 1) * layer.stride - layer.padding + layer.kernel
            padding.append((max(0, -first), max(0, last - inside)))
            first, last = max(0, first), min(inside, last)
        found.append(Window((first, last), (begin, end), size, padding[::-1]))
    return found


def outputs(
    images: Tensor, blocks: Sequence[Sequence[Layer]], kept: int, templates: Templates | None = None
) -> list[Tensor]:
    """Whole outputs of the last `kept` blocks.

    Parameters
    ----------
    images : Tensor (B, C, H, W)
        Prepared such that the padding of the plain network is 0.
    blocks : sequence of sequence of Layer
        Each reads the output of the one before.  Templates are kept at the ends of blocks, and within a block the
        window grows by the reach of its layers, so a block should end where the maps are small.
    kept : int
        At least 1.
    templates : Templates, optional
        Cache for the same blocks, updated in place.  It is cleared when a weight has changed or moved.

    Returns
    -------
    list of Tensor (B, C', h, w)
        Differentiable in the images, not in the weights.  Hooks of the layers' modules are not called.
    """
    templates = Templates() if templates is None else templates
    height, width = images.shape[-2:]
    rows, columns = _plan(height, blocks, kept), _plan(width, blocks, kept)
    borders = _borders(images, blocks, rows, columns, templates)
    found, maps, top, left = [], images, 0, 0
    for block, border, (row, row_range), (column, column_range) in zip(blocks, borders, rows, columns, strict=True):
        maps = _cut(maps, row.reads, column.reads, top, left)
        for layer, vertical, horizontal in zip(block, row.padding, column.padding, strict=True):
            maps = layer.apply(maps, (*horizontal, *vertical))
        top, left = row_range[0], column_range[0]
        maps = _set_in(maps, border, row.writes[0] - top, column.writes[0] - left)
        found.append(maps)
    return found[-kept:]


def _plan(length: int, blocks: Sequence[Sequence[Layer]], kept: int) -> list[tuple[Window, tuple[int, int]]]:
    """Windows along one axis, each with the range of the output that is wanted: what the next block reads, or all."""
    found = windows(length, blocks)
    wanted = [after.reads for after in found[1 : len(found) - kept + 1]]
    return list(zip(found, wanted + [(0, window.size) for window in found[-kept:]], strict=True))


def _borders(
    images: Tensor, blocks: Sequence[Sequence[Layer]], rows: list, columns: list, templates: Templates
) -> list[Tensor]:
    """Output of every block for an image of zeros, in the wanted ranges; cached while the weights are the same."""
    weights = [weight for block in blocks for layer in block for weight in layer.weights]
    if len(weights) != len(templates.weights) or not all(map(_Kept.equals, templates.weights, weights)):
        templates.weights = [_Kept(weight) for weight in weights]
        templates.maps.clear()
    size = tuple(images.shape[-2:])
    found = templates.maps.pop(size, None)
    if found is None:
        found = _make(torch.zeros_like(images[:1]), blocks, rows, columns)
    templates.maps[size] = found
    if len(templates.maps) > KEPT_SIZES:
        del templates.maps[next(iter(templates.maps))]
    return found


@torch.no_grad()
def _make(maps: Tensor, blocks: Sequence[Sequence[Layer]], rows: list, columns: list) -> list[Tensor]:
    found = []
    for block, (_, row_range), (_, column_range) in zip(blocks, rows, columns, strict=True):
        for layer in block:
            maps = layer.apply(maps, (layer.padding,) * 4)
        found.append(_cut(maps, row_range, column_range).clone())
    return found


class _Kept:
    """A weight at the time when templates were computed.

    Compared by value on the CPU: writes through `data` or numpy, as in loaders, change no version counter.  Compared by
    address and version on a GPU, where a comparison of values would synchronise in every pass.
    """

    def __init__(self, weight: Tensor):
        self.version = weight._version
        self.weight = weight.detach()  # keeps the address from being reused
        if weight.is_cpu:
            self.weight = self.weight.clone()

    def equals(self, weight: Tensor) -> bool:
        if (weight.dtype, weight.device) != (self.weight.dtype, self.weight.device):
            return False
        if weight.is_cpu:
            return torch.equal(weight, self.weight)
        return (weight.data_ptr(), weight._version) == (self.weight.data_ptr(), self.version)


def _cut(maps: Tensor, rows: tuple[int, int], columns: tuple[int, int], top: int = 0, left: int = 0) -> Tensor:
    """Ranges, in pixels of the whole maps, of maps that begin at (top, left)."""
    return maps[..., rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]


def _set_in(maps: Tensor, border: Tensor, top: int, left: int) -> Tensor:
    """Border (1, C, H, W) with the maps (B, C, h, w) inserted at (top, left)."""
    height, width = maps.shape[-2:]
    if border.shape[-2:] == maps.shape[-2:]:
        return maps
    whole = border.repeat(len(maps), 1, 1, 1)
    whole[..., top : top + height, left : left + width] = maps
    return whole
