"""FR-ZF and FR-VGG of the paper: Faster R-CNN on ZF and on VGG16, and what R-FCN shares with it.

Ren et al., "Faster R-CNN", 2015.  There are two releases, the authors' own in MATLAB and py-faster-rcnn.  They
measure boxes differently (`CONVENTIONS`), so the weights of one do not work with the boxes of the other.

The image is resized inside the network; proposals and detections are in the frame of the image.  A proposal
of the Python releases may exceed the last pixel of the image by a part of a pixel: it was clipped to the
resized image, and the second stage needs it unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dag.networks.caffe import layers as caffe
from dag.networks.caffe.caffemodel import load, read_blobs
from dag.networks.interface import Proposals
from dag.networks.layers import boxes, operators
from dag.networks.two_stage import RegionDetector, rois

MEAN = (102.9801, 115.9465, 122.7717)  # BGR
SHORT, LONG = 600, 1000  # sides of the resized image in pixels: the short one, and the most that the long one may have
STRIDE = 16
CELLS = {"zf": 6, "vgg16": 7}  # per side of the pooled map

WIDTHS = {
    "zf": {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256, "rpn": 256, "fc6": 4096, "fc7": 4096},
    "vgg16": caffe.VGG16_WIDTHS | {"rpn": 512, "fc6": 4096, "fc7": 4096},
}

# Layers of the region proposal network that some files call by another name.
_OTHER_NAMES = {
    "rpn_conv/3x3": ("rpn_conv1", "conv_proposal1"),
    "rpn_cls_score": ("proposal_cls_score",),
    "rpn_bbox_pred": ("proposal_bbox_pred",),
}


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
    """One pass of the trunk.

    Attributes
    ----------
    maps : Tensor (B, D, h, w)
        What the region proposal network reads.
    last : Tensor (B, E, h, w)
        What the second stage reads.
    size, resized : tuple of int
        (H, W) of the images and of what the trunk saw.
    scale : float
        Pixels of the trunk per pixel of the image.
    """

    maps: Tensor
    last: Tensor
    size: tuple[int, int]
    resized: tuple[int, int]
    scale: float


def faster_rcnn(
    body: str,
    convention: str = "py",
    caffemodel: Path | None = None,
    proposal_caffemodel: Path | None = None,
    labels: Iterable[int] = range(21),
    widths: Mapping[str, int] | None = None,
    **settings,
) -> RegionDetector:
    """Faster R-CNN as released for Caffe.

    Parameters
    ----------
    body : str
        "zf" or "vgg16".
    convention : str
        "py" or "matlab", see `CONVENTIONS`.
    caffemodel : Path, optional
        The whole network, or with `proposal_caffemodel` the half called detection_final.  Without it
        the weights are random.
    proposal_caffemodel : Path, optional
        MATLAB release: the half called proposal_final.  Both hold the trunk; that of `caffemodel` is
        used, as in the attack of the paper's authors.
    labels : iterable of int
        VOC class ids of the score columns, background (0) first.
    widths : mapping of str to int, optional
        Channels of layers that differ from `WIDTHS[body]`.
    settings
        See `CaffeDetector`.

    Raises
    ------
    ValueError
        If body, convention or a layer is unknown, or a file cannot be read or does not fit.
    """
    if body not in WIDTHS:
        raise ValueError(f"there is no body {body!r}; choose one of {', '.join(WIDTHS)}")
    widths = caffe.choose_widths(WIDTHS[body], widths)
    network = _FasterRCNN(body, tuple(labels), convention, widths, **settings)
    if caffemodel is None and proposal_caffemodel is not None:
        raise ValueError(f"{proposal_caffemodel}: this is half of a network; give detection_final as `caffemodel` too")
    if proposal_caffemodel is not None:
        load(_ProposalHalf(network), proposal_caffemodel, other_names(proposal_caffemodel))
        load(_DetectionHalf(network), caffemodel)
    elif caffemodel is not None:
        load(network, caffemodel, other_names(caffemodel))
    return network


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
        if self.convention.in_image:  # the MATLAB release asks for a size, the Python release for a factor
            steps = [old / new for old, new in zip(size, resized, strict=True)]
        inputs = resize(caffe.prepare(images, self.mean), resized, steps)
        return Features(*self.pass_trunk(inputs), size, resized, scale)

    def anchors(self, features: Features) -> Tensor:
        """Anchors (N, 4) in the frame of the resized image, in the order of `objectness_and_deltas`."""
        return boxes.grid_anchors(self.base, *features.maps.shape[-2:], STRIDE)

    def objectness_and_deltas(self, features: Features) -> tuple[Tensor, Tensor]:
        maps = F.relu(self.rpn["rpn_conv/3x3"](features.maps), inplace=True)
        # Softmax over the two ranks like their difference, which does not saturate.
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
        return [
            Proposals(image_boxes[boxes.best_boxes(image_boxes, logits, **settings)] / scale)
            for image_boxes, logits in zip(boxes.clip(decoded, frame), objectness, strict=True)
        ]

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


class _FasterRCNN(CaffeDetector):
    """RoI max pooling, two fully connected layers, box deltas of every class."""

    delta_layer = ("bbox_pred", 1)

    def __init__(self, body: str, labels: tuple[int, ...], convention: str, widths: dict[str, int], **settings):
        super().__init__(labels, convention, widths["conv5"], widths["rpn"], **settings)
        self.body, self.cells = body, CELLS[body]
        self.trunk = ZF(widths) if body == "zf" else caffe.VGG16(widths)
        self.head = nn.ModuleDict()
        self.head["fc6"] = nn.Linear(widths["conv5"] * self.cells**2, widths["fc6"])
        self.head["fc7"] = nn.Linear(widths["fc6"], widths["fc7"])
        self.head["cls_score"] = nn.Linear(widths["fc7"], len(labels))
        self.head["bbox_pred"] = nn.Linear(widths["fc7"], 4 * len(labels))
        # ZF was trained with a dropout that leaves the scaling to the test.
        self.dropout = caffe.Dropout(0.5, scale_train=body != "zf")

    def pass_trunk(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.body == "zf":
            maps = self.trunk(inputs)
        else:
            maps = self.trunk(inputs, [partial(caffe.max_pool, kernel=2, stride=2)] * 4 + [nn.Identity()])[-1]
        return maps, maps

    def vectors(self, features: Features, proposals: list[Proposals], rounded: bool) -> Tensor:
        """Output of fc7, (R, D), for proposals as they are or rounded to pixels of the resized image."""
        windows = self.windows(features, proposals, rounded)
        values = operators.roi_pool(features.last, windows, self.cells, 1 / STRIDE).flatten(1)
        if values.requires_grad and not any(layer.weight.requires_grad for layer in self.head.values()):
            factor = 1.0 if self.dropout.scale_train else 1 - self.dropout.ratio
            return operators.perceptron(values, [self.head["fc6"], self.head["fc7"]], factor)
        for layer in ("fc6", "fc7"):
            values = self.dropout(F.relu(self.head[layer](values), inplace=True))
        return values

    def scores(self, features: Features, proposals: list[Proposals]) -> Tensor:
        return self.head["cls_score"](self.vectors(features, proposals, self.round_windows))

    def regions(self, features: Features, proposals: list[Proposals]) -> tuple[Tensor, Tensor]:
        values = self.vectors(features, proposals, self.convention.in_image)
        return self.head["cls_score"](values), self.head["bbox_pred"](values).unflatten(1, (-1, 4))[:, 1:]


class ZF(nn.ModuleDict):
    """The five convolutions of Zeiler and Fergus (2014), stride 16; maps of 39 x 51 for 600 x 800."""

    def __init__(self, widths: Mapping[str, int]):
        super().__init__()
        inputs = 3
        shapes = {"conv1": (7, 2), "conv2": (5, 2), "conv3": (3, 1), "conv4": (3, 1), "conv5": (3, 1)}
        for name, (kernel, stride) in shapes.items():
            self[name] = nn.Conv2d(inputs, widths[name], kernel, stride, kernel // 2)
            inputs = widths[name]

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, D, h, w), after ReLU."""
        for name, layer in self.items():
            images = F.relu(layer(images), inplace=True)
            if name in ("conv1", "conv2"):
                images = caffe.max_pool(caffe.lrn_within(images, 3, 5e-5, 0.75), 3, 2, 1)
        return images


