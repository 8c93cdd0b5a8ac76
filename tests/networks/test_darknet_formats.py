"""Small networks with the structure of published cfg files against OpenCV, and single layers against Darknet's C code.

Random weights are written in Darknet's layout.  Where OpenCV differs from Darknet, the expectation is the C code,
written out here in loops.
"""

import copy
import itertools
import math

import cv2
import numpy as np
import pytest
import torch
from finite_differences import assert_derivative
from test_darknet import images, logit, write

from dag.networks import darknet_layers
from dag.networks.building import build
from dag.networks.darknet_files import Section

torch.set_num_threads(1)
cv2.setNumThreads(1)


class Net:
    """A cfg and its weights, layer by layer."""

    def __init__(self, seed: int = 0, **net):
        self.random = np.random.default_rng(seed)
        self.numbers = []
        self.text = ""
        self.add("net", **{"width": 64, "height": 64, "channels": 3, **net})

    def add(self, kind: str, **options):
        self.text += "\n".join([f"[{kind}]", *(f"{name}={value}" for name, value in options.items())]) + "\n\n"
        return self

    def conv(self, inputs: int, filters: int, size: int = 1, activation="leaky", norm=1, pad=1, bias=0.0, **options):
        """A convolution over `inputs` channels (of a group)."""
        options |= {"batch_normalize": norm} if norm else {}
        self.add("convolutional", filters=filters, size=size, pad=pad, activation=activation, **options)
        normal = self.random.normal
        self.numbers.append(bias + 0.3 * normal(size=filters))
        if norm:
            parts = [normal(1, 0.2, filters), 0.3 * normal(size=filters), self.random.uniform(0.5, 2, filters)]
            self.numbers += parts
        fan = inputs * size * size
        self.numbers.append(normal(size=filters * fan) * (2 / fan) ** 0.5)
        return self

    def files(self, folder, **options):
        return write(folder, self.text, np.concatenate([np.ravel(part) for part in self.numbers]), **options)


def tiny_yolo_voc():
    """YOLOv2 tiny: six poolings, the last with stride 1, and a [region] layer."""
    net = Net(
        subdivisions=8, momentum=0.9, decay=0.0005, angle=0, saturation=1.5, policy="steps", steps="1,2", scales="1"
    )
    channels = 3
    for number, filters in enumerate((4, 4, 6, 6, 8, 8)):
        net.conv(channels, filters, 3, stride=1).add("maxpool", size=2, stride=2 if number < 5 else 1)
        channels = filters
    net.conv(8, 8, 3, stride=1).conv(8, 14, activation="linear", norm=0, stride=1)
    return region(net, num=2, anchors="1.08,1.19,  0.6,0.41")


def region(net, **options):
    training = dict(bias_match=1, jitter=0.2, rescore=1, object_scale=5, noobject_scale=1, class_scale=1, coord_scale=1)
    return net.add("region", classes=2, coords=4, softmax=1, absolute=1, thresh=0.6, random=0, **training, **options)


def yolov2_voc():
    """The passthrough of YOLOv2: [reorg] of an early map beside the late one."""
    net = Net(height=64, width=96)
    net.conv(3, 8, 3, stride=2).conv(8, 8, 3, stride=2).add("maxpool", size=2, stride=2)
    net.conv(8, 8, 3, stride=1).add("maxpool", size=2, stride=2).conv(8, 6, 3, stride=1)
    net.add("route", layers=-3).conv(8, 4, stride=1).add("reorg", stride=2).add("route", layers="-1,-4")
    net.conv(16 + 6, 8, 3, stride=1).conv(8, 14, activation="linear", norm=0)
    return region(net, num=2, anchors="1.3221, 1.73145, 3.19275, 4.00944")


def head(net, inputs: int, mask: str = "0,1", **options):
    net.conv(inputs, 14, activation=options.pop("activation", "linear"), norm=0, stride=1)
    return net.add("yolo", mask=mask, anchors="10,14,  23,27,  37,58, 81,82", classes=2, num=4, jitter=0.3, **options)


