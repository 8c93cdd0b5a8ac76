"""DL-VGG and DL-RN101 of the paper: DeepLab on VGG16 and, at three scales, on ResNet-101.

Chen et al., "DeepLab", 2015 (LargeFOV) and TPAMI 2018 (ASPP, ResNet-101); layers and names are those
of the released Caffe networks.  The image is padded on the right and at the bottom with the mean colour to a
square frame whose corners are aligned with those of all feature maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dag.networks.caffe import layers as caffe
from dag.networks.caffe.caffemodel import load
from dag.networks.interface import Segmenter

MEAN = (104.008, 116.669, 122.675)  # BGR

VGG16_WIDTHS = caffe.VGG16_WIDTHS | {"fc6": 1024, "fc7": 1024}

# Layers of the released DeepLab on ResNet-101 that are copies of others, for the image at scales 0.5 and 0.75.
_COPIES = r"(conv1|(bn|scale|res).+)_res0(5|75)|fc1_voc12_res0(5|75)_c[0-3]"

# Ending of a branch's layer names: its dilation.
_HEADS = {"aspp": {"_1": 6, "_2": 12, "_3": 18, "_4": 24}, "large-fov": {"": 12}}


def deeplab_vgg16(
    caffemodel: Path | None = None,
    head: str = "aspp",
    labels: Iterable[int] = range(21),
    widths: Mapping[str, int] | None = None,
    frame: int = 513,
) -> Segmenter:
    """DeepLab on VGG16 without its conditional random field.

    Parameters
    ----------
    caffemodel : Path, optional
        Without it the weights are random.
    head : str
        "aspp": four branches with dilations of 6 to 24, summed (DeepLab v2, ASPP-L).
        "large-fov": one branch with dilation 12 behind an average pooling (v1).
    labels : iterable of int
        VOC class ids of the score columns.
    widths : mapping of str to int, optional
        Channels of layers that differ from `VGG16_WIDTHS`.
    frame : int
        Height and width that images are padded to, 32 n + 1.

    Raises
    ------
    ValueError
        If there is no such head, the frame is of another size, or the file cannot be read or does
        not fit.
    """
    if head not in _HEADS:
        raise ValueError(f"there is no head {head!r}; choose one of {', '.join(_HEADS)}")
    network = _VGG16(tuple(labels), caffe.choose_widths(VGG16_WIDTHS, widths), frame, head)
    return network if caffemodel is None else load(network, caffemodel)


def deeplab_resnet101(
    caffemodel: Path | None = None, labels: Iterable[int] = range(21), width: int = 64, frame: int = 513
) -> Segmenter:
    """DeepLab v2 on ResNet-101: the largest score of the image at scales 1, 0.75 and 0.5.

    Parameters
    ----------
    caffemodel : Path, optional
        Without it the weights are random.  The file holds the weights three times, once for each
        scale; the copies, conv1_res05 to fc1_voc12_res075_c3, are ignored.
    labels : iterable of int
        VOC class ids of the score columns.
    width : int
        Channels of conv1, see `caffe.ResNet`.
    frame : int
        Height and width that images are padded to, 32 n + 1.

    Raises
    ------
    ValueError
        If the frame is of another size, or the file cannot be read or does not fit.
    """
    network = _ResNet101(tuple(labels), width, frame)
    return network if caffemodel is None else load(network, caffemodel, ignore=_COPIES)


class _DeepLab(Segmenter):
    """Padding into the frame and back out of it."""

    def __init__(self, labels: tuple[int, ...], frame: int):
        super().__init__()
        if frame % 32 != 1:
            raise ValueError(f"frame: {frame} is not 32 n + 1; choose {frame // 32 * 32 + 1} or 513")
        self.labels, self.frame = labels, frame
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)

    def framed(self, images: Tensor) -> Tensor:
        """BGR minus mean, padded with zeros: (B, 3, frame, frame)."""
        height, width = images.shape[-2:]
        if max(height, width) > self.frame:
            raise ValueError(
                f"an image of {height} x {width} does not fit into the frame of {self.frame} x {self.frame}; "
                "give the network a larger frame"
            )
        return F.pad(caffe.prepare(images, self.mean), (0, self.frame - width, 0, self.frame - height))

    def score_maps(self, images: Tensor) -> list[Tensor]:
        """Score maps that training compares with the label map, those of the whole frame first."""
        return [self.body(images)]

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return caffe.crop(caffe.interp(scores, zoom=8), 0, size)


class _VGG16(_DeepLab):
    """VGG16 with stride 8: the last two pools keep the resolution, and the convolutions after them are dilated."""

    blob_names = "fc8_voc12", "fc8_interp"

    def __init__(self, labels: tuple[int, ...], widths: dict[str, int], frame: int, head: str):
        super().__init__(labels, frame)
        self.trunk = caffe.VGG16(widths, dilation=2)
        self.dilations = _HEADS[head]
        self.averaged = head == "large-fov"
        self.head = nn.ModuleDict()
        for ending, dilation in self.dilations.items():
            self.head["fc6" + ending] = nn.Conv2d(widths["conv5"], widths["fc6"], 3, 1, dilation, dilation)
            self.head["fc7" + ending] = nn.Conv2d(widths["fc6"], widths["fc7"], 1)
            self.head["fc8_voc12" + ending] = nn.Conv2d(widths["fc7"], len(labels), 1)

    def body(self, images: Tensor) -> Tensor:
        """Scores fc8_voc12 of the whole frame, 65 x 65 for 513 x 513."""
        halve, keep = (partial(caffe.max_pool, kernel=3, stride=stride, padding=1) for stride in (2, 1))
        maps = self.trunk(self.framed(images), [halve, halve, halve, keep, keep])[-1]
        if self.averaged:
            maps = caffe.average_pool(maps, 3, 1, 1)
        return sum(self._branch(maps, ending) for ending in self.dilations)

    def _branch(self, maps: Tensor, ending: str) -> Tensor:
        for layer in ("fc6", "fc7"):
            maps = caffe.dropout(F.relu(self.head[layer + ending](maps), inplace=True), 0.5, self.training)
        return self.head["fc8_voc12" + ending](maps)


class _ResNet101(_DeepLab):
    """One network at three scales, stride 8."""

    blob_names = "fc_fusion", "fc1_interp"

    def __init__(self, labels: tuple[int, ...], width: int, frame: int):
        super().__init__(labels, frame)
        self.trunk = caffe.ResNet(caffe.RESNET101, (1, 2, 1, 1), (1, 1, 2, 4), pool_padding=1, width=width)
        self.head = nn.ModuleDict()
        for number, dilation in enumerate((6, 12, 18, 24)):
            self.head[f"fc1_voc12_c{number}"] = nn.Conv2d(32 * width, len(labels), 3, 1, dilation, dilation)

    @staticmethod
    def name_in_pass(layer: str, number: int) -> str:
        """Caffe's name of a layer in the passes 0, 1 and 2, at scales 1, 0.75 and 0.5."""
        scale = ("", "_res075", "_res05")[number]
        return layer.replace("fc1_voc12", f"fc1_voc12{scale}") if layer.startswith("fc1_voc12") else layer + scale

    def body(self, images: Tensor) -> Tensor:
        """Scores fc_fusion of the whole frame, 65 x 65 for 513 x 513."""
        return self.score_maps(images)[0]

    def score_maps(self, images: Tensor) -> list[Tensor]:
        """Scores fc_fusion and those of the three scales, 65, 65, 49 and 33 to a side for a frame of 513."""
        images = self.framed(images)
        full = self._scores(images)
        three_quarters = self._scores(caffe.interp(images, shrink=4, zoom=3))
        half = self._scores(caffe.interp(images, shrink=2))
        largest = torch.maximum(full, caffe.interp(three_quarters, shrink=3, zoom=4))
        return [torch.maximum(largest, caffe.interp(half, zoom=2)), full, three_quarters, half]

    def _scores(self, images: Tensor) -> Tensor:
        maps = self.trunk(images)[-1]
        return sum(branch(maps) for branch in self.head.values())
