"""The compiled operators of torchvision: non-maximum suppression and RoI pooling.

They are loaded from the shared library.  `import torchvision` also imports TorchDynamo and all models: 4.6 of
the 7.8 CPU-seconds that a job needs to start (`python -X importtime -c "import torchvision"`, torch 2.15), which
is more than many jobs of the miniature compute.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        if ctx.name == "roi_pool":  # `origin` of the other operator has no row for each RoI
            rows = _active(gradient)
            gradient, rois, origin = gradient[rows], rois[rows], origin[rows]
        return backward(gradient, rois, origin, ctx.scale, *sizes), None, None, None, None


class _Perceptron(torch.autograd.Function):
    """Linear layers, each followed by ReLU, whose backward pass skips rows with a gradient of zero."""

    @staticmethod
    def forward(ctx, rows: Tensor, factor: float, *parameters: Tensor) -> Tensor:
        outputs = []
        for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
            rows = F.relu_(F.linear(rows, weight, bias))
            if factor != 1:
                rows *= factor
            outputs.append(rows)
        ctx.save_for_backward(*parameters[::2], *outputs)
        ctx.factor = factor
        return rows.clone()  # the saved one must not be changed in place

    @staticmethod
    def backward(ctx, gradient: Tensor):
        weights, outputs = (
            ctx.saved_tensors[: len(ctx.saved_tensors) // 2],
            ctx.saved_tensors[len(ctx.saved_tensors) // 2 :],
        )
        rows = _active(gradient)
        active = gradient[rows]
        for weight, output in zip(reversed(weights), reversed(outputs), strict=True):
            active = (active * (output[rows] > 0)) @ weight
            if ctx.factor != 1:
                active *= ctx.factor
        whole = gradient.new_zeros(len(gradient), active.shape[1])
        whole[rows] = active
        return whole, None, *[None] * (2 * len(weights))


def _active(gradient: Tensor) -> Tensor:
    """Rows of a gradient that are not zero."""
    return (gradient.flatten(1) != 0).any(1).nonzero().squeeze(1)


def perceptron(rows: Tensor, layers: Sequence[nn.Linear], factor: float = 1.0) -> Tensor:
    """relu(layer(rows)) * factor, layer after layer; (R, D) to (R, E).

    Only the input gets a gradient.  Rows with a gradient of zero, like proposals that are no longer attacked, cost
    nothing in the backward pass.
    """
    parameters = [parameter for layer in layers for parameter in (layer.weight.detach(), layer.bias.detach())]
    return _Perceptron.apply(rows, factor, *parameters)


def roi_pool(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Max pooling of rois (R, 5) = (image, x_min, y_min, x_max, y_max) to (R, C, size, size).

    `scale` is the size of `features` (B, C, h, w) relative to the image, e.g. 1/16.
    """
    return _Pool.apply(features, rois, size, scale, "roi_pool")


def ps_roi_pool(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Position-sensitive average pooling of (B, C * size^2, h, w) to (R, C, size, size)."""
    return _Pool.apply(features, rois, size, scale, "ps_roi_pool")
