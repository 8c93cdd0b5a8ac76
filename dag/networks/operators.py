"""The compiled operators of torchvision: non-maximum suppression and RoI pooling.

They are loaded straight from the shared library.  `import torchvision` also imports TorchDynamo
and every model of the collection: 4.6 of the 7.8 CPU-seconds that a job needs to start
(`python -X importtime -c "import torchvision"`, torch 2.15), which is more than many jobs of the
miniature compute.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

_package = Path(importlib.util.find_spec("torchvision").submodule_search_locations[0])
for _library in sorted(_package.glob("_C*.so")) + sorted(_package.glob("_C*.pyd")):
    torch.ops.load_library(str(_library))


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Rows kept by greedy suppression of IoU > `threshold`, best score first.

    boxes (R, 4), scores (R,); returns int64 (K,).
    """
    return torch.ops.torchvision.nms(boxes, scores, threshold)


def class_nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """`nms` within each class: boxes of different `classes` (R,) never suppress each other."""
    if len(boxes) == 0:
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    offset = (boxes.max() - boxes.min() + 2) * classes.to(boxes)
    return nms(boxes + offset[:, None], scores, threshold)


class _Pool(torch.autograd.Function):
    """A pooling operator and its compiled backward pass (newer torchvision binds them in Python)."""

    @staticmethod
    def forward(ctx, features: Tensor, rois: Tensor, size: int, scale: float, name: str) -> Tensor:
        pooled, origin = getattr(torch.ops.torchvision, name)(features, rois, scale, size, size)
        ctx.save_for_backward(rois, origin)
        ctx.size, ctx.scale, ctx.name, ctx.shape = size, scale, name, features.shape
        return pooled

    @staticmethod
    def backward(ctx, gradient: Tensor):
        rois, origin = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        backward = getattr(torch.ops.torchvision, f"_{ctx.name}_backward")
        sizes = (ctx.size, ctx.size, batch, channels, height, width)
        return backward(gradient.contiguous(), rois, origin, ctx.scale, *sizes), None, None, None, None


def roi_pool(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Max pooling of rois (R, 5) = (image, x_min, y_min, x_max, y_max) to (R, C, size, size).

    `scale` maps image coordinates to `features` (B, C, h, w), e.g. 1/16.
    """
    return _Pool.apply(features, rois, size, scale, "roi_pool")


def ps_roi_pool(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Position-sensitive average pooling of (B, C * size^2, h, w) to (R, C, size, size)."""
    return _Pool.apply(features, rois, size, scale, "ps_roi_pool")