def yolov3_tiny():
    net = Net()
    net.conv(3, 4, 3, stride=1).add("maxpool", size=2, stride=2).conv(4, 6, 3, stride=2).conv(6, 8, 3, stride=2)
    net.add("maxpool", size=2, stride=2).conv(8, 8, 3).add("maxpool", size=2, stride=1).conv(8, 8, 1)
    head(net, 8, "2,3", ignore_thresh=0.7, truth_thresh=1, random=1)
    net.add("route", layers="-3").conv(8, 4).add("upsample", stride=2).add("route", layers="-1,3")
    return head(net, 4 + 8)


def yolov4_tiny():
    """Cross-stage partial blocks: [route] with groups."""
    net = Net(mosaic=1)
    net.conv(3, 8, 3, stride=2).conv(8, 8, 3, stride=2).conv(8, 8, 3, stride=1)
    net.add("route", layers=-1, groups=2, group_id=1).conv(4, 4, 3).conv(4, 4, 3).add("route", layers="-1,-2")
    net.conv(8, 8).add("route", layers="-6,-1").add("maxpool", size=2, stride=2).conv(16, 8, 3)
    return head(net, 8, scale_x_y=1.05, cls_normalizer=1.0, iou_normalizer=0.07, iou_loss="ciou", nms_kind="greedynms")


def enet_coco():
    """EfficientNet-B0-YOLOv3: squeeze and excitation by [avgpool] and [scale_channels], and swish."""
    net = Net()
    net.conv(3, 8, 3, "swish", stride=2).conv(1, 8, 3, "swish", stride=2, groups=8)
    net.add("avgpool").conv(8, 4, 1, "swish", norm=0, stride=1).conv(4, 8, 1, "logistic", norm=0, stride=1)
    net.add("scale_channels", **{"from": -4}).conv(8, 8, 1, "linear").conv(8, 8, 3, "swish", stride=1)
    net.add("dropout", probability=0.2).add("shortcut", **{"from": -3}, activation="linear").conv(8, 8, 3, stride=2)
    return head(net, 8)


def yolov4():
    """mish, and spatial pyramid pooling."""
    net = Net(width=64, height=96)
    net.conv(3, 8, 3, "mish", stride=2).conv(8, 8, 3, "mish", stride=2).conv(8, 8, 1, "mish")
    net.conv(8, 8, 3, "mish").add("shortcut", **{"from": -3}, activation="linear").conv(8, 8, 3, "mish", stride=2)
    net.add("maxpool", stride=1, size=5).add("route", layers=-2).add("maxpool", stride=1, size=9)
    net.add("route", layers="-1,-3,-4").conv(24, 8)
    return head(net, 8, scale_x_y=1.2)


def yolov4_csp():
    """Heads with new_coords behind a sigmoid."""
    net = Net().conv(3, 8, 3, "swish", stride=4).conv(8, 8, 3, "swish", stride=4)
    return head(net, 8, activation="logistic", new_coords=1, scale_x_y=2.0)


STRUCTURES = [tiny_yolo_voc, yolov2_voc, yolov3_tiny, yolov4_tiny, enet_coco, yolov4, yolov4_csp]
LABELS = {"labels": (12, 15)}


def network_of(files, **arguments):
    return build("dag.networks.darknet:yolo", {**LABELS, **arguments}, files)


def opencv_rows(files, image: torch.Tensor, anchors: int = 2) -> np.ndarray:
    """(x, y, width, height, objectness, confidences) of all anchors, in the order of this project.

    OpenCV sets confidences up to `thresh` to 0, a number that concerns training alone in Darknet.
    """
    cfg = files["cfg"].with_name("opencv.cfg")
    text = files["cfg"].read_text().replace("thresh=0.6\n", "")
    cfg.write_text(text.replace("classes=2\n", "classes=2\nthresh=0\n"))
    other = cv2.dnn.readNetFromDarknet(str(cfg), str(files["weights"]))
    other.setInput((image / 255).numpy())
    heads = other.forward(other.getUnconnectedOutLayersNames())
    return np.concatenate([rows.reshape(-1, anchors, 7).transpose(1, 0, 2).reshape(-1, 7) for rows in heads])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("version", "seen"), [((0, 1, 0), 4), ((0, 2, 0), 8), ((0, 2, 5), 8)])
