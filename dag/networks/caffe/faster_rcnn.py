"""FR-ZF and FR-VGG of the paper: Faster R-CNN on ZF and on VGG16.

Ren et al., "Faster R-CNN", 2015.  There are two releases: py-faster-rcnn and the authors' own in MATLAB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from dag.networks.caffe import layers as caffe
from dag.networks.caffe.caffemodel import load, read_blobs
from dag.networks.caffe.detector import STRIDE, CaffeDetector, Features
from dag.networks.interface import Proposals
from dag.networks.layers import operators
from dag.networks.two_stage import RegionDetector

CELLS = {"zf": 6, "vgg16": 7}  # per side of the pooled map

WIDTHS = {
    "zf": {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256, "rpn": 256, "fc6": 4096, "fc7": 4096},
    "vgg16": caffe.VGG16_WIDTHS | {"rpn": 512, "fc6": 4096, "fc7": 4096},
}

# Names of layers of the region proposal network: those of VGG16 and end2end files, others.
_OTHER_NAMES = {
    "rpn_conv/3x3": ("rpn_conv1", "conv_proposal1"),
    "rpn_cls_score": ("proposal_cls_score",),
    "rpn_bbox_pred": ("proposal_bbox_pred",),
}


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
        "py" or "matlab", see `CONVENTIONS` in `dag.networks.caffe.detector`.
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
        See `dag.networks.caffe.detector.CaffeDetector`.

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
        # ZF was trained with a dropout that scales at test time instead of in training.
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
    """The layers of a network that are in a proposal_final file."""

    def __init__(self, network: CaffeDetector):
        super().__init__({"trunk": network.trunk, "rpn": network.rpn})


class _DetectionHalf(nn.ModuleDict):
    """The layers of a network that are in a detection_final file."""

    def __init__(self, network: CaffeDetector):
        super().__init__({"trunk": network.trunk, "head": network.head})


def other_names(path: Path) -> dict[str, str]:
    """Other names of region proposal layers in this caffemodel, for `rename` of `caffemodel.load`."""
    blobs = read_blobs(path)
    return {name: other for name, others in _OTHER_NAMES.items() for other in others if blobs.get(other)}
