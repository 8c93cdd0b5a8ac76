"""A trunk of convolutions computed only where the image can influence it.

FCN pads the image by 100 pixels, which makes 375 x 500 into 573 x 698.  What lies beyond the reach of the
image depends on the weights and on the size alone: it is computed once, from an image of zeros, and kept as
a template of every block's output.  A pass then computes the window around the image and sets it into the
template.  Scores and the gradient in the image are those of the plain network up to rounding, and the
gradient in the image only: the border has none in the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Sizes whose templates are kept, the last ones used; one of 375 x 500 takes 32 MB in FCN on VGG16.
KEPT_SIZES = 4


class Layer(NamedTuple):
    """A layer with one geometry for both axes.

    Attributes
    ----------
    apply : callable
        Maps and the zeros (left, right, top, bottom) that they lack at the rim of the whole map -> maps.
    kernel, stride, padding : int
        In pixels of the maps that it reads; the kernel with its dilation.
    ceil : bool
        A last window that is only partly inside counts.
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
        Of the block's input; of its output, where it depends on the image.
    size : int
        Length of its whole output.
    padding : list of tuple of int
        Per layer: pixels before and after the map that it reads.
    """

    reads: tuple[int, int]
    writes: tuple[int, int]
    size: int
    padding: list[tuple[int, int]]


@dataclass
class Templates:
    """Memory of `outputs` between passes: templates by size (H, W), last used last, and the weights behind them."""

    weights: list[_Kept] = field(default_factory=list)
    maps: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)


def convolution(layer: nn.Conv2d) -> Layer:
    """A convolution, square in all it has, and ReLU."""

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
    """A layer that treats every pixel alike and alone."""
    return Layer(lambda maps, _: function(maps))


def applies(network: nn.Module, images: Tensor) -> bool:
    """Whether a pass may leave out the border, and gains by it.

    It may if `network.elide` is set, nothing is random (evaluation mode), no weight gets a gradient, the
    images have values (are not on the meta device), and the weights alone decide the precision (no autocast).
    It gains if the images get a gradient: an attack shows many images of one size, while an evaluation
    would mostly compute a template to use it once.
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
        With 0 as the value that the border has.
    blocks : sequence of sequence of Layer
        Each reads what the one before puts out.  The border is kept at the end of blocks, and inside a block the
        window grows by what its layers read: a block should end where the maps are small.
    kept : int
        At least 1.
    templates : Templates, optional
        Of the same blocks; filled here.  When weights have changed, in whatever way, or have been
        moved, all are made anew.

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
    """Output of every block for an image of zeros, in the wanted ranges; from memory if the weights are the same."""
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
    """What a weight was.

    It is compared by value: a write through `data` or numpy, as that of a loader, leaves no other trace.  On a GPU it
    is compared by place and version, which every other write changes: there the host would wait for the values, in
    every pass.
    """

    def __init__(self, weight: Tensor):
        self.version = weight._version
        self.weight = weight.detach()  # the place stays taken
        if weight.is_cpu:
            self.weight = self.weight.clone()

    def equals(self, weight: Tensor) -> bool:
        if (weight.dtype, weight.device) != (self.weight.dtype, self.weight.device):
            return False
        if weight.is_cpu:
            return torch.equal(weight, self.weight)
        return (weight.data_ptr(), weight._version) == (self.weight.data_ptr(), self.version)


def _cut(maps: Tensor, rows: tuple[int, int], columns: tuple[int, int], top: int = 0, left: int = 0) -> Tensor:
    """Ranges of whole maps, of which `maps` begin at (top, left)."""
    return maps[..., rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]


def _set_in(maps: Tensor, border: Tensor, top: int, left: int) -> Tensor:
    """Maps (B, C, h, w) with the border (1, C, H, W) around them, at (top, left) of it."""
    height, width = maps.shape[-2:]
    if border.shape[-2:] == maps.shape[-2:]:
        return maps
    whole = border.repeat(len(maps), 1, 1, 1)
    whole[..., top : top + height, left : left + width] = maps
    return whole
