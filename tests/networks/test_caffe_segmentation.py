"""Caffe's layers against closed forms and literal loops; the networks of the paper against OpenCV's Caffe importer.

OpenCV gets a prototxt that is written here from the published architecture, with narrow layers.
"""

import math
import re
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from finite_differences import assert_derivative
from published_layers import RESNET101
from test_caffemodel import caffemodel, save
from torch import nn

from dag.networks.building import build
from dag.networks.caffe import layers as caffe
from dag.networks.caffe.deeplab import deeplab_resnet101, deeplab_vgg16
from dag.networks.caffe.fcn import fcn8s_vgg16, fcn16s_vgg16, fcn32s_vgg16, fcn_alexnet

torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Layers


@pytest.mark.parametrize("size", range(7, 20))
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_pooling_follows_the_definition(kernel, stride, padding, size):
    maps = normal(1, 1, size, size + 3) - 5  # all negative: a zero of the padding would win
    outputs = []
    for length in (size, size + 3):
        output = math.ceil((length + 2 * padding - kernel) / stride) + 1
        if padding and (output - 1) * stride >= length + padding:
            output -= 1
        outputs.append(output)
    largest, mean = np.empty(outputs), np.empty(outputs)
    for y, x in np.ndindex(*outputs):
        spans = []
        area = 1
        for position, length in ((y, size), (x, size + 3)):
            begin = position * stride - padding
            area *= min(begin + kernel, length + padding) - begin
            spans.append(slice(max(begin, 0), min(begin + kernel, length)))
        window = maps[0, 0, spans[0], spans[1]]
        largest[y, x], mean[y, x] = window.max(), window.sum() / area
    np.testing.assert_array_equal(caffe.max_pool(maps, kernel, stride, padding)[0, 0], largest)
    np.testing.assert_allclose(caffe.average_pool(maps, kernel, stride, padding)[0, 0], mean, rtol=1e-12)


def test_response_normalisation_follows_the_definition():
    size, alpha, beta = 3, 0.7, 0.75  # a large alpha shows every mistake
    maps = normal(1, 5, 4, 3)
    across, within = torch.empty_like(maps), torch.empty_like(maps)
    for c, y, x in np.ndindex(5, 4, 3):
        value = maps[0, c, y, x]
        squares = maps[0, max(c - 1, 0) : c + 2, y, x].square().sum()
        across[0, c, y, x] = value * (1 + alpha / size * squares) ** -beta
        squares = maps[0, c, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].square().sum()
        within[0, c, y, x] = value * (1 + alpha / size**2 * squares) ** -beta
    torch.testing.assert_close(caffe.lrn_across(maps, size, alpha, beta), across)
    torch.testing.assert_close(caffe.lrn_within(maps, size, alpha, beta), within)


@pytest.mark.parametrize("factor", [1.0, 999.98, 0.0])
@pytest.mark.parametrize("training", [False, True])
def test_batch_normalisation_divides_by_the_factor(factor, training):
    norm, scale = caffe.BatchNorm(3).double().train(training), caffe.Scale(3).double()
    mean, variance = normal(3, seed=1), normal(3, seed=2).square()
    norm.mean.copy_(mean * factor), norm.variance.copy_(variance * factor), norm.factor.fill_(factor)
    scale.gamma.data, scale.beta.data = normal(3, seed=3), normal(3, seed=4)
    maps = normal(2, 3, 4, 5)
    if factor == 0:
        mean, variance = torch.zeros(3), torch.zeros(3)
    for channel in range(3):
        expected = (maps[:, channel] - mean[channel]) / math.sqrt(variance[channel] + 1e-5)
        expected = scale.gamma[channel] * expected + scale.beta[channel]
        torch.testing.assert_close(caffe.normalise(maps, norm, scale)[:, channel], expected)


def test_dropout_that_is_scaled_at_test_time():
    maps = torch.full((1000,), 3.0)
    assert caffe.dropout(maps, 0.25, training=False).unique().tolist() == [3]
    assert caffe.dropout(maps, 0.25, training=True).unique().tolist() == [0, 4]
    assert caffe.dropout(maps, 0.25, training=False, scale_train=False).unique().tolist() == [2.25]
    assert caffe.dropout(maps, 0.25, training=True, scale_train=False).unique().tolist() == [0, 3]


