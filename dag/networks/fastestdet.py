"""FastestDet, a single-stage detector without anchors, with the layer names of the published weight files.

Ma, "FastestDet: Ultra lightweight anchor-free real-time object detection algorithm", 2022.  The body is a ShuffleNetV2
(Ma et al., ECCV 2018); its maps at stride 8, 16 and 32 are concatenated at stride 16, where one head predicts
objectness, box and class of every cell.  Images are BGR, divided by 255.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dag.networks.interface import Detections
from dag.networks.layers import operators
from dag.networks.layers.boxes import clip
from dag.networks.single_stage import Features, SingleStage, rows_of

# Channels of the maps at stride 2, 8, 16 and 32, and number of blocks of the last three.
FIRST, STAGES, REPEATS = 24, (48, 96, 192), (4, 8, 4)
STRIDE, OUT = 16, 96


def fastestdet(
    labels: Sequence[int] = range(80), size: int = 352, score_threshold: float = 0.005, nms: float = 0.45
) -> SingleStage:
    """FastestDet.

    Parameters
    ----------
    labels : sequence of int
        Class id of each score column.  The published file has COCO's 80 classes in their order.
    size : int
        Height and width in pixels to which images are resized, whatever their aspect ratio.
    score_threshold : float
        Minimum confidence of a detection, as low as for YOLO (`dag.networks.darknet`).
    nms : float
        IoU above which `detect` suppresses boxes of the same class.

    Raises
    ------
    ValueError
        If `size` is not a positive multiple of 32.
    """
    if size % 32 or size < 32:
        raise ValueError(f"size {size} is no multiple of 32; the published network has 352")
    return _FastestDet(tuple(labels), size, score_threshold, nms)


class _FastestDet(SingleStage):
    def __init__(self, labels: tuple[int, ...], size: int, score_threshold: float, nms: float):
        super().__init__()
        self.labels, self.size, self.score_threshold, self.nms = labels, size, score_threshold, nms
        self.backbone = _Body()
        self.SPP = _Pyramid(sum(STAGES), OUT)
        self.detect_head = _Head(OUT, len(labels))

    def features(self, images: Tensor) -> Features:
        """Per cell, row by row: raw centre (x, y) and size (w, h), see `_boxes`; objectness logit; class logits."""
        frame = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)
        fine, middle, coarse = self.backbone(frame.flip(1) / 255)
        joined = torch.cat([F.avg_pool2d(fine, 3, 2, 1), middle, F.interpolate(coarse, scale_factor=2)], 1)
        map_ = self.detect_head(self.SPP(joined))
        return Features(rows_of(map_, 5 + len(self.labels)), tuple(images.shape[-2:]))

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Detections]:
        """The best class of every cell, if above `score_threshold`, after non-maximum suppression per class."""
        features, labels = self.features(images), torch.tensor(self.labels, device=images.device)
        detections = []
        for rows in features.rows:
            scores, columns = self._confidence(rows).max(1)
            cells = (scores > self.score_threshold).nonzero().squeeze(1)
            boxes, scores, columns = self._boxes(rows, features.size)[cells], scores[cells], columns[cells]
            kept = operators.class_nms(boxes, scores, columns, self.nms)
            boxes = clip(boxes[kept], features.size).float()
            detections.append(Detections(boxes, labels[columns[kept]], scores[kept].float()))
        return detections

    def _boxes(self, rows: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes (A, 4) of all cells; a centre deviates by up to one cell per axis, sizes are fractions of the image."""
        side = self.size // STRIDE
        y, x = torch.meshgrid(*2 * [torch.arange(side, device=rows.device)], indexing="ij")
        centre = (torch.stack([x, y], 2).flatten(0, 1) + rows[:, :2].tanh()) / side
        reach = rows[:, 2:4].sigmoid() / 2
        height, width = size
        return torch.cat([centre - reach, centre + reach], 1) * rows.new_tensor([width, height, width, height])


class _Body(nn.Module):
    """ShuffleNetV2: maps at stride 8, 16 and 32."""

    def __init__(self):
        super().__init__()
        self.first_conv = _convolved(3, FIRST, 3, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = FIRST
        for name, after, repeats in zip(("stage2", "stage3", "stage4"), STAGES, REPEATS, strict=True):
            self.add_module(name, nn.Sequential(_Halving(before, after), *(_Block(after) for _ in range(repeats - 1))))
            before = after

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.stage2(self.maxpool(self.first_conv(image)))
        middle = self.stage3(fine)
        return fine, middle, self.stage4(middle)


class _Halving(nn.Module):
    """Halve the resolution with two parallel branches (ShuffleNetV2, Figure 3d)."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.branch_main = _branch(before, after - before, stride=2)
        self.branch_proj = nn.Sequential(*_depthwise(before, 3, 2), *_convolved(before, before))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)


class _Block(nn.Module):
    """Every other channel passes unchanged (ShuffleNetV2, Figure 3c, with the shuffle first)."""

    def __init__(self, count: int):
        super().__init__()
        self.branch_main = _branch(count // 2, count // 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, ::2], self.branch_main(x[:, 1::2])], 1)


class _Pyramid(nn.Module):
    """Parallel stacks of one, two and three depthwise convolutions, merged and added to the input."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.Conv1x1 = _Reduction(before, after)
        for depth in (1, 2, 3):
            layers = [layer for _ in range(depth) for layer in (*_depthwise(after, 5), nn.ReLU())]
            self.add_module(f"S{depth}", nn.Sequential(*layers))
        self.output = nn.Sequential(*_convolved(3 * after, after)[:2])

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1(x)
        return F.relu(x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], 1)))


class _Head(nn.Module):
    """Raw map (B, 4 + 1 + C, h, w): box, objectness, classes."""

    def __init__(self, before: int, classes: int):
        super().__init__()
        self.conv1x1 = _Reduction(before, before)
        self.reg_layers = _Output(before, 4)
        self.obj_layers = _Output(before, 1)
        self.cls_layers = _Output(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1x1(x)
        return torch.cat([self.reg_layers(x), self.obj_layers(x), self.cls_layers(x)], 1)


class _Reduction(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv1x1 = _convolved(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x)


class _Output(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv5x5 = nn.Sequential(*_depthwise(before, 5), nn.ReLU(), *_convolved(before, after)[:2])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv5x5(x)


def _convolved(before: int, after: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def _depthwise(count: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(count, count, kernel, stride, kernel // 2, groups=count, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(count))


def _branch(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*_convolved(before, before), *_depthwise(before, 3, stride), *_convolved(before, after))
