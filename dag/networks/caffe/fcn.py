"""FCN-Alex and FCN-VGG of the paper: FCN on CaffeNet with stride 32, and the staged FCN-8s on VGG16.

Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.  The layers are those of the
released voc-fcn-alexnet and voc-fcn8s, and of voc-fcn32s and voc-fcn16s, the stages in which voc-fcn8s is
trained.  The first convolution pads the image by 100 pixels, so that the score map covers an image of any size
and is cropped to it.  Passes with a gradient in the images do not compute what depends on the padding alone
(`dag.networks.layers.border`) unless the network's attribute `elide` is False.
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
from dag.networks.layers import border

MEAN = (104.00699, 116.66877, 122.67892)  # BGR

ALEXNET_WIDTHS = {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256, "fc6": 4096, "fc7": 4096}
VGG16_WIDTHS = caffe.VGG16_WIDTHS | {"fc6": 4096, "fc7": 4096}

# Stride: name of the last upsampling of FCN on VGG16, its kernel, offset of the image in its output.
_UPSCORE = {32: ("upscore", 64, 19), 16: ("upscore16", 32, 27), 8: ("upscore8", 16, 31)}


def fcn_alexnet(
    caffemodel: Path | None = None, labels: Iterable[int] = range(21), widths: Mapping[str, int] | None = None
) -> Segmenter:
    """FCN-32s on CaffeNet (voc-fcn-alexnet).

    Parameters
    ----------
    caffemodel : Path, optional
        Without it the weights are random, the upsampling is bilinear.
    labels : iterable of int
        VOC class ids of the score columns.
    widths : mapping of str to int, optional
        Channels of layers that differ from `ALEXNET_WIDTHS`; even, for two groups.

    Raises
    ------
    ValueError
        If the file cannot be read or does not fit.
    """
    return _loaded(_AlexNet(tuple(labels), caffe.choose_widths(ALEXNET_WIDTHS, widths)), caffemodel)


def fcn8s_vgg16(
    caffemodel: Path | None = None, labels: Iterable[int] = range(21), widths: Mapping[str, int] | None = None
) -> Segmenter:
    """FCN-8s on VGG16 as trained in stages (voc-fcn8s, "heavy"): skips are not scaled.

    Parameters
    ----------
    caffemodel : Path, optional
        Without it the weights are random, the upsampling is bilinear.
    labels : iterable of int
        VOC class ids of the score columns.
    widths : mapping of str to int, optional
        Channels of layers that differ from `VGG16_WIDTHS`.

    Raises
    ------
    ValueError
        If the file cannot be read or does not fit.  The file of voc-fcn8s-atonce, whose skips are scaled, does
        not fit.
    """
    return _vgg16(8, caffemodel, labels, widths)


def fcn16s_vgg16(
    caffemodel: Path | None = None, labels: Iterable[int] = range(21), widths: Mapping[str, int] | None = None
) -> Segmenter:
    """FCN-16s on VGG16 (voc-fcn16s), the second stage of FCN-8s; the rest as in `fcn8s_vgg16`."""
    return _vgg16(16, caffemodel, labels, widths)


def fcn32s_vgg16(
    caffemodel: Path | None = None, labels: Iterable[int] = range(21), widths: Mapping[str, int] | None = None
) -> Segmenter:
    """FCN-32s on VGG16 (voc-fcn32s), the first stage of FCN-8s; the rest as in `fcn8s_vgg16`."""
    return _vgg16(32, caffemodel, labels, widths)


def _vgg16(stride: int, path: Path | None, labels: Iterable[int], widths: Mapping[str, int] | None) -> Segmenter:
    return _loaded(_VGG16(stride, tuple(labels), caffe.choose_widths(VGG16_WIDTHS, widths)), path)


def _loaded(network: Segmenter, path: Path | None) -> Segmenter:
    return network if path is None else load(network, path)


class _AlexNet(Segmenter):
    """CaffeNet: pooling precedes normalisation, and three convolutions have two groups."""

    blob_names = "score_fr", "score"
    elide = True

    def __init__(self, labels: tuple[int, ...], widths: dict[str, int]):
        super().__init__()
        self.labels, self.templates = labels, border.Templates()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        conv1, conv2, conv3, conv4, conv5, fc6, fc7 = widths.values()
        self.conv1 = nn.Conv2d(3, conv1, 11, 4, 100)
        self.conv2 = nn.Conv2d(conv1, conv2, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(conv2, conv3, 3, padding=1)
        self.conv4 = nn.Conv2d(conv3, conv4, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(conv4, conv5, 3, padding=1, groups=2)
        self.fc6 = nn.Conv2d(conv5, fc6, 6)
        self.fc7 = nn.Conv2d(fc6, fc7, 1)
        self.score_fr = nn.Conv2d(fc7, len(labels), 1)
        self.upscore = caffe.deconvolution(len(labels), 63, 32)

    def body(self, images: Tensor) -> Tensor:
        """Scores score_fr, 16 x 16 for an image of 500 x 500."""
        maps = caffe.prepare(images, self.mean)
        if border.applies(self, images):
            (maps,) = border.outputs(maps, self._blocks(), 1, self.templates)
        else:
            maps = _norm(caffe.max_pool(_relu(self.conv1(maps)), 3, 2))
            maps = _norm(caffe.max_pool(_relu(self.conv2(maps)), 3, 2))
            for layer in (self.conv3, self.conv4, self.conv5):
                maps = _relu(layer(maps))
            maps = caffe.max_pool(maps, 3, 2)
        for layer in (self.fc6, self.fc7):
            maps = caffe.dropout(_relu(layer(maps)), 0.5, self.training)
        return self.score_fr(maps)

    def _blocks(self) -> list[list[border.Layer]]:
        conv1, conv2, *others = map(border.convolution, (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5))
        pool, norm = border.max_pool(3, 2), border.pointwise(_norm)
        return [[conv1, pool, norm], [conv2, pool, norm], [*others, pool]]

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return caffe.crop(self.upscore(scores), 18, size)


class _VGG16(Segmenter):
    """Scores of fc7 (stride 32), to which those of pool4 (stride 16) and pool3 (stride 8) are added."""

    elide = True

    def __init__(self, stride: int, labels: tuple[int, ...], widths: dict[str, int]):
        super().__init__()
        self.labels, self.stride, self.templates = labels, stride, border.Templates()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.trunk = caffe.VGG16(widths, padding=100)
        self.fc6 = nn.Conv2d(widths["conv5"], widths["fc6"], 7)
        self.fc7 = nn.Conv2d(widths["fc6"], widths["fc7"], 1)
        self.score_fr = nn.Conv2d(widths["fc7"], len(labels), 1)
        if stride <= 16:
            self.score_pool4 = nn.Conv2d(widths["conv4"], len(labels), 1)
            self.upscore2 = caffe.deconvolution(len(labels), 4, 2)
        if stride == 8:
            self.score_pool3 = nn.Conv2d(widths["conv3"], len(labels), 1)
            self.upscore_pool4 = caffe.deconvolution(len(labels), 4, 2)
        self.blob_names = {32: "score_fr", 16: "fuse_pool4", 8: "fuse_pool3"}[stride], "score"
        self.last, kernel, self.offset = _UPSCORE[stride]
        self.add_module(self.last, caffe.deconvolution(len(labels), kernel, stride))

    def body(self, images: Tensor) -> Tensor:
        """Scores after the skips: score_fr, fuse_pool4 or fuse_pool3; 70 x 70 for an image of 500 x 500, stride 8."""
        maps = caffe.prepare(images, self.mean)
        if border.applies(self, images):
            pool3, pool4, maps = border.outputs(maps, self._blocks(), 3, self.templates)
        else:
            pool = partial(caffe.max_pool, kernel=2, stride=2)
            _, _, pool3, pool4, maps = self.trunk(maps, [pool] * 5)
        for layer in (self.fc6, self.fc7):
            maps = caffe.dropout(_relu(layer(maps)), 0.5, self.training)
        scores = self.score_fr(maps)
        if self.stride <= 16:
            scores = self.upscore2(scores)
            scores = scores + caffe.crop(self.score_pool4(pool4), 5, scores.shape[-2:])
        if self.stride == 8:
            scores = self.upscore_pool4(scores)
            scores = scores + caffe.crop(self.score_pool3(pool3), 9, scores.shape[-2:])
        return scores

    def _blocks(self) -> list[list[border.Layer]]:
        pool = border.max_pool(2, 2)
        return [
            [*(border.convolution(self.trunk[f"conv{block}_{layer + 1}"]) for layer in range(layers)), pool]
            for block, layers in enumerate((2, 2, 3, 3, 3), 1)
        ]

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return caffe.crop(self.get_submodule(self.last)(scores), self.offset, size)


def _relu(maps: Tensor) -> Tensor:
    return F.relu(maps, inplace=True)


def _norm(maps: Tensor) -> Tensor:
    return caffe.lrn_across(maps, 5, 1e-4, 0.75)