@pytest.mark.parametrize(
    ("size", "shrink", "zoom", "expected"),
    [(513, 2, 1, 257), (513, 4, 3, 385), (33, 1, 2, 65), (49, 3, 4, 65), (65, 1, 8, 513), (10, 3, 2, 7), (1, 1, 8, 1)],
)
def test_interp_is_exact_on_a_bilinear_function(size, shrink, zoom, expected):
    def function(count):
        t = torch.linspace(0, 1, count, dtype=torch.float64)
        return (2 - 3 * t[:, None] + 5 * t + 7 * t[:, None] * t)[None, None]

    maps = caffe.interp(function(size), shrink, zoom)
    torch.testing.assert_close(maps, function(expected), rtol=0, atol=1e-12)


def test_interp_takes_neighbours_in_the_first_maps():
    """Shrinking by 4 and zooming by 3 is one step of 4/3, not the mean of every fourth value."""
    row = normal(1, 1, 1, 9)
    resized = caffe.interp(row, shrink=4, zoom=3)[0, 0, 0]
    expected = [(1 - w) * row[0, 0, 0, i] + w * row[0, 0, 0, min(i + 1, 8)] for i, w in
                [(0, 0), (1, 1 / 3), (2, 2 / 3), (4, 0), (5, 1 / 3), (6, 2 / 3), (8, 0)]]  # fmt: skip
    torch.testing.assert_close(resized, torch.stack(expected))


