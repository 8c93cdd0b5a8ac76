"""R-FCN-RN50 and R-FCN-RN101 of the paper: R-FCN on ResNet, as released with py-R-FCN.

Dai et al., "R-FCN", 2016.  Input, proposals and boxes are those of `dag.networks.caffe.detector` with the
convention "py-r-fcn".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dag.networks.caffe import layers as caffe
from dag.networks.caffe.caffemodel import load
from dag.networks.caffe.detector import STRIDE, CaffeDetector, Features, half_up
from dag.networks.interface import Proposals

CELLS = 7
BLOCKS = {"resnet50": caffe.RESNET50, "resnet101": caffe.RESNET101}
WIDTHS = {"conv1": 64, "rpn": 512, "conv_new_1": 1024}


def rfcn(
    body: str,
    caffemodel: Path | None = None,
    labels: Iterable[int] = range(21),
    widths: Mapping[str, int] | None = None,
    **settings,
) -> CaffeDetector:
    """R-FCN as released for Caffe, with box deltas that all classes share.

    Parameters
    ----------
    body : str
        "resnet50" or "resnet101".
    caffemodel : Path, optional
        Without it the weights are random.
    labels : iterable of int
        VOC class ids of the score columns, background (0) first.
    widths : mapping of str to int, optional
        Channels of layers that differ from `WIDTHS`; the stages follow conv1, see `caffe.ResNet`.
    settings
        See `dag.networks.caffe.detector.CaffeDetector`.

    Raises
    ------
    ValueError
        If body or a layer is unknown, or the file cannot be read or does not fit.
    """
    if body not in BLOCKS:
        raise ValueError(f"there is no body {body!r}; choose one of {', '.join(BLOCKS)}")
    network = _RFCN(body, tuple(labels), caffe.choose_widths(WIDTHS, widths), **settings)
    return network if caffemodel is None else load(network, caffemodel)


class _RFCN(CaffeDetector):
    """Proposals from the fourth stage, position-sensitive maps from the fifth, which is dilated."""

    delta_layer = ("rfcn_bbox", CELLS**2)

    def __init__(self, body: str, labels: tuple[int, ...], widths: dict[str, int], **settings):
        width = widths["conv1"]
        super().__init__(labels, "py-r-fcn", 16 * width, widths["rpn"], **settings)
        bias = body == "resnet50"
        self.trunk = caffe.ResNet(BLOCKS[body], (1, 2, 2, 1), (1, 1, 1, 2), bias=bias, width=width)
        self.head = nn.ModuleDict()
        self.head["conv_new_1"] = nn.Conv2d(32 * width, widths["conv_new_1"], 1)
        self.head["rfcn_cls"] = nn.Conv2d(widths["conv_new_1"], len(labels) * CELLS**2, 1)
        self.head["rfcn_bbox"] = nn.Conv2d(widths["conv_new_1"], 8 * CELLS**2, 1)
        self.votes = nn.ModuleDict({"cls_score": Vote(), "bbox_pred_pre": Vote()})

    def pass_trunk(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        *_, fourth, fifth = self.trunk(inputs)
        return fourth, F.relu(self.head["conv_new_1"](fifth), inplace=True)

    def scores(self, features: Features, proposals: list[Proposals]) -> Tensor:
        return self._vote("rfcn_cls", "cls_score", features, proposals)

    def regions(self, features: Features, proposals: list[Proposals]) -> tuple[Tensor, Tensor]:
        deltas = self._vote("rfcn_bbox", "bbox_pred_pre", features, proposals)
        return self.scores(features, proposals), deltas[:, None, 4:]  # the first four belong to the background

    def _vote(self, layer: str, blob: str, features: Features, proposals: list[Proposals]) -> Tensor:
        return self.votes[blob](self.head[layer](features.last), self.windows(features, proposals)).flatten(1)


class Vote(nn.Module):
    """Mean over the cells of windows (R, 5) in position-sensitive maps (B, C * 49, h, w): (R, C, 1, 1)."""

    def forward(self, maps: Tensor, windows: Tensor) -> Tensor:
        return position_sensitive_pool(maps, windows, CELLS, 1 / STRIDE).mean((2, 3), keepdim=True)


def position_sensitive_pool(maps: Tensor, rois: Tensor, cells: int, scale: float) -> Tensor:
    """Caffe's PSROIPooling of maps (B, C * cells^2, h, w) to (R, C, cells, cells).

    A window reaches from round(x_min) to round(x_max) + 1; its edges are real numbers on the maps.  A cell is the
    mean of all positions that it touches, taken from its own maps; an empty cell is 0.
    `operators.ps_roi_pool` rounds the edges to positions of the maps instead.

    Parameters
    ----------
    rois : Tensor (R, 5)
        (image, x_min, y_min, x_max, y_max) in the frame of the network's input.
    scale : float
        Size of the maps relative to that frame.
    """
    height, width = maps.shape[-2:]
    left, right = _cells(rois[:, 1], rois[:, 3], cells, scale, width)
    top, bottom = _cells(rois[:, 2], rois[:, 4], cells, scale, height)
    # Integral image.  Single precision would lose three digits in the differences.
    sums = F.pad(maps.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
    table = sums.unflatten(1, (-1, cells**2)).permute(0, 2, 3, 4, 1).flatten(0, 3)
    position = rois[:, 0].long()[:, None] * cells**2 + torch.arange(cells**2, device=rois.device)
    position = position.unflatten(1, (cells, cells)) * (height + 1)

    def above_left(y: Tensor, x: Tensor) -> Tensor:
        return table[(position + y[:, :, None]) * (width + 1) + x[:, None, :]]

    total = above_left(bottom, right) - above_left(top, right) - above_left(bottom, left) + above_left(top, left)
    count = ((bottom - top)[:, :, None] * (right - left)[:, None, :]).clamp(min=1)
    return (total / count[..., None]).permute(0, 3, 1, 2).to(maps.dtype)


def _cells(low: Tensor, high: Tensor, cells: int, scale: float, length: int) -> tuple[Tensor, Tensor]:
    """First position and last position + 1 of each cell along an axis of `length` positions, int64 (R, cells)."""
    low, high = half_up(low) * scale, (half_up(high) + 1) * scale
    step = (high - low).clamp(min=0.1)[:, None] / cells
    number = torch.arange(cells, device=step.device, dtype=step.dtype)
    first = (number * step + low[:, None]).floor().clamp(0, length).long()
    end = ((number + 1) * step + low[:, None]).ceil().clamp(0, length).long()
    return first, torch.maximum(first, end)
