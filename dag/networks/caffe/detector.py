"""Base of the detectors released for Caffe: input, region proposal network, boxes, test settings.

Ren et al., "Faster R-CNN", 2015.  The releases differ in how they measure boxes (`CONVENTIONS`), so the weights of
one do not work with the boxes of another.

The image is resized inside the network; proposals and detections are in the frame of the image.  A proposal
of the Python releases may exceed the last pixel of the image by a part of a pixel: it was clipped to the
resized image, and the second stage needs it unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dag.networks.caffe import layers as caffe
from dag.networks.interface import Proposals
from dag.networks.layers import boxes
from dag.networks.two_stage import RegionDetector, rois

MEAN = (102.9801, 115.9465, 122.7717)  # BGR
SHORT, LONG = 600, 1000  # sides of the resized image in pixels: the short one, and the most that the long one may have
STRIDE = 16


@dataclass(frozen=True)
class Convention:
    """How a release measures boxes and which detections it keeps.

    Attributes
    ----------
    excess : float
        See `boxes.decode`.
    in_image : bool
        True: proposals are moved to the frame of the image before they are clipped and suppressed, and the
        second stage of the normal test reads them rounded to pixels of the resized image.  False: they stay
        in the frame of the resized image and are not rounded.
    lowest, per_class, per_image
        See `RegionDetector`.
    """

    excess: float
    in_image: bool
    lowest: float
    per_class: int | None
    per_image: int | None


CONVENTIONS = {
    # py-faster-rcnn, test_net() in lib/fast_rcnn/test.py: thresh=0.05, max_per_image=100
    "py": Convention(excess=1, in_image=False, lowest=0.05, per_class=None, per_image=100),
    # py-R-FCN, the same function: thresh = -np.inf, max_per_image = 400
    "py-r-fcn": Convention(excess=1, in_image=False, lowest=-math.inf, per_class=None, per_image=400),
    # faster_rcnn (MATLAB), functions/fast_rcnn: fast_rcnn_test.m, fast_rcnn_map_im_rois_to_feat_rois.m.  Its limit of
    # 40 boxes per class and image, on average over the image set, is left out: a single image cannot know it.
    "matlab": Convention(excess=0, in_image=True, lowest=0, per_class=100, per_image=None),
}


@dataclass(frozen=True)
class Features:
    """Output of one pass of the trunk.

    Attributes
    ----------
    maps : Tensor (B, D, h, w)
        Input of the region proposal network.
    last : Tensor (B, E, h, w)
        Input of the second stage.
    size, resized : tuple of int
        (H, W) of the images and of the resized images.
    scale : float
        Pixels of the resized image per pixel of the image.
    """

    maps: Tensor
    last: Tensor
    size: tuple[int, int]
    resized: tuple[int, int]
    scale: float


class CaffeDetector(RegionDetector):
    """Input, region proposal network and boxes of the detectors released for Caffe.

    Subclasses set `trunk`, `head` and `delta_layer`: the layer of `head` that computes the box deltas, and
    the number of successive channels that belong to one delta.  They define `pass_trunk`, `scores` and `regions`,
    whose box deltas are (R, C - 1, 4) or (R, 1, 4).

    Parameters
    ----------
    labels : tuple of int
        VOC class ids of the score columns, background first.
    convention : str
        Name of one of `CONVENTIONS`.
    inputs, width : int
        Channels of the maps that the region proposal network reads and of its convolution.
    short, long : int
        Sides of the resized image, see `SHORT`.
    smallest : float
        Proposals with a side below it, in pixels of the image, are dropped.
    lowest : float, optional
        Detections need a probability above it; by default that of the convention.
    mean : sequence of float
        BGR, subtracted from the image.
    round_windows : bool
        Convention "matlab": round the proposals to pixels of the resized image in `scores`, which the attack
        reads.  The MATLAB release rounds them in its normal test, as `regions` does in any case; the
        attack of the paper's authors (cihangxie/DAG, fooling_det_net.m) does not.

    Raises
    ------
    ValueError
        If there is no such convention or setting, or the convention does not round.
    """

    candidates = 6000
    proposals = 300
    stride = STRIDE
    delta_layer: tuple[str, int]

    def __init__(
        self,
        labels: tuple[int, ...],
        convention: str,
        inputs: int,
        width: int,
        *,
        short: int = SHORT,
        long: int = LONG,
        smallest: float = 16,
        lowest: float | None = None,
        mean: Iterable[float] = MEAN,
        round_windows: bool = False,
        **unknown,
    ):
        super().__init__()
        if unknown:
            known = "short, long, smallest, lowest, mean, round_windows"
            raise ValueError(f"there is no setting {next(iter(unknown))!r}; known are {known}")
        if convention not in CONVENTIONS:
            raise ValueError(f"there is no convention {convention!r}; choose one of {', '.join(CONVENTIONS)}")
        self.labels, self.convention, self.round_windows = labels, CONVENTIONS[convention], round_windows
        if round_windows and not self.convention.in_image:
            raise ValueError(f"round_windows: the convention {convention!r} does not round; leave it out")
        self.short, self.long, self.smallest = short, long, smallest
        self.lowest = self.convention.lowest if lowest is None else lowest
        self.per_class, self.per_image = self.convention.per_class, self.convention.per_image
        self.register_buffer("mean", torch.tensor(tuple(mean))[:, None, None], persistent=False)
        self.register_buffer("base", base_anchors(), persistent=False)
        self.rpn = nn.ModuleDict()
        self.rpn["rpn_conv/3x3"] = nn.Conv2d(inputs, width, 3, padding=1)
        self.rpn["rpn_cls_score"] = nn.Conv2d(width, 2 * len(self.base), 1)
        self.rpn["rpn_bbox_pred"] = nn.Conv2d(width, 4 * len(self.base), 1)

    def pass_trunk(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """`Features.maps` and `Features.last` of prepared and resized images (B, 3, H, W)."""
        raise TypeError(f"{type(self).__name__} does not define pass_trunk()")

    def features(self, images: Tensor) -> Features:
        size = tuple(images.shape[-2:])
        scale, resized = scaling(size, self.short, self.long, matlab=self.convention.in_image)
        steps = [1 / scale] * 2
        if self.convention.in_image:  # MATLAB resizes to a size, OpenCV in the Python releases by a factor
            steps = [old / new for old, new in zip(size, resized, strict=True)]
        inputs = resize(caffe.prepare(images, self.mean), resized, steps)
        return Features(*self.pass_trunk(inputs), size, resized, scale)

    def anchors(self, features: Features) -> Tensor:
        """Anchors (N, 4) in the frame of the resized image, in the order of `objectness_and_deltas`."""
        return boxes.grid_anchors(self.base, *features.maps.shape[-2:], STRIDE)

    def objectness_and_deltas(self, features: Features) -> tuple[Tensor, Tensor]:
        maps = F.relu(self.rpn["rpn_conv/3x3"](features.maps), inplace=True)
        # The difference has the order of the softmax over the two and does not saturate.
        background, foreground = self.rpn["rpn_cls_score"](maps).chunk(2, 1)
        objectness = (foreground - background).permute(0, 2, 3, 1).flatten(1)
        deltas = self.rpn["rpn_bbox_pred"](maps).permute(0, 2, 3, 1).reshape(len(maps), -1, 4)
        return objectness, deltas

    @torch.no_grad()
    def select(
        self,
        features: Features,
        objectness: Tensor,
        deltas: Tensor,
        *,
        nms: float,
        limit: int,
        candidates: int | None,
    ) -> list[Proposals]:
        decoded = boxes.decode(self.anchors(features), deltas, self.convention.excess)
        if self.convention.in_image:
            (height, width), (high, wide) = features.size, features.resized
            frame, scale = features.size, 1.0
            decoded = decoded * decoded.new_tensor([(width - 1) / (wide - 1), (height - 1) / (high - 1)] * 2)
        else:
            frame, scale = features.resized, features.scale
        settings = {"nms": nms, "limit": limit, "candidates": candidates, "smallest": self.smallest * scale}
        images = zip(boxes.clip(decoded, frame), objectness, strict=True)
        kept = [(image_boxes, boxes.best_boxes(image_boxes, logits, **settings)) for image_boxes, logits in images]
        return [Proposals(image_boxes[rows] / scale, anchor=rows) for image_boxes, rows in kept]

    def windows(self, features: Features, proposals: list[Proposals], rounded: bool = False) -> Tensor:
        """Proposals as rows (image, x_min, y_min, x_max, y_max) in the frame of the resized image, (R, 5).

        With `rounded`, to its pixels.
        """
        rows = rois(proposals, features.last)
        corners = rows[:, 1:] * features.scale
        return torch.cat([rows[:, :1], half_up(corners) if rounded else corners], 1)

    def refine(self, features: Features, proposals: list[Proposals], deltas: Tensor) -> Tensor:
        starts = torch.cat([one.boxes for one in proposals])[:, None]
        return boxes.clip(boxes.decode(starts, deltas, self.convention.excess), features.size)


def base_anchors() -> Tensor:
    """The nine anchors of the first cell, float32 (9, 4), ratio-major; ratios 0.5, 1, 2, scales 8, 16, 32.

    Unlike in `boxes.base_anchors`, sides are rounded before they are scaled.
    """
    ratios = torch.tensor([0.5, 1, 2])
    widths = half_up((STRIDE**2 / ratios).sqrt())
    sides = torch.stack([widths, half_up(widths * ratios)], 1)
    reach = ((sides[:, None] * torch.tensor([8, 16, 32])[:, None] - 1) / 2).flatten(0, 1)
    return torch.cat([-reach, reach], 1) + (STRIDE - 1) / 2


def scaling(size: tuple[int, int], short: int, long: int, matlab: bool = False) -> tuple[float, tuple[int, int]]:
    """Factor that resizes the short side of `size` = (H, W) to `short` and the long one to at most `long`; new (H, W).

    Halves are rounded to even, as in NumPy and OpenCV, or up, as in MATLAB.
    """

    def whole(value: float) -> int:
        return int(value + 0.5) if matlab else round(value)

    scale = short / min(size)
    if whole(scale * max(size)) > long:
        scale = long / max(size)
    return scale, (whole(size[0] * scale), whole(size[1] * scale))


def resize(images: Tensor, size: tuple[int, int], steps: Iterable[float]) -> Tensor:
    """Bilinear resampling of (B, C, H, W) to `size`; neighbouring samples are `steps` = (down, across) pixels apart.

    OpenCV's INTER_LINEAR: centres of pixels have half-integer coordinates, the border is replicated, and there is
    no antialiasing.  `F.interpolate` cannot do it: given the step, it rounds the size down.
    """
    down, across = (
        _interpolation(old, new, step, images) for old, new, step in zip(images.shape[-2:], size, steps, strict=True)
    )
    return down @ images @ across.T


def _interpolation(old: int, new: int, step: float, like: Tensor) -> Tensor:
    """Weights (new, old) of the pixels of a line in its samples; type and device are those of `like`."""
    line = torch.arange(max(old, new), dtype=torch.float64, device=like.device)
    place = ((line[:new] + 0.5) * step - 0.5).clamp(0, old - 1)
    return (1 - (place[:, None] - line[:old]).abs()).clamp(min=0).to(like.dtype)


def half_up(values: Tensor) -> Tensor:
    """Round values >= 0 to the nearest integer, halves up as in C and MATLAB; torch rounds halves to even."""
    return (values + 0.5).floor()