def test_heads_agree_with_opencv(tmp_path, structure, version, seen):
    files = structure().files(tmp_path, version=version, seen=b"\7" * seen)
    network = network_of(files)
    image = images(*network.frame)
    theirs = opencv_rows(files, image)
    rows = network.features(image).rows[0]
    boxes = network._boxes(rows, (1, 1)).numpy()
    np.testing.assert_allclose((boxes[:, :2] + boxes[:, 2:]) / 2, theirs[:, :2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], theirs[:, 2:4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows[:, 4].sigmoid(), theirs[:, 4], rtol=1e-4)
    confidence, shown = network._confidence(rows).numpy(), theirs[:, 5:] > 0
    # in a [region] layer OpenCV also suppresses, at an IoU of 0.4
    assert shown.all() or (network.softmax and shown.mean() > 0.5)
    np.testing.assert_allclose(confidence[shown], theirs[:, 5:][shown], rtol=1e-4)
    assert np.ptp(rows[:, 5:].numpy(), axis=0).min() > 0.1  # the image matters


def trunk(activation: str = "leaky", first: int = 8):
    return Net().conv(3, first, 3, activation, stride=8).conv(first, 8, 3, activation)


@pytest.mark.parametrize(
    "net",
    [
        *(trunk(activation) for activation in ("linear", "relu", "leaky", "logistic", "tanh", "swish", "mish")),
        trunk().add("shortcut", **{"from": -2}, activation="leaky"),
        trunk().add("shortcut", **{"from": -2}, activation="swish"),
        trunk(first=6).add("shortcut", **{"from": -2}, activation="linear"),
        trunk(first=10).add("shortcut", **{"from": -2}, activation="linear"),
        trunk().add("sam", **{"from": -2}),
        trunk().add("maxpool", size=3, stride=2, padding=1),
        trunk().add("avgpool").conv(8, 8).add("scale_channels", **{"from": -3}, activation="leaky"),
    ],
)
def test_layers_agree_with_opencv(tmp_path, net):
    files = head(copy.deepcopy(net), 8).files(tmp_path)
    network = network_of(files)
    image = images(*network.frame)
    rows = network.features(image).rows[0]
    np.testing.assert_allclose(rows[:, 4].sigmoid(), opencv_rows(files, image)[:, 4], rtol=1e-4)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradient_of_the_class_logits(tmp_path, structure):
    """In a random direction against a central difference, float64."""
    network = network_of(structure().files(tmp_path), letter_box=structure is yolov3_tiny).double()
    image = images(50, 37)
    proposals = network.propose(network.features(image.double()), nms=0.9, limit=20)
    factors = torch.randn(len(proposals[0]), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    assert_derivative(lambda x: network.scores(network.features(x), proposals) * factors, image.double(), step=1e-7)


# Layers without weights


def layer(kind: str, *inputs, **options) -> np.ndarray:
    section = Section(kind, 1, {name: str(value) for name, value in options.items()})
    inputs = [torch.as_tensor(values).float() for values in inputs]
    kind = darknet_layers.check(section)
    return darknet_layers.function(kind, section, [values.to("meta") for values in inputs])(*inputs).numpy()


def maps(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


C = {  # activations.h and activations.c
    "linear": lambda x: x,
    "logistic": lambda x: 1 / (1 + math.exp(-x)),
    "loggy": lambda x: 2 / (1 + math.exp(-x)) - 1,
    "relu": lambda x: x * (x > 0),
    "relu6": lambda x: min(max(x, 0), 6),
    "elu": lambda x: (x >= 0) * x + (x < 0) * (math.exp(x) - 1),
    "selu": lambda x: (x >= 0) * 1.0507 * x + (x < 0) * 1.0507 * 1.6732 * (math.exp(x) - 1),
    "relie": lambda x: x if x > 0 else 0.01 * x,
    "ramp": lambda x: x * (x > 0) + 0.1 * x,
    "leaky": lambda x: x if x > 0 else 0.1 * x,
    "revleaky": lambda x: x if x > 0 else 0.1 * x,
    "tanh": lambda x: 2 / (1 + math.exp(-2 * x)) - 1,
    "gelu": lambda x: 0.5 * x * (1 + math.tanh(0.797885 * x + 0.035677 * x**3)),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "mish": lambda x: x * math.tanh(math.log(1 + math.exp(x))),
    "hard_mish": lambda x: x if x > 0 else x * x / 2 + x if x > -2 else 0,
    "hardtan": lambda x: min(max(x, -1), 1),
    "lhtan": lambda x: 0.001 * x if x < 0 else 0.001 * (x - 1) + 1 if x > 1 else x,
    "plse": lambda x: 0.01 * (x + 4) if x < -4 else 0.01 * (x - 4) + 1 if x > 4 else 0.125 * x + 0.5,
    "stair": lambda x: (
        math.floor(x / 2) if math.floor(x) % 2 == 0 else x - math.floor(x) + math.floor(x / 2)
    ),
}  # fmt: skip
GRID = torch.linspace(-7.13, 7.21, 57, dtype=torch.float64)  # no kink on it


def test_every_activation_has_its_formula():
    assert set(C) == set(darknet_layers.ACTIVATIONS)


@pytest.mark.parametrize("name", C)
def test_activations_and_their_derivatives(name):
    function = darknet_layers.ACTIVATIONS[name]()
    x = GRID.clone().requires_grad_()
    y = function(x.clone())
    np.testing.assert_allclose(y.detach(), [C[name](value) for value in GRID.tolist()], rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    differences = [(C[name](value + 1e-6) - C[name](value - 1e-6)) / 2e-6 for value in GRID.tolist()]
    # rounding of a difference of values up to 10: 10 * 2^-53 / 1e-6
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)


def test_reorg_is_the_loop_of_blas_c():
    stride, channels, height, width = 2, 8, 4, 6
    values = maps(1, channels, height, width)
    source, expected, back = values.ravel(), np.empty(values.size, "f4"), np.empty(values.size, "f4")
    deep = channels // stride**2
    for k, j, i in itertools.product(range(channels), range(height), range(width)):
        offset = k // deep
        x, y = i * stride + offset % stride, j * stride + offset // stride
        here = i + width * (j + height * k)
        there = x + width * stride * (y + height * stride * (k % deep))
        expected[here] = source[there]
        back[there] = source[here]
    found = layer("reorg", values, stride=2)
    assert found.shape == (1, 32, 2, 3) and (found.ravel() == expected).all()
    found = layer("reorg", values, stride=2, reverse=1)
    assert found.shape == (1, 2, 8, 12) and (found.ravel() == back).all()


def test_route_takes_a_group_of_every_source():
    first, second = maps(2, 4, 3, 3), maps(2, 6, 3, 3)
    found = layer("route", first, second, layers="-1,-2", groups=2, group_id=1)
    np.testing.assert_array_equal(found, np.concatenate([first[:, 2:], second[:, 3:]], 1))
    np.testing.assert_array_equal(layer("route", first, second, layers="-1,-2"), np.concatenate([first, second], 1))


def test_shortcut_of_several_sources_and_unequal_channels():
    first, small, large = maps(2, 4, 3, 3), maps(2, 3, 3, 3, seed=1), maps(2, 6, 3, 3, seed=2)
    expected = first + large[:, :4]
    expected[:, :3] += small
    found = layer("shortcut", first, small, large, **{"from": "-3,-4"}, activation="leaky")
    np.testing.assert_allclose(found, np.where(expected > 0, expected, 0.1 * expected), rtol=1e-5, atol=1e-6)


def test_scale_channels_and_sam():
    scales, wide = maps(2, 4, 1, 1), maps(2, 4, 3, 5, seed=1)
    np.testing.assert_allclose(layer("scale_channels", scales, wide, **{"from": -4}), scales * wide)
    found = layer("sam", wide, wide, **{"from": -2}, activation="relu")
    np.testing.assert_allclose(found, wide * wide)


def test_pooling():
    values = maps(2, 3, 5, 4)
    np.testing.assert_allclose(layer("avgpool", values), values.mean((2, 3), keepdims=True), rtol=1e-5, atol=1e-7)
    found = layer("local_avgpool", values, size=2, stride=2)
    assert found.shape == (2, 3, 3, 2)  # (5 + 1 - 2) / 2 + 1 rows; the window in the last one sees one row
    np.testing.assert_allclose(found[..., 0, 0], values[..., :2, :2].mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found[..., 2, 1], values[..., 4:, 2:].mean((2, 3)), rtol=1e-5)
    found = layer("maxpool", values, size=2, stride_x=1, stride_y=2)
    assert found.shape == (2, 3, 3, 4)
    np.testing.assert_array_equal(found[..., 1, 3], values[..., 2:4, 3].max(2))


def test_upsample_softmax_and_activation():
    values = maps(2, 4, 2, 3)
    np.testing.assert_allclose(layer("upsample", values, stride=3, scale=0.5), 0.5 * values.repeat(3, 2).repeat(3, 3))
    power = np.exp(values.reshape(2, 3, 8) / 2)
    expected = (power / power.sum(2, keepdims=True)).reshape(values.shape)
    np.testing.assert_allclose(layer("softmax", values, groups=3, temperature=2), expected, rtol=1e-5)
    tensor = torch.from_numpy(values.copy())
    np.testing.assert_allclose(layer("activation", tensor, activation="relu"), values.clip(0))
    assert (tensor.numpy() == values).all()  # another layer may read it


def test_dilated_convolution():
    """im2col of Darknet pads by dilation * pad."""
    section = Section("convolutional", 1, dict(filters="1", size="3", pad="1", dilation="2", activation="linear"))
    function = darknet_layers.convolution(section, 1)
    kernel, image = maps(3, 3), maps(5, 6, seed=1)
    rest = darknet_layers.fill(function[0], section, np.concatenate([[0], kernel.ravel(), [7]]), "a")
    assert rest.tolist() == [7]
    padded = np.pad(image, 2)
    expected = sum(kernel[i, j] * padded[2 * i : 2 * i + 5, 2 * j : 2 * j + 6] for i in range(3) for j in range(3))
    np.testing.assert_allclose(function(torch.from_numpy(image)[None, None])[0, 0].detach(), expected, atol=1e-5)


# Heads


def region_head(folder, biases, **arguments):
    """Raw output `biases` (7,) in every cell of 3 x 2 for a frame of 48 x 32; the anchor is 1.5 x 0.5 cells."""
    net = Net(width=48, height=32).conv(3, 7, activation="linear", norm=0, stride=16)
    net.numbers = [*biases, *[0] * 21]
    return network_of(region(net, num=1, anchors="1.5,0.5").files(folder), **arguments)


def test_region_detections_by_hand(tmp_path):
    """`get_region_detections`: objectness x softmax over the classes; anchors in cells."""
    network = region_head(tmp_path, [logit(0.75), logit(0.5), 0, np.log(2), logit(0.5), 1.0, 3.0], nms=1)
    features = network.features(images(32, 48))
    proposals = network.propose(features, nms=1, limit=10)
    scores = network.scores(features, proposals)
    np.testing.assert_allclose(scores, [[1, 3]] * 6, rtol=1e-6)  # before softmax, whatever the objectness
    softmax = [math.exp(1) / (math.exp(1) + math.exp(3)), math.exp(3) / (math.exp(1) + math.exp(3))]
    np.testing.assert_allclose(network.probabilities(scores), [softmax] * 6, rtol=1e-6)
    np.testing.assert_allclose(network.confidence(features, proposals), [[0.5 * p for p in softmax]] * 6, rtol=1e-6)
    found = network.detect(images(32, 48))[0]
    assert len(found.boxes) == 12
    first = found.boxes[found.labels == 15]
    # centre ((column + 0.75) * 16, (row + 0.5) * 16), 24 x 16 pixels, cut at the border
    expected = [[max(0, x - 12), y - 8, min(47, x + 12), min(31, y + 8)] for y in (8, 24) for x in (12, 28, 44)]
    order = sorted(range(6), key=lambda row: (first[row, 1].item(), first[row, 0].item()))
    np.testing.assert_allclose(first[order], expected, atol=1e-4)


def test_letter_box(tmp_path):
    """An image of 10 x 7 in a frame of 48 x 32: 45 x 32, with 1 grey column left and 2 right."""
    net = Net(width=48, height=32, letter_box=1).conv(3, 7, activation="linear", norm=0, stride=1)
    net.numbers = [np.zeros(7), np.ones((7, 3))]
    files = net.add("yolo", mask=0, anchors="9,10", classes=2, num=1).files(tmp_path)
    network, image = network_of(files), images(7, 10)
    resized = torch.nn.functional.interpolate(image, (32, 45), mode="bilinear", align_corners=False) / 255
    map_ = network.maps(image)[0][0, 0]
    assert map_.shape == (32, 48)
    np.testing.assert_allclose(map_[:, 1:46], resized[0].sum(0), rtol=1e-5)
    assert map_[:, 0].tolist() == [1.5] * 32 and (map_[:, 46:] == 1.5).all()
    assert network_of(files, letter_box=False).maps(image)[0][0, 0, :, 0].tolist() != [1.5] * 32

    # `correct_yolo_boxes`, with its 3 / 2 = 1.5 columns of border
    rows = network.features(image).rows[0]
    boxes = network._boxes(rows, (7, 10)).numpy()
    x = ((20 + 1 / (1 + math.exp(-rows[20, 0]))) / 48 - 3 / 2 / 48) / (45 / 48)
    width = math.exp(rows[20, 2]) * 9 / 48 / (45 / 48)
    np.testing.assert_allclose(boxes[20, [0, 2]], [10 * (x - width / 2), 10 * (x + width / 2)], rtol=1e-5)
    height = math.exp(rows[20, 3]) * 10 / 32
    np.testing.assert_allclose(boxes[20, 3] - boxes[20, 1], 7 * height, rtol=1e-5)
    upright = network_of(files)._fitted((100, 3))
    assert upright == (32, 1)


def diou_sort(boxes, scores, columns, threshold: float, beta: float) -> list[int]:
    """`diounms_sort` and `box_diounms` of Darknet's box.c, in loops."""
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    kept = set(order)
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            if not {i, j} <= kept or columns[i] != columns[j]:
                continue
            a, b = boxes[i], boxes[j]
            wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
            high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
            c = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
            d = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
            if wide * high / union - (d / c) ** beta > threshold:
                kept.remove(j)
    return [row for row in order if row in kept]


def test_diou_suppression_is_the_loop_of_box_c(tmp_path):
    arguments = dict(score_threshold=0.1, nms=0.2)
    found = {}
    for kind in ("greedynms", "diounms"):
        net = Net(width=64, height=64).conv(3, 8, 3, stride=8)
        network = network_of(head(net, 8, nms_kind=kind, beta_nms=0.7).files(tmp_path), **arguments)
        found[kind] = network.detect(images(48, 80))[0]
    assert len(found["greedynms"].boxes) < len(found["diounms"].boxes)
    features = network.features(images(48, 80))
    confidence = network._confidence(features.rows[0])
    rows, columns = (confidence > 0.1).nonzero(as_tuple=True)
    boxes, scores = network._boxes(features.rows[0], (1, 1))[rows], confidence[rows, columns]
    kept = diou_sort(boxes.tolist(), scores.tolist(), columns.tolist(), 0.2, 0.7)
    assert 5 < len(kept) < len(scores)
    np.testing.assert_allclose(found["diounms"].scores, scores[kept])
    assert found["diounms"].labels.tolist() == [(12, 15)[column] for column in columns[kept].tolist()]
    network.score_threshold = 1.0
    assert network.detect(images(48, 80))[0].boxes.shape == (0, 4)


def test_classes_that_voc_does_not_have_are_left_out(tmp_path):
    files = head(Net().conv(3, 8, 3, stride=8), 8).files(tmp_path)
    both, one = network_of(files), network_of(files, labels=(None, 15))
    image = images(40, 50)
    assert one.labels == (15,)
    np.testing.assert_array_equal(one.features(image).rows, both.features(image).rows[..., [0, 1, 2, 3, 4, 6]])
    mine, theirs = one.detect(image)[0], both.detect(image)[0]
    np.testing.assert_array_equal(mine.boxes, theirs.boxes[theirs.labels == 15])
    with pytest.raises(ValueError, match=r"the softmax of a \[region\] layer is over all classes"):
        network_of(tiny_yolo_voc().files(tmp_path), labels=(None, 15))


# Refusals


def refused(folder, net: Net, match: str, **options):
    with pytest.raises(ValueError, match=match) as error:
        network_of(net.files(folder, **options))
    message = str(error.value)
    assert "\n" not in message and "tiny." in message and len(message) < 500


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(width=10**30), r"tiny.cfg, \[net\], line 1: option width=1000.* is not made of whole numbers"),
        (dict(width=70000), "option width=70000 is not a number from 1 to 65535"),
        (dict(width=60000, height=60000), r"layer 0 \[convolutional\], line 6: its output .* is too large"),
        (dict(width=0), "option width=0 is not a number from 1"),
        (dict(height=-64), "option height=-64 is not a number from 1"),
        (dict(height="nan"), "option height=nan is not made of whole numbers"),
        (dict(height="64.5"), "option height=64.5 is not made of whole numbers"),
        (dict(height="6_4"), "option height=6_4 is not made of whole numbers"),
        (dict(height="64,64"), "option height=64,64 is not a number from 1"),
        (dict(whiten=1), r"tiny.cfg, \[net\], line 1: option whiten is not supported"),
        (dict(time_steps=3), "option time_steps=3 is not supported, only time_steps=1"),
        (dict(inputs=7), "option inputs is not supported"),
    ],
)
def test_options_of_the_net_are_refused(tmp_path, change, match):
    refused(tmp_path, head(Net(**change).conv(3, 8, 3), 8), match)


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("connected", dict(output=7), r"layer 1 \[connected\], line 13: this kind of layer is not supported"),
        ("reorg3d", {}, "this kind of layer is not supported"),
        ("maxpool", dict(size=-2), "option size=-2 is not a number from 1"),
        ("maxpool", dict(size=2, padding=9), "padding=9 lets a window of 2 cover only padding"),
        ("maxpool", dict(maxpool_depth=1), "option maxpool_depth=1 is not supported, only maxpool_depth=0"),
        ("upsample", dict(stride=0), "option stride=0 is not a number from 1"),
        ("upsample", dict(stride=60000), "is too large"),
        ("upsample", dict(scale="1e400"), "option scale has a number that is too large"),
        ("upsample", dict(scale="1,2"), "option scale=1,2 is not a single number"),
        ("reorg", dict(stride=3), "8 channels of 64 x 64 cannot be rearranged with stride 3"),
        ("route", dict(layers=-1, groups=3), r"group_id=0 of groups=3 does not fit \[8\] channels"),
        ("route", dict(layers=-1, groups=2, group_id=2), "group_id=2 of groups=2 does not fit"),
        ("route", dict(layers=1), "it reads a layer that does not come before it"),
        ("route", {}, "option layers is missing"),
        ("scale_channels", {"from": -1}, "outputs of the shapes 8 x 64 x 64 and 8 x 64 x 64 cannot be multiplied"),
        ("sam", {"from": -1, "activation": "mish"}, "activation mish does nothing in this layer"),
        ("shortcut", {"from": -1, "weights_type": "per_channel"}, "option weights_type=per_channel is not supported"),
        ("softmax", dict(groups=3), "groups=3 and temperature=1.0 do not fit"),
        ("convolutional", dict(size=3, dilation=2), "dilation=2 with size=3 and a padding of 0 is not supported"),
        ("convolutional", dict(flipped=1), "option flipped=1 is not supported"),
        ("convolutional", dict(share_index=0), "option share_index is not supported"),
        ("convolutional", dict(filters=65535, size=63), "tiny.weights ends before this layer is complete"),
        ("convolutional", dict(size=99), "too small|smaller|than actual input size"),
    ],
)  # fmt: skip
def test_layers_are_refused(tmp_path, kind, options, match):
    refused(tmp_path, head(Net().conv(3, 8, 3).add(kind, **options), 8), match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(mask="-1,0"), r"anchors \[-1, 0\] are requested, but option anchors has 4"),
        (dict(scale_x_y=0), "option scale_x_y=0.0 is not positive"),
        (dict(scale_x_y="inf"), "option scale_x_y=inf is not made of numbers"),
        (dict(new_coords=1), "new_coords needs activation=logistic in the convolution before it"),
        (dict(nms_kind="cornersnms"), "nms_kind cornersnms is not supported"),
        (dict(nms_kind="diounms", beta_nms="x"), "option beta_nms=x is not made of numbers"),
        (dict(map="coco9k.map"), "option map is not supported"),
        (dict(embedding_layer=3), "option embedding_layer is not supported"),
    ],
)
def test_heads_are_refused(tmp_path, options, match):
    refused(tmp_path, head(Net().conv(3, 8, 3), 8, **options), match)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("softmax=1", "softmax=0", "only softmax=1 and coords=4 are supported"),
        ("coords=4", "coords=8", "only softmax=1 and coords=4 are supported"),
        ("softmax=1", "softmax=1\ntree=9k.tree", "option tree is not supported"),
        ("softmax=1", "softmax=1\nbackground=1", "option background=1 is not supported"),
        ("anchors=1.08,1.19", "anchors=-1.08,1.19", "pairs of positive numbers"),
        ("anchors=1.08,1.19,", "anchors=1.08,", "pairs of positive numbers"),
        ("num=2", "num=3", r"anchors \[0, 1, 2\] are requested, but option anchors has 2"),
        ("num=2", "num=1", "14 channels are not 1 anchors"),
    ],
)
def test_region_heads_are_refused(tmp_path, old, new, match):
    net = tiny_yolo_voc()
    assert old in net.text
    net.text = net.text.replace(old, new)
    refused(tmp_path, net, match)