class _ProposalHalf(nn.ModuleDict):
    """What a proposal_final file holds of a network."""

    def __init__(self, network: CaffeDetector):
        super().__init__({"trunk": network.trunk, "rpn": network.rpn})


class _DetectionHalf(nn.ModuleDict):
    """What a detection_final file holds of a network."""

    def __init__(self, network: CaffeDetector):
        super().__init__({"trunk": network.trunk, "head": network.head})


def other_names(path: Path) -> dict[str, str]:
    """Layers of the region proposal network that have another name in this caffemodel, see `caffemodel.load`."""
    blobs = read_blobs(path)
    return {name: other for name, others in _OTHER_NAMES.items() for other in others if blobs.get(other)}


def base_anchors() -> Tensor:
    """The nine anchors of the first cell, float32 (9, 4), ratio-major; ratios 0.5, 1, 2, scales 8, 16, 32.

    Sides are rounded before they are scaled, so they are not those of `boxes.base_anchors`.
    """
    ratios = torch.tensor([0.5, 1, 2])
    widths = half_up((STRIDE**2 / ratios).sqrt())
    sides = torch.stack([widths, half_up(widths * ratios)], 1)
    reach = ((sides[:, None] * torch.tensor([8, 16, 32])[:, None] - 1) / 2).flatten(0, 1)
    return torch.cat([-reach, reach], 1) + (STRIDE - 1) / 2


def scaling(size: tuple[int, int], short: int, long: int, matlab: bool = False) -> tuple[float, tuple[int, int]]:
    """Factor that brings the short side of `size` = (H, W) to `short`, the long one at most to `long`; new (H, W).

    Halves are rounded to even, as NumPy and OpenCV do it, or up, as `matlab` does it.
    """

    def whole(value: float) -> int:
        return int(value + 0.5) if matlab else round(value)

    scale = short / min(size)
    if whole(scale * max(size)) > long:
        scale = long / max(size)
    return scale, (whole(size[0] * scale), whole(size[1] * scale))


def resize(images: Tensor, size: tuple[int, int], steps: Iterable[float]) -> Tensor:
    """Bilinear resampling of (B, C, H, W) to `size`; neighbouring samples are `steps` = (down, across) pixels apart.

    Centres of pixels have half-integer places, places beyond the border get its value, and nothing is
    smoothed beforehand: OpenCV's INTER_LINEAR.  `F.interpolate` rounds the size down when it is given the
    step.
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
    """Whole numbers nearest to values >= 0, halves up, as C and MATLAB round them (torch: half to even)."""
    return (values + 0.5).floor()