@pytest.mark.parametrize(
    ("kernel", "profile"),
    [
        (3, [1 / 2, 1, 1 / 2]),
        (4, [1 / 4, 3 / 4, 3 / 4, 1 / 4]),
        (5, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
        (16, [i / 16 for i in (1, 3, 5, 7, 9, 11, 13, 15, 15, 13, 11, 9, 7, 5, 3, 1)]),
    ],
)
def test_bilinear_deconvolution(kernel, profile):
    weight = caffe.deconvolution(3, kernel, 2).weight
    expected = torch.outer(torch.tensor(profile), torch.tensor(profile))
    for i, j in np.ndindex(3, 3):
        torch.testing.assert_close(weight[i, j], expected if i == j else torch.zeros_like(expected))


def test_bilinear_deconvolution_of_a_constant():
    with torch.no_grad():
        maps = caffe.deconvolution(1, 63, 32)(torch.full((1, 1, 3, 3), 5.0))
    torch.testing.assert_close(maps[0, 0, 31:96, 31:96], torch.full((65, 65), 5.0))


def test_crop():
    maps = torch.arange(20.0).reshape(1, 1, 4, 5)
    assert caffe.crop(maps, 1, (2, 3)).tolist() == [[[[6, 7, 8], [11, 12, 13]]]]
    with pytest.raises(ValueError, match="maps of 4 x 5 cannot be cropped to 4 x 4 at offset 1"):
        caffe.crop(maps, 1, (4, 4))


def test_channels_are_turned_round_before_the_mean_is_subtracted():
    image = torch.tensor([10.0, 20.0, 30.0])[None, :, None, None]
    assert caffe.prepare(image, torch.tensor([1.0, 2.0, 3.0])[:, None, None]).flatten().tolist() == [29, 18, 7]


# Networks


class Prototxt:
    """A network in Caffe's words, with random blobs; `forward` is OpenCV's."""

    def __init__(self, height: int, width: int):
        self.random = np.random.default_rng(0)
        self.text = [f'input: "data" input_shape {{ dim: 1 dim: 3 dim: {height} dim: {width} }}']
        self.layers = {}
        self.channels = {"data": 3}

    def add(self, kind: str, name: str, *bottoms: str, parameters: str = "", blobs=(), channels=None, top=None) -> str:
        top = top or name
        below = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
        self.text.append(f'layer {{ name: "{name}" type: "{kind}" {below} top: "{top}" {parameters} }}')
        self.layers[name] = (kind, [np.asarray(blob, np.float32) for blob in blobs])
        self.channels[top] = channels or self.channels[bottoms[0]]
        return top

    def conv(self, name, bottom, outputs, kernel=1, stride=1, pad=0, group=1, dilation=1, bias=True, relu=True) -> str:
        shape = (outputs, self.channels[bottom] // group, kernel, kernel)
        blobs = [self.random.normal(size=shape) * math.sqrt(2 / math.prod(shape[1:]))]
        if bias:
            blobs.append(self.random.normal(size=outputs) * 0.1)
        parameters = (
            f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {pad} "
            f"group: {group} dilation: {dilation} bias_term: {str(bias).lower()} }}"
        )
        self.add("Convolution", name, bottom, parameters=parameters, blobs=blobs, channels=outputs)
        return self.relu(name) if relu else name

    def deconv(self, name, bottom, kernel, stride) -> str:
        channels = self.channels[bottom]
        blobs = [self.random.normal(size=(channels, channels, kernel, kernel)) * stride / kernel]
        parameters = (
            f"convolution_param {{ num_output: {channels} kernel_size: {kernel} stride: {stride} bias_term: false }}"
        )
        return self.add("Deconvolution", name, bottom, parameters=parameters, blobs=blobs)

    def relu(self, name) -> str:
        return self.add("ReLU", f"relu_{name}", name, top=name)

    def pool(self, name, bottom, kernel, stride, pad=0, kind="MAX") -> str:
        parameters = f"pooling_param {{ pool: {kind} kernel_size: {kernel} stride: {stride} pad: {pad} }}"
        return self.add("Pooling", name, bottom, parameters=parameters)

    def lrn(self, name, bottom) -> str:
        return self.add("LRN", name, bottom, parameters="lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")

    def drop(self, name, bottom) -> str:
        return self.add("Dropout", name, bottom, parameters="dropout_param { dropout_ratio: 0.5 }", top=bottom)

    def crop(self, name, bottom, reference, offset) -> str:
        return self.add("Crop", name, bottom, reference, parameters=f"crop_param {{ axis: 2 offset: {offset} }}")

    def eltwise(self, name, *bottoms, operation="SUM") -> str:
        return self.add("Eltwise", name, *bottoms, parameters=f"eltwise_param {{ operation: {operation} }}")

    def interp(self, name, bottom, size) -> str:
        return self.add("Interp", name, bottom, parameters=f"interp_param {{ height: {size} width: {size} }}")

    def file(self, folder, **form):
        return save(folder, caffemodel(self.layers, **form))

    def forward(self, path, inputs: np.ndarray, *names: str) -> list[np.ndarray]:
        text = np.frombuffer("\n".join(self.text).encode(), np.uint8)
        network = cv2.dnn.readNetFromCaffe(text, np.fromfile(path, np.uint8))
        network.setInput(inputs)
        return list(network.forward(list(names)))


ALEXNET = {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256, "fc6": 4096, "fc7": 4096}
NARROW_ALEXNET = {"conv1": 6, "conv2": 8, "conv3": 6, "conv4": 4, "conv5": 6, "fc6": 12, "fc7": 10}
NARROW_VGG16 = {"conv1": 3, "conv2": 4, "conv3": 5, "conv4": 6, "conv5": 7, "fc6": 12, "fc7": 10}
LABELS = (0, 3, 15, 20)
FRAME = 65
FCN_MEAN = (104.00699, 116.66877, 122.67892)
DEEPLAB_MEAN = (104.008, 116.669, 122.675)


def fcn_alexnet_prototxt(height: int, width: int, widths: dict[str, int] = NARROW_ALEXNET, classes=4) -> Prototxt:
    net = Prototxt(height, width)
    top = net.pool("pool1", net.conv("conv1", "data", widths["conv1"], 11, 4, pad=100), 3, 2)
    top = net.conv("conv2", net.lrn("norm1", top), widths["conv2"], 5, pad=2, group=2)
    top = net.conv("conv3", net.lrn("norm2", net.pool("pool2", top, 3, 2)), widths["conv3"], 3, pad=1)
    top = net.conv("conv4", top, widths["conv4"], 3, pad=1, group=2)
    top = net.conv("conv5", top, widths["conv5"], 3, pad=1, group=2)
    top = net.drop("drop6", net.conv("fc6", net.pool("pool5", top, 3, 2), widths["fc6"], 6))
    top = net.drop("drop7", net.conv("fc7", top, widths["fc7"]))
    top = net.deconv("upscore", net.conv("score_fr", top, classes, relu=False), 63, 32)
    net.crop("score", top, "data", 18)
    return net


def vgg16(net: Prototxt, pools: list[dict], pad=1, dilation=1, widths: dict[str, int] = NARROW_VGG16) -> str:
    top = "data"
    for block, layers in enumerate((2, 2, 3, 3, 3), 1):
        spread = dilation if block == 5 else 1
        for layer in range(1, layers + 1):
            margin = pad if block == layer == 1 else spread
            top = net.conv(f"conv{block}_{layer}", top, widths[f"conv{block}"], 3, pad=margin, dilation=spread)
        top = net.pool(f"pool{block}", top, **pools[block - 1])
    return top


def fcn32s_prototxt(height: int, width: int) -> Prototxt:
    net = Prototxt(height, width)
    top = net.conv("fc6", vgg16(net, [{"kernel": 2, "stride": 2}] * 5, pad=100), 12, 7)
    top = net.conv("score_fr", net.conv("fc7", top, 10), 4, relu=False)
    net.crop("score", net.deconv("upscore", top, 64, 32), "data", 19)
    return net


def fcn_with_pool4(height: int, width: int) -> tuple[Prototxt, str]:
    """FCN up to fuse_pool4, the sum of the scores of fc7 and pool4, and the name of this blob."""
    net = Prototxt(height, width)
    top = net.conv("fc6", vgg16(net, [{"kernel": 2, "stride": 2}] * 5, pad=100), 12, 7)
    top = net.conv("score_fr", net.conv("fc7", top, 10), 4, relu=False)
    top = net.deconv("upscore2", top, 4, 2)
    skip = net.crop("score_pool4c", net.conv("score_pool4", "pool4", 4, relu=False), top, 5)
    return net, net.eltwise("fuse_pool4", top, skip)


def fcn16s_prototxt(height: int, width: int) -> Prototxt:
    net, top = fcn_with_pool4(height, width)
    net.crop("score", net.deconv("upscore16", top, 32, 16), "data", 27)
    return net


def fcn8s_prototxt(height: int, width: int) -> Prototxt:
    net, top = fcn_with_pool4(height, width)
    top = net.deconv("upscore_pool4", top, 4, 2)
    skip = net.crop("score_pool3c", net.conv("score_pool3", "pool3", 4, relu=False), top, 9)
    top = net.deconv("upscore8", net.eltwise("fuse_pool3", top, skip), 16, 8)
    net.crop("score", top, "data", 31)
    return net


DEEPLAB_POOLS = [{"kernel": 3, "stride": stride, "pad": 1} for stride in (2, 2, 2, 1, 1)]


def aspp_prototxt(frame: int = FRAME) -> Prototxt:
    net = Prototxt(frame, frame)
    pool5 = vgg16(net, DEEPLAB_POOLS, dilation=2)
    branches = []
    for number, dilation in enumerate((6, 12, 18, 24), 1):
        top = net.drop(f"drop6_{number}", net.conv(f"fc6_{number}", pool5, 12, 3, pad=dilation, dilation=dilation))
        top = net.drop(f"drop7_{number}", net.conv(f"fc7_{number}", top, 10))
        branches.append(net.conv(f"fc8_voc12_{number}", top, 4, relu=False))
    net.interp("score", net.eltwise("fc8_voc12", *branches), frame)
    return net


def large_fov_prototxt(frame: int = FRAME) -> Prototxt:
    net = Prototxt(frame, frame)
    top = net.pool("pool5a", vgg16(net, DEEPLAB_POOLS, dilation=2), 3, 1, pad=1, kind="AVE")
    top = net.conv("fc7", net.conv("fc6", top, 12, 3, pad=12, dilation=12), 10)
    net.interp("score", net.conv("fc8_voc12", top, 4, relu=False), frame)
    return net


def resnet101_prototxt(frame: int = FRAME) -> Prototxt:
    """Three copies of the network with the same blobs, of which two have other names."""
    net = Prototxt(frame, frame)
    scores = []
    for suffix, quarters in (("", 4), ("_res075", 3), ("_res05", 2)):
        net.random = np.random.default_rng(1)
        data = "data" if suffix == "" else net.interp(f"data{suffix}", "data", (frame - 1) * quarters // 4 + 1)
        scores.append(net.interp(f"same{suffix}", _resnet101(net, data, suffix, 2), (frame - 1) // 8 + 1))
    net.interp("score", net.eltwise("fc_fusion", *scores, operation="MAX"), frame)
    return net


def _resnet101(net: Prototxt, top: str, suffix: str, width: int) -> str:
    def unit(name, bottom, outputs, kernel=1, stride=1, dilation=1, relu=True):
        pad = dilation * (kernel // 2)
        short = f"_{name}" if name == "conv1" else name[3:]
        name = net.conv(name + suffix, bottom, outputs, kernel, stride, pad, 1, dilation, bias=False, relu=False)
        factor = net.random.uniform(0.5, 900)
        mean, variance = net.random.normal(size=outputs) * 0.1, net.random.uniform(0.5, 2, outputs)
        blobs = [mean * factor, variance * factor, [factor]]
        net.add("BatchNorm", f"bn{short}{suffix}", name, top=name, blobs=blobs)
        blobs = [net.random.uniform(0.4, 0.8, outputs), net.random.normal(size=outputs) * 0.1]
        net.add("Scale", f"scale{short}{suffix}", name, top=name, parameters="scale_param { bias_term: true }",
                blobs=blobs)  # fmt: skip
        return net.relu(name) if relu else name

    top = net.pool(f"pool1{suffix}", unit("conv1", top, width, 7, 2), 3, 2, pad=1)
    for name in RESNET101:
        stage, block = int(name[0]), f"res{name}"
        outputs, dilation, step = width * 2 ** (stage - 2), {4: 2, 5: 4}.get(stage, 1), 2 if name == "3a" else 1
        shortcut = unit(f"{block}_branch1", top, 4 * outputs, 1, step, relu=False) if name.endswith("a") else top
        top = unit(f"{block}_branch2a", top, outputs, 1, step)
        top = unit(f"{block}_branch2b", top, outputs, 3, dilation=dilation)
        top = unit(f"{block}_branch2c", top, 4 * outputs, relu=False)
        top = net.relu(net.eltwise(f"{block}{suffix}", shortcut, top))
    branches = [
        net.conv(f"fc1_voc12{suffix}_c{number}", top, 4, 3, pad=dilation, dilation=dilation, relu=False)
        for number, dilation in enumerate((6, 12, 18, 24))
    ]
    return net.eltwise(f"fc1_voc12{suffix}", *branches)


# name: (factory of the narrow network, prototxt for an image of some size, what `body` returns, mean)
NETWORKS = {
    "fcn-alexnet": (
        lambda **files: fcn_alexnet(labels=LABELS, widths=NARROW_ALEXNET, **files),
        fcn_alexnet_prototxt,
        "score_fr",
        FCN_MEAN,
    ),
    "fcn8s": (
        lambda **files: fcn8s_vgg16(labels=LABELS, widths=NARROW_VGG16, **files),
        fcn8s_prototxt,
        "fuse_pool3",
        FCN_MEAN,
    ),
    "fcn16s": (
        lambda **files: fcn16s_vgg16(labels=LABELS, widths=NARROW_VGG16, **files),
        fcn16s_prototxt,
        "fuse_pool4",
        FCN_MEAN,
    ),
    "fcn32s": (
        lambda **files: fcn32s_vgg16(labels=LABELS, widths=NARROW_VGG16, **files),
        fcn32s_prototxt,
        "score_fr",
        FCN_MEAN,
    ),
    "aspp": (
        lambda frame=FRAME, **files: deeplab_vgg16(labels=LABELS, widths=NARROW_VGG16, frame=frame, **files),
        lambda height, width: aspp_prototxt(),
        "fc8_voc12",
        DEEPLAB_MEAN,
    ),
    "large-fov": (
        lambda frame=FRAME, **files: deeplab_vgg16(
            head="large-fov", labels=LABELS, widths=NARROW_VGG16, frame=frame, **files
        ),
        lambda height, width: large_fov_prototxt(),
        "fc8_voc12",
        DEEPLAB_MEAN,
    ),
    "resnet101": (
        lambda frame=FRAME, **files: deeplab_resnet101(labels=LABELS, width=2, frame=frame, **files),
        lambda height, width: resnet101_prototxt(),
        "fc_fusion",
        DEEPLAB_MEAN,
    ),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(0, 255, (3, height, width)).astype(np.float32)


def close(ours: torch.Tensor, reference: np.ndarray, tolerance=1e-4) -> None:
    np.testing.assert_allclose(ours.numpy(), reference, rtol=0, atol=tolerance * np.abs(reference).max())


@every_network
@pytest.mark.parametrize(("height", "width"), [(41, 64), (65, 65), (7, 30)])
def test_network_against_opencv(tmp_path, name, height, width):
    factory, prototxt, low, mean = NETWORKS[name]
    net = prototxt(height, width)
    path = net.file(tmp_path)
    network = factory(caffemodel=path).eval().requires_grad_(False)
    image = random_image(height, width)
    inputs = image[::-1] - np.float32(mean)[:, None, None]
    if not name.startswith("fcn"):  # padded right and below
        inputs = np.pad(inputs, [(0, 0), (0, FRAME - height), (0, FRAME - width)])
    scores, low_scores = net.forward(path, inputs[None], "score", low)
    assert np.ptp(scores) > 0.1
    close(network.body(torch.from_numpy(image)[None]), low_scores)
    close(network(torch.from_numpy(image)[None]), scores[:, :, :height, :width])


@pytest.mark.parametrize(
    ("name", "prototxt"),
    [("aspp", aspp_prototxt), ("large-fov", large_fov_prototxt), ("resnet101", resnet101_prototxt)],
)
def test_frame_in_which_the_largest_dilation_counts(tmp_path, name, prototxt):
    frame = 225  # score maps of 29 x 29, dilations of up to 24
    net = prototxt(frame)
    path = net.file(tmp_path)
    network = NETWORKS[name][0](frame=frame, caffemodel=path).eval().requires_grad_(False)
    image = random_image(frame, frame)
    (scores,) = net.forward(path, (image[::-1] - np.float32(DEEPLAB_MEAN)[:, None, None])[None], "score")
    close(network(torch.from_numpy(image)[None]), scores)


def test_alexnet_of_the_older_format(tmp_path):
    """V1 layers, legacy shapes, and fc6 and fc7 still inner products."""
    net = fcn_alexnet_prototxt(20, 30)
    new = fcn_alexnet(net.file(tmp_path), LABELS, NARROW_ALEXNET)
    for layer in ("fc6", "fc7"):
        kind, (weight, bias) = net.layers[layer]
        net.layers[layer] = kind, [weight.reshape(1, 1, len(weight), -1), bias]
    old = fcn_alexnet(net.file(tmp_path, v1=True, legacy=True), LABELS, NARROW_ALEXNET)
    for key, tensor in new.state_dict().items():
        assert torch.equal(tensor, old.state_dict()[key])


@every_network
def test_labels_and_shapes_of_a_batch(tmp_path, name):
    factory, prototxt, _, _ = NETWORKS[name]
    network = factory(caffemodel=prototxt(30, 41).file(tmp_path)).eval().requires_grad_(False)
    images = torch.from_numpy(np.stack([random_image(30, 41), random_image(30, 41) / 2]))
    scores = network(images)
    assert scores.shape == (2, 4, 30, 41)
    close(scores[1:], network(images[1:]).numpy())
    found = network.label_map(images)
    assert found.dtype == torch.uint8
    assert set(found.unique().tolist()) <= set(LABELS)
    assert torch.equal(found, torch.tensor(LABELS, dtype=torch.uint8)[scores.argmax(1)])


@every_network
def test_upsample_is_linear(name):
    network = NETWORKS[name][0]().double().eval().requires_grad_(False)
    size = (33, 47)
    low = network.body(normal(1, 3, *size) * 50 + 120).shape
    a, b = normal(*low, seed=1), normal(*low, seed=2)
    expected = 2 * network.upsample(a, size) - 3 * network.upsample(b, size)
    torch.testing.assert_close(network.upsample(2 * a - 3 * b, size), expected)
    assert network.upsample(torch.zeros(low).double(), size).abs().max() == 0


@every_network
def test_gradient_in_the_image(tmp_path, name):
    factory, prototxt, _, _ = NETWORKS[name]
    network = factory(caffemodel=prototxt(21, 34).file(tmp_path)).double().eval().requires_grad_(False)
    image = torch.from_numpy(random_image(21, 34)).double()[None]
    weights = normal(1, 4, 21, 34, seed=1)
    assert_derivative(lambda x: network(x) * weights, image, step=1e-6)


@pytest.mark.parametrize("name", ["aspp", "large-fov", "resnet101"])
def test_deeplab_pads_with_its_mean_colour(name):
    network = NETWORKS[name][0]().eval().requires_grad_(False)
    image = torch.from_numpy(random_image(40, 50))
    padded = torch.tensor(DEEPLAB_MEAN[::-1])[:, None, None].expand(3, FRAME, FRAME).clone()
    padded[:, :40, :50] = image
    close(network.body(image[None]), network.body(padded[None]).numpy(), 1e-5)
    assert torch.equal(network(image[None]), network.upsample(network.body(image[None]), (FRAME, FRAME))[..., :40, :50])


@every_network
def test_every_weight_can_be_trained(tmp_path, name):
    factory, prototxt, _, _ = NETWORKS[name]
    network = factory(caffemodel=prototxt(40, 50).file(tmp_path)).train()
    (network(torch.from_numpy(random_image(40, 50))[None]) * normal(1, 4, 40, 50).float()).sum().backward()
    for parameter in network.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


def test_frozen_statistics_in_training():
    network = NETWORKS["resnet101"][0]()
    images = torch.from_numpy(random_image(33, 33))[None]
    assert torch.equal(network.train().body(images), network.eval().body(images))


def test_crop_fits_images_of_every_size():
    """Sizes of the score maps by the formulas of the layers; crop raises where one is too small."""
    for length in range(1, 700):
        size = (length + 200 - 11) // 4 + 1
        for _ in range(3):
            size = math.ceil((size - 3) / 2) + 1
        assert 32 * (size - 5 - 1) + 63 >= length + 18
        size = length + 198
        sizes = [size := math.ceil((size - 2) / 2) + 1 for _ in range(5)]
        score2 = 2 * (sizes[4] - 6 - 1) + 4
        assert sizes[3] >= score2 + 5
        score4 = 2 * (score2 - 1) + 4
        assert sizes[2] >= score4 + 9
        assert 8 * (score4 - 1) + 16 >= length + 31


# The full width, on the meta device: shapes without numbers


def full(factory, *arguments, **named) -> nn.Module:
    with torch.device("meta"):
        return factory(*arguments, **named).eval().requires_grad_(False)


def shapes(network: nn.Module) -> dict[str, list[tuple[int, ...]]]:
    """Caffe's layer name -> shapes of its blobs."""
    found = {}
    for key, tensor in network.state_dict().items():
        found.setdefault(key.split(".")[-2], []).append(tuple(tensor.shape))
    return found


def sizes(network: nn.Module, height: int, width: int) -> dict[str, tuple[int, int]]:
    """Layer name -> (H, W) of its output; of the trunk's blocks and of the scores too."""
    found = {}

    def note(name):
        def hook(module, inputs, outputs):
            outputs = outputs if isinstance(outputs, list) else [outputs]
            for number, output in enumerate(outputs, 1):
                key = f"pool{number}" if len(outputs) > 1 else name
                found.setdefault(key, tuple(output.shape[-2:]))

        return hook

    for name, module in network.named_modules():
        if name:
            module.register_forward_hook(note(name.split(".")[-1]))
    with torch.device("meta"):
        found["scores"] = tuple(network(torch.empty(1, 3, height, width)).shape)
    return found


def test_fcn_alexnet_of_full_width():
    network = full(fcn_alexnet)
    assert shapes(network) == {
        "conv1": [(96, 3, 11, 11), (96,)],
        "conv2": [(256, 48, 5, 5), (256,)],
        "conv3": [(384, 256, 3, 3), (384,)],
        "conv4": [(384, 192, 3, 3), (384,)],
        "conv5": [(256, 192, 3, 3), (256,)],
        "fc6": [(4096, 256, 6, 6), (4096,)],
        "fc7": [(4096, 4096, 1, 1), (4096,)],
        "score_fr": [(21, 4096, 1, 1), (21,)],
        "upscore": [(21, 21, 63, 63)],
    }
    found = sizes(network, 500, 500)
    assert [found[layer][0] for layer in ("conv1", "conv2", "conv3", "fc6", "upscore")] == [173, 86, 43, 16, 543]
    assert found["scores"] == (1, 21, 500, 500)
    found = sizes(full(fcn_alexnet), 375, 500)
    assert found["conv1"] == (142, 173)
    assert found["conv2"] == (71, 86)
    assert found["conv3"] == (35, 43)
    assert found["fc6"] == (12, 16)
    assert found["upscore"] == (415, 543)
    assert found["scores"] == (1, 21, 375, 500)


def vgg16_shapes() -> dict:
    widths = {
        f"conv{block}_{layer}": width
        for block, (layers, width) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)], 1)
        for layer in range(1, layers + 1)
    }
    inputs = {after: widths[before] for before, after in pairwise(widths)} | {"conv1_1": 3}
    return {name: [(width, inputs[name], 3, 3), (width,)] for name, width in widths.items()}


def test_fcn8s_of_full_width():
    network = full(fcn8s_vgg16)
    assert shapes(network) == vgg16_shapes() | {
        "fc6": [(4096, 512, 7, 7), (4096,)],
        "fc7": [(4096, 4096, 1, 1), (4096,)],
        "score_fr": [(21, 4096, 1, 1), (21,)],
        "score_pool4": [(21, 512, 1, 1), (21,)],
        "score_pool3": [(21, 256, 1, 1), (21,)],
        "upscore2": [(21, 21, 4, 4)],
        "upscore_pool4": [(21, 21, 4, 4)],
        "upscore8": [(21, 21, 16, 16)],
    }
    layers = ["conv1_1", *(f"pool{i}" for i in range(1, 6)), "fc6", "upscore2", "upscore_pool4", "upscore8"]
    found = sizes(network, 500, 500)
    assert [found[layer][0] for layer in layers] == [698, 349, 175, 88, 44, 22, 16, 34, 70, 568]
    assert all(height == width for height, width in map(found.get, layers))
    found = sizes(full(fcn8s_vgg16), 375, 500)
    assert [found[layer][0] for layer in layers] == [573, 287, 144, 72, 36, 18, 12, 26, 54, 440]
    assert found["scores"] == (1, 21, 375, 500)


@pytest.mark.parametrize(
    ("head", "branches", "values"), [("aspp", ["_1", "_2", "_3", "_4"], 37.9), ("large-fov", [""], 20.5)]
)
def test_deeplab_vgg16_of_full_width(head, branches, values):
    network = full(deeplab_vgg16, head=head)
    expected = vgg16_shapes()
    for branch in branches:
        expected["fc6" + branch] = [(1024, 512, 3, 3), (1024,)]
        expected["fc7" + branch] = [(1024, 1024, 1, 1), (1024,)]
        expected["fc8_voc12" + branch] = [(21, 1024, 1, 1), (21,)]
    assert shapes(network) == expected
    assert count(network) == pytest.approx(values, abs=0.05)
    found = sizes(network, 375, 500)
    layers = ["conv1_1", "pool1", "pool2", "pool3", "pool4", "pool5", f"fc6{branches[0]}", f"fc8_voc12{branches[0]}"]
    assert [found[layer] for layer in layers] == [(size, size) for size in (513, 257, 129, 65, 65, 65, 65, 65)]
    assert found["scores"] == (1, 21, 375, 500)


def test_deeplab_resnet101_of_full_width():
    network = full(deeplab_resnet101)
    found = shapes(network)
    assert len(found) == 3 * 104 + 4
    assert found["conv1"] == [(64, 3, 7, 7)]
    assert found["bn_conv1"] == [(64,), (64,), (1,)]
    assert found["scale_conv1"] == [(64,), (64,)]
    assert found["res2a_branch1"] == [(256, 64, 1, 1)]
    assert found["res3a_branch2a"] == [(128, 256, 1, 1)]
    assert found["res4b7_branch2b"] == [(256, 256, 3, 3)]
    assert found["bn4b7_branch2b"] == [(256,), (256,), (1,)]
    assert found["res5c_branch2c"] == [(2048, 512, 1, 1)]
    assert found["scale5c_branch2c"] == [(2048,), (2048,)]
    assert found["fc1_voc12_c3"] == [(21, 2048, 3, 3), (21,)]
    assert 3 * count(network) == pytest.approx(132.5, abs=0.05)
    strided = [name for name, module in network.trunk.items() if getattr(module, "stride", (1, 1)) == (2, 2)]
    assert strided == ["conv1", "res3a_branch1", "res3a_branch2a"]
    found = sizes(network, 375, 500)
    assert found["conv1"] == (257, 257)
    assert found["fc1_voc12_c0"] == (65, 65)
    assert found["scores"] == (1, 21, 375, 500)


@pytest.mark.parametrize(("factory", "values"), [(fcn_alexnet, 58.7), (fcn8s_vgg16, 134.5)])
def test_millions_of_values_of_an_fcn(factory, values):
    assert count(full(factory)) == pytest.approx(values, abs=0.05)


def count(network: nn.Module) -> float:
    return sum(tensor.numel() for tensor in network.state_dict().values()) / 1e6


@pytest.mark.slow
def test_fcn_alexnet_of_full_width_against_opencv(tmp_path):
    net = fcn_alexnet_prototxt(40, 60, ALEXNET, classes=21)
    path = net.file(tmp_path)
    network = build("dag.networks.caffe.fcn:fcn_alexnet", files={"caffemodel": path})
    image = random_image(40, 60)
    (scores,) = net.forward(path, (image[::-1] - np.float32(FCN_MEAN)[:, None, None])[None], "score")
    close(network(torch.from_numpy(image)[None]), scores)


# Bad input


def test_files_of_related_networks_are_refused(tmp_path):
    net = fcn8s_prototxt(9, 9)
    net.layers["scale_pool4"] = ("Scale", [np.full(6, 0.01, np.float32)])
    path = net.file(tmp_path)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: layer 'scale_pool4' has weights but no place"):
        fcn8s_vgg16(path, LABELS, NARROW_VGG16)
    path = large_fov_prototxt().file(tmp_path)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: layer 'fc6_1' is missing"):
        deeplab_vgg16(path, labels=LABELS, widths=NARROW_VGG16)
    with pytest.raises(ValueError, match=r"blob 0 of layer 'fc8_voc12' has the shape \(4, 10, 1, 1\) instead of \(21,"):
        deeplab_vgg16(path, "large-fov", widths=NARROW_VGG16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: deeplab_vgg16(head="crf"), "there is no head 'crf'; choose one of aspp, large-fov"),
        (lambda: deeplab_vgg16(frame=500), "frame: 500 is not 32 n"),
        (lambda: deeplab_resnet101(frame=512, width=2), "frame: 512 is not 32 n"),
        (lambda: fcn_alexnet(widths={"fc8": 3}), "widths: there is no layer 'fc8'; known are conv1, conv2"),
        (lambda: NETWORKS["aspp"][0]()(torch.zeros(1, 3, 66, 40)), "an image of 66 x 40 does not fit into .* 65 x 65"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