def test_a_damaged_cfg_ends_in_one_sentence(tmp_path):
    """Lines that are lost, exchanged or changed are harmless or a ValueError with the name of the file."""
    random = np.random.default_rng(0)
    values = ["-1", "0", "2", "99999", "1" * 30, "nan", "1e9", "", "x", "-1,-2", "0.5", ",", "\u0661", "0x10"]
    messages = []
    for _ in range(150):
        net = STRUCTURES[random.integers(len(STRUCTURES))]()
        lines = net.text.splitlines()
        first, second = random.integers(len(lines), size=2)
        change = random.integers(3)
        if change == 0:
            del lines[first]
        elif change == 1:
            lines[first], lines[second] = lines[second], lines[first]
        else:
            lines[first] = lines[first].partition("=")[0] + "=" + random.choice(values)
        net.text = "\n".join(lines)
        try:
            network_of(net.files(tmp_path)).detect(images(20, 30))
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all("tiny." in message and "\n" not in message for message in messages)


def test_nobody_reads_a_head(tmp_path):
    net = head(Net().conv(3, 8, 3), 8).conv(14, 8)
    refused(tmp_path, head(net, 8), r"layer 3 \[convolutional\], .*it reads the output of a head")
    net = head(Net().conv(3, 8, 3), 8, activation="logistic", new_coords=1).add("route", layers=-2)
    refused(tmp_path, head(net, 14), r"layer 3 \[route\], .*it reads the output of a head")


def test_heads_of_two_kinds_are_refused(tmp_path):
    net = head(Net().conv(3, 8, 3), 8).add("route", layers=0)
    net = region(net.conv(8, 14, norm=0, activation="linear"), num=2, anchors="1,1,2,2")
    refused(tmp_path, net, "heads are of different kinds")


def test_an_unknown_version_of_weights_is_refused(tmp_path):
    for version in ((0, 1001, 0), (-1, 2, 0), (1000, 0, 0)):
        refused(tmp_path, yolov4_csp(), "is not a version of Darknet weights", version=version)


def test_truncated_weights_are_refused(tmp_path):
    net = yolov2_voc()
    files = net.files(tmp_path)
    data = files["weights"].read_bytes()
    for length in range(0, len(data) - 1, len(data) // 23):
        files["weights"].write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"tiny.weights: [0-9]+ bytes|tiny.weights: .* version|tiny.weights ends"):
            network_of(files)
