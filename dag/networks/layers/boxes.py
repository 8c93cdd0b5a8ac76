"""Arithmetic on boxes: anchors, regression targets, overlap, the proposal step.

A box is (x_min, y_min, x_max, y_max), 0-based, with inclusive corners as in VOC: its width is
x_max - x_min + 1.  Faster R-CNN and R-FCN follow that convention; their releases differ only in `decode`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dag.networks.layers import operators


def base_anchors(sizes: tuple[float, ...], ratios: tuple[float, ...], stride: int) -> Tensor:
    """Anchors of the first cell, float32 (A, 4), ratio-major.

    An anchor of size s and ratio r = height / width has the area s^2 and is centred in the cell.
    """
    sizes_, ratios_ = torch.tensor(sizes, dtype=torch.float64), torch.tensor(ratios, dtype=torch.float64)
    widths = (sizes_ / ratios_[:, None].sqrt()).flatten()
    heights = (sizes_ * ratios_[:, None].sqrt()).flatten()
    far = torch.stack([widths - 1, heights - 1], 1) / 2
    return (torch.cat([-far, far], 1) + (stride - 1) / 2).float()


def grid_anchors(base: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Base anchors (A, 4) shifted to every cell: (height * width * A, 4), order (row, column, anchor)."""
    y = torch.arange(height, dtype=base.dtype, device=base.device) * stride
    x = torch.arange(width, dtype=base.dtype, device=base.device) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([x, y, x, y], 2)
    return (shifts[:, :, None] + base).reshape(-1, 4)


def encode(boxes: Tensor, truth: Tensor) -> Tensor:
    """Regression targets (R, 4) = (dx, dy, dw, dh) that move `boxes` (R, 4) onto `truth` (R, 4).

    Ren et al., Faster R-CNN, equation 2.
    """
    size, true_size = boxes[..., 2:] - boxes[..., :2] + 1, truth[..., 2:] - truth[..., :2] + 1
    shift = (truth[..., :2] + truth[..., 2:] - boxes[..., :2] - boxes[..., 2:]) / 2
    return torch.cat([shift / size, (true_size / size).log()], -1)


def decode(boxes: Tensor, deltas: Tensor, excess: float = 0.0) -> Tensor:
    """Boxes (..., 4) moved by the regression outputs `deltas` (..., 4); the inverse of `encode`.

    Parameters
    ----------
    excess : float
        Added to x_max and y_max.  py-faster-rcnn and py-R-FCN decode with 1 (a zero delta
        returns x_max + 1), the MATLAB release and the miniature networks with 0.
    """
    size = boxes[..., 2:] - boxes[..., :2] + 1
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + deltas[..., :2] * size
    reach = (size * deltas[..., 2:].exp() - 1) / 2
    return torch.cat([centre - reach, centre + reach + excess], -1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) clipped to an image of `size` = (H, W)."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width - 1), boxes[..., 1::2].clamp(0, height - 1)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def flip(boxes: Tensor, width: int) -> Tensor:
    """Boxes (..., 4) mirrored left to right in an image of `width` pixels."""
    x_min, y_min, x_max, y_max = boxes.unbind(-1)
    return torch.stack([width - 1 - x_max, y_min, width - 1 - x_min, y_max], -1)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes (..., R, 4) and (..., S, 4) as (..., R, S)."""
    first, second = first[..., :, None, :], second[..., None, :, :]
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low + 1).clamp(min=0).prod(-1)
    return shared / (area(first) + area(second) - shared)


def area(boxes: Tensor) -> Tensor:
    """Number of pixels of boxes (..., 4)."""
    return (boxes[..., 2:] - boxes[..., :2] + 1).prod(-1)


def exclusive(boxes: Tensor) -> Tensor:
    """The same boxes with exclusive x_max and y_max, as the compiled operators expect them."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] + 1], -1)


def best_boxes(
    boxes: Tensor,
    objectness: Tensor,
    *,
    nms: float,
    limit: int | None = None,
    candidates: int | None = None,
    smallest: float = 0,
) -> Tensor:
    """Rows of the boxes (R, 4) that become proposals, int64 (K,), best objectness (R,) first.

    Boxes with a side below `smallest` pixels are dropped, the `candidates` best (None: all) are suppressed at
    IoU > `nms`, and the `limit` best survivors (None: all) are kept.
    """
    order = objectness.argsort(descending=True, stable=True)
    if smallest > 0:
        order = order[(boxes[order, 2:] - boxes[order, :2] + 1 >= smallest).all(1)]
    order = order[:candidates]
    return order[operators.nms(exclusive(boxes[order]), objectness[order], nms)][:limit]
