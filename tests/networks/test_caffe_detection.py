"""Faster R-CNN and R-FCN as released for Caffe: against OpenCV, literal loops and finite differences."""

import itertools
import math

import cv2
import numpy as np
import pytest
import torch
from finite_differences import assert_derivative
from published_layers import RESNET50, RESNET101
from test_caffemodel import caffemodel

from dag.networks import building
from dag.networks.caffe import detector, faster_rcnn, rfcn
from dag.networks.caffe.detector import Features
from dag.networks.interface import Proposals

MEAN = np.array([102.9801, 115.9465, 122.7717], np.float32)
LABELS = (0, 1, 2, 3, 5, 6, 8)
FASTER, RFCN = "dag.networks.caffe.faster_rcnn:faster_rcnn", "dag.networks.caffe.rfcn:rfcn"
FULL = {
    "zf": (FASTER, {"body": "zf"}),
    "zf-matlab": (FASTER, {"body": "zf", "convention": "matlab"}),
    "vgg16": (FASTER, {"body": "vgg16"}),
    "resnet50": (RFCN, {"body": "resnet50"}),
    "resnet101": (RFCN, {"body": "resnet101"}),
}
NARROW = {
    "zf": dict(zip(faster_rcnn.WIDTHS["zf"], (6, 8, 9, 10, 8, 7, 12, 11), strict=True)),
    "vgg16": dict(zip(faster_rcnn.WIDTHS["vgg16"], (4, 5, 6, 7, 8, 9, 12, 11), strict=True)),
    "resnet50": {"conv1": 3, "rpn": 7, "conv_new_1": 9},
    "resnet101": {"conv1": 2, "rpn": 7, "conv_new_1": 9},
}
# Every way through the code: both bodies, both conventions, R-FCN.
KINDS = ("zf", "zf-matlab", "vgg16", "resnet50")
ANCHORS = [
    [-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199],
    [-56, -56, 71, 71], [-120, -120, 135, 135], [-248, -248, 263, 263],
    [-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359],
]  # fmt: skip


def make(name: str, files: dict | None = None, **arguments):
    """Narrow network with random weights; images get a short side of 96, the long one at most 144."""
    architecture, fixed = FULL[name]
    settings = {"labels": LABELS, "short": 96, "long": 144, "widths": NARROW[fixed["body"]]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return building.build(architecture, {**fixed, **settings, **arguments}, files)


def images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return 255 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def random_boxes(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    corners = np.random.default_rng(seed).uniform(0, 1, (2, count, 2)) * [width - 1, height - 1]
    return np.concatenate([corners.min(0), corners.max(0)], 1).astype(np.float32)


# Anchors and input.


def test_anchors():
    network = make("zf")
    assert network.base.tolist() == ANCHORS
    # Literally: round sqrt(256 / ratio), then round width * ratio, then scale about the centre 7.5.
    for number, (ratio, size) in enumerate(itertools.product((0.5, 1, 2), (8, 16, 32))):
        width = np.round(np.sqrt(256 / ratio))
        w, h = size * width, size * np.round(width * ratio)
        assert ANCHORS[number] == [7.5 - (w - 1) / 2, 7.5 - (h - 1) / 2, 7.5 + (w - 1) / 2, 7.5 + (h - 1) / 2]
    maps = torch.zeros(1, 1, 2, 3)
    grid = network.anchors(Features(maps, maps, (32, 48), (32, 48), 1.0)).view(2, 3, 9, 4)
    for y, x, a in itertools.product(range(2), range(3), range(9)):
        assert grid[y, x, a].tolist() == [ANCHORS[a][j] + 16 * (x, y)[j % 2] for j in range(4)]


@pytest.mark.parametrize(
    ("size", "py", "matlab"),
    [
        ((375, 500), (1.6, (600, 800)), (1.6, (600, 800))),
        ((500, 333), (600 / 333, (901, 600)), (600 / 333, (901, 600))),
        ((200, 500), (2.0, (400, 1000)), (2.0, (400, 1000))),
        # 1.5 * 667 = 1000.5 is rounded to 1000 by NumPy and OpenCV and to 1001 by MATLAB.
        ((400, 667), (1.5, (600, 1000)), (1000 / 667, (600, 1000))),
    ],
)
def test_scaling(size, py, matlab):
    assert detector.scaling(size, 600, 1000) == py
    assert detector.scaling(size, 600, 1000, matlab=True) == matlab


@pytest.mark.parametrize("name", ["zf", "zf-matlab"])
@pytest.mark.parametrize("size", [(37, 50), (50, 33), (20, 51), (96, 110), (150, 131)])
def test_input_equals_opencv(name, size):
    """py-faster-rcnn resizes by a factor, the MATLAB release to a size: the steps differ by up to a percent here."""
    network, inputs = make(name), images(2, *size)
    seen = []
    network.pass_trunk = lambda values: seen.append(values) or (values, values)
    features = network.features(inputs)
    for image, got in zip(inputs, seen[0], strict=True):
        prepared = image.numpy()[::-1].transpose(1, 2, 0) - MEAN
        scale = features.scale
        how = {"dsize": None, "fx": scale, "fy": scale} if name == "zf" else {"dsize": features.resized[::-1]}
        expected = cv2.resize(prepared, interpolation=cv2.INTER_LINEAR, **how).transpose(2, 0, 1)
        assert got.shape == expected.shape and features.resized == expected.shape[1:]
        np.testing.assert_allclose(got.numpy(), expected, atol=0.02)


@pytest.mark.parametrize(("name", "size"), [("zf", (39, 51)), ("vgg16", (38, 50)), ("resnet50", (38, 50))])
def test_maps_of_600_x_800(name, size):
    features = make(name, short=600, long=1000).features(images(1, 75, 100))
    assert features.resized == (600, 800) and features.scale == 8
    assert features.maps.shape[-2:] == features.last.shape[-2:] == size


@pytest.mark.parametrize(
    ("name", "millions"), [("zf", 59.3), ("vgg16", 137.1), ("resnet50", 31.9), ("resnet101", 50.9)]
)
def test_number_of_values_of_the_released_files(name, millions, monkeypatch):
    """The memory is never touched: without random weights a full-size network costs nothing."""
    for kind in (torch.nn.Conv2d, torch.nn.Linear):
        monkeypatch.setattr(kind, "reset_parameters", lambda self: None)
    architecture, arguments = FULL[name]
    build = faster_rcnn.faster_rcnn if architecture == FASTER else rfcn.rfcn
    values = sum(tensor.numel() for tensor in build(**arguments).state_dict().values())
    assert round(values / 1e6, 1) == millions


# Layers against OpenCV, which reads the same weights from a file.


def blobs(network: torch.nn.Module) -> dict[str, list[np.ndarray]]:
    """Random blobs by layer; a BatchNorm has a factor that is not 1."""
    rng, layers = np.random.default_rng(1), {}
    for path, module in network.named_modules():
        shapes = [tuple(tensor.shape) for key, tensor in module.state_dict().items() if "." not in key]
        name = path.rpartition(".")[2]
        if name.startswith("bn"):
            size = 1e4 if name == "bn_conv1" else 1  # the first layer sees intensities
            layers[name] = [rng.normal(0, 1, shapes[0]), size * rng.uniform(2, 6, shapes[1]), np.array([2.5])]
        elif name.startswith("scale"):
            size = 0.3 if name.endswith("2c") else 1  # else the sums of the blocks grow without end
            layers[name] = [size * rng.uniform(0.5, 1.5, shapes[0]), rng.normal(0, 0.3, shapes[1])]
        elif shapes:
            bound = math.sqrt(2 / np.prod(shapes[0][1:]))
            layers[name] = [rng.normal(0, bound, shapes[0])] + [rng.normal(0, 0.3, shape) for shape in shapes[1:]]
    for head in ("rpn_cls_score", "rpn_bbox_pred", "bbox_pred", "rfcn_bbox"):
        if head in layers:
            layers[head] = [0.02 * blob for blob in layers[head]]
    return layers


def write(path, layers: dict[str, list[np.ndarray]]):
    path.write_bytes(caffemodel({name: ("", arrays) for name, arrays in layers.items()}))
    return path


def layer(kind: str, name: str, bottom: str, top: str | None = None, parameters: str = "") -> str:
    bottoms = " ".join(f'bottom: "{one}"' for one in bottom.split())
    return f'layer {{ name: "{name}" type: "{kind}" {bottoms} top: "{top or name}" {parameters} }}\n'


def convolution(name: str, bottom: str, outputs: int, kernel: int, stride=1, dilation=1, bias="true") -> str:
    pad = dilation * (kernel // 2)
    return layer("Convolution", name, bottom, parameters=f"convolution_param {{ num_output: {outputs} kernel_size: "
                 f"{kernel} stride: {stride} pad: {pad} dilation: {dilation} bias_term: {bias} }}")  # fmt: skip


def relu(name: str) -> str:
    return layer("ReLU", f"{name}_relu", name, name)


def pool(name: str, bottom: str, kernel: int, pad: int) -> str:
    return layer("Pooling", name, bottom, parameters=f"pooling_param {{ pool: MAX kernel_size: {kernel} stride: 2 pad: "
                 f"{pad} }}")  # fmt: skip


def zf_text(widths: dict[str, int]) -> tuple[str, str, str]:
    """Layers of the trunk, names of the maps for the region proposal network and for the second stage."""
    text = convolution("conv1", "data", widths["conv1"], 7, 2) + relu("conv1")
    lrn = "lrn_param { local_size: 3 alpha: 0.00005 beta: 0.75 norm_region: WITHIN_CHANNEL }"
    text += layer("LRN", "norm1", "conv1", parameters=lrn) + pool("pool1", "norm1", 3, 1)
    text += convolution("conv2", "pool1", widths["conv2"], 5, 2) + relu("conv2")
    text += layer("LRN", "norm2", "conv2", parameters=lrn) + pool("pool2", "norm2", 3, 1)
    for bottom, name in itertools.pairwise(("pool2", "conv3", "conv4", "conv5")):
        text += convolution(name, bottom, widths[name], 3) + relu(name)
    return text, "conv5", "conv5"


def vgg16_text(widths: dict[str, int]) -> tuple[str, str, str]:
    text, bottom = "", "data"
    for block, count in enumerate((2, 2, 3, 3, 3), 1):
        for number in range(1, count + 1):
            name = f"conv{block}_{number}"
            text += convolution(name, bottom, widths[f"conv{block}"], 3) + relu(name)
            bottom = name
        if block < 5:
            text += pool(f"pool{block}", bottom, 2, 0)
            bottom = f"pool{block}"
    return text, bottom, bottom


def resnet_text(widths: dict[str, int], names: list[str], bias: str) -> tuple[str, str, str]:
    def normalised(name: str, ending: str) -> str:
        return layer("BatchNorm", f"bn{ending}", name, name, "batch_norm_param { use_global_stats: true }") + layer(
            "Scale", f"scale{ending}", name, name, "scale_param { bias_term: true }"
        )

    text = convolution("conv1", "data", widths["conv1"], 7, 2, bias=bias) + normalised("conv1", "_conv1")
    text += relu("conv1") + pool("pool1", "conv1", 3, 0)
    bottom = "pool1"
    for name in names:
        stage = int(name[0])
        inner = widths["conv1"] * 2 ** (stage - 2)
        stride, dilation = 2 if name in ("3a", "4a") else 1, 2 if stage == 5 else 1
        shortcut = bottom
        if name.endswith("a"):
            shortcut = f"res{name}_branch1"
            text += convolution(shortcut, bottom, 4 * inner, 1, stride, bias="false")
            text += normalised(shortcut, f"{name}_branch1")
        below = bottom
        parts = [("2a", inner, 1, stride, 1), ("2b", inner, 3, 1, dilation), ("2c", 4 * inner, 1, 1, 1)]
        for part, *shape in parts:
            here = f"res{name}_branch{part}"
            text += convolution(here, below, *shape, bias="false") + normalised(here, f"{name}_branch{part}")
            text += "" if part == "2c" else relu(here)
            below = here
        text += layer("Eltwise", f"res{name}", f"{shortcut} {below}") + relu(f"res{name}")
        bottom = f"res{name}"
    fourth = [name for name in names if name[0] == "4"][-1]
    return text, f"res{fourth}", bottom


def heads_text(widths: dict[str, int], rpn: str, maps: str, last: str) -> str:
    text = convolution(rpn, maps, widths["rpn"], 3) + relu(rpn)
    text += convolution("rpn_cls_score", rpn, 18, 1) + convolution("rpn_bbox_pred", rpn, 36, 1)
    if "fc6" in widths:
        cells, ratio = (6, "scale_train: false") if maps == "conv5" else (7, "")
        text += layer("ROIPooling", "pool5", f"{last} rois", parameters=f"roi_pooling_param {{ pooled_w: {cells} "
                      f"pooled_h: {cells} spatial_scale: 0.0625 }}")  # fmt: skip
        bottom = "pool5"
        for name in ("fc6", "fc7"):
            text += layer("InnerProduct", name, bottom, parameters=f"inner_product_param {{ num_output: "
                          f"{widths[name]} }}") + relu(name)  # fmt: skip
            text += layer("Dropout", f"drop_{name}", name, name, f"dropout_param {{ dropout_ratio: 0.5 {ratio} }}")
            bottom = name
        for name, outputs in (("cls_score", len(LABELS)), ("bbox_pred", 4 * len(LABELS))):
            text += layer("InnerProduct", name, "fc7", parameters=f"inner_product_param {{ num_output: {outputs} }}")
        return text
    text += convolution("conv_new_1", last, widths["conv_new_1"], 1) + relu("conv_new_1")
    for name, top, outputs in (("rfcn_cls", "cls_score", len(LABELS)), ("rfcn_bbox", "bbox_pred", 8)):
        text += convolution(name, "conv_new_1", 49 * outputs, 1)
        text += layer("PSROIPooling", f"{name}_pool", f"{name} rois", parameters=f"psroi_pooling_param {{ "
                      f"spatial_scale: 0.0625 output_dim: {outputs} group_size: 7 }}")  # fmt: skip
        text += layer("Pooling", top, f"{name}_pool", parameters="pooling_param { pool: AVE kernel_size: 7 stride: 7 }")
    return text


TEXTS = {
    "zf": zf_text,
    "vgg16": vgg16_text,
    "resnet50": lambda widths: resnet_text(widths, RESNET50, "true"),
    "resnet101": lambda widths: resnet_text(widths, RESNET101, "false"),
}


@pytest.mark.parametrize("name", ["zf", "zf-matlab", "vgg16", "resnet50", "resnet101"])
def test_network_equals_opencv(name, tmp_path):
    """Both stages on given proposals, from the image of the user to scores and deltas."""
    body = FULL[name][1]["body"]
    layers, widths = blobs(make(name)), NARROW[body]
    rpn = "rpn_conv1" if body == "zf" else "rpn_conv/3x3"  # the alternately trained ZF calls it so
    layers[rpn] = layers.pop("rpn_conv/3x3")
    path = write(tmp_path / "weights.caffemodel", layers)
    network = make(name, {"caffemodel": path}, round_windows=name == "zf-matlab")

    image = images(1, 60, 70)
    proposals = random_boxes(40, 60, 70)
    resized = (96, 112)
    given = np.float32(1.6) * proposals
    if name == "zf-matlab":
        given = np.floor(given + 0.5)
    trunk, maps, last = TEXTS[body](widths)
    text = (
        'input: "data" input_shape { dim: 1 dim: 3 dim: 96 dim: 112 }\ninput: "rois" input_shape { dim: 40 dim: 5 }\n'
    )
    (tmp_path / "net.prototxt").write_text(text + trunk + heads_text(widths, rpn, maps, last))
    reference = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"), str(path))
    prepared = image[0].numpy()[::-1].transpose(1, 2, 0) - MEAN
    prepared = cv2.resize(prepared, None, fx=1.6, fy=1.6, interpolation=cv2.INTER_LINEAR)
    reference.setInput(prepared.transpose(2, 0, 1)[None], "data")
    reference.setInput(np.concatenate([np.zeros((40, 1), np.float32), given], 1), "rois")
    outputs = ["rpn_cls_score", "rpn_bbox_pred", "cls_score", "bbox_pred"]
    rpn_scores, rpn_deltas, scores, deltas = reference.forward(outputs)

    features = network.features(image)
    assert features.resized == resized
    logits, moves = network.objectness_and_deltas(features)
    got_scores, got_deltas = network.regions(features, [Proposals(torch.from_numpy(proposals))])
    places = list(itertools.product(*map(range, features.maps.shape[-2:]), range(9)))
    expected = [rpn_scores[0, 9 + a, y, x] - rpn_scores[0, a, y, x] for y, x, a in places]
    np.testing.assert_allclose(logits[0].numpy(), expected, atol=1e-4 * np.abs(rpn_scores).max())
    expected = [rpn_deltas[0, 4 * a : 4 * a + 4, y, x] for y, x, a in places]
    np.testing.assert_allclose(moves[0].numpy(), expected, atol=1e-4 * np.abs(rpn_deltas).max())
    scores, deltas = scores.reshape(40, -1), deltas.reshape(40, -1, 4)[:, 1:]
    assert scores.std(0).min() > 0.01 and deltas.std(0).min() > 1e-4
    np.testing.assert_allclose(got_scores.numpy(), scores, atol=1e-4 * np.abs(scores).max())
    np.testing.assert_allclose(got_deltas.numpy(), deltas, atol=1e-4 * np.abs(deltas).max())
    assert torch.equal(network.scores(features, [Proposals(torch.from_numpy(proposals))]), got_scores)


def cells(low: float, high: float, scale: float, count: int, length: int) -> list[tuple[int, int]]:
    """Along one axis, literally, in single precision as in Caffe."""
    f = np.float32
    start, end = f(math.floor(low + 0.5)) * f(scale), (f(math.floor(high + 0.5)) + f(1)) * f(scale)
    step = max(end - start, f(0.1)) / f(count)
    edges = [(np.floor(f(i) * step + start), np.ceil(f(i + 1) * step + start)) for i in range(count)]
    return [(int(min(max(a, 0), length)), int(min(max(b, 0), length))) for a, b in edges]


def test_position_sensitive_pool_equals_a_loop():
    size, classes, height, width = 7, 3, 9, 11
    maps = torch.randn(2, classes * size**2, height, width, generator=torch.Generator().manual_seed(4))
    corners = random_boxes(30, 16 * height, 16 * width)
    # A point; halves, which C rounds up; the whole image; beyond the maps, where cells are empty.
    special = [[20, 30, 20, 30], [8.5, 24.5, 40.5, 56.5], [0, 0, 16 * width - 1, 16 * height - 1], [170, 130, 230, 190]]
    corners = np.concatenate([corners, np.array(special, np.float32)])
    rois = np.concatenate([np.arange(len(corners))[:, None] % 2, corners], 1).astype(np.float32)
    expected = np.zeros((len(rois), classes, size, size))
    for r, (image, x0, y0, x1, y1) in enumerate(rois):
        rows, columns = cells(y0, y1, 1 / 16, size, height), cells(x0, x1, 1 / 16, size, width)
        for c, i, j in itertools.product(range(classes), range(size), range(size)):
            cell = maps[int(image), (c * size + i) * size + j, slice(*rows[i]), slice(*columns[j])]
            expected[r, c, i, j] = cell.double().mean() if cell.numel() else 0
    got = rfcn.position_sensitive_pool(maps, torch.from_numpy(rois), size, 1 / 16)
    assert (expected[-1] == 0).any() and (expected[-1] != 0).any()
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


def test_gradient_of_position_sensitive_pool():
    """Pooling is linear: <gradient of <weights, pool(maps)>, other> = <weights, pool(other)> for any maps."""
    generator = torch.Generator().manual_seed(5)
    maps, other, weights = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 27, 6, 7), (2, 27, 6, 7), (20, 3, 3, 3))
    )
    corners = torch.from_numpy(random_boxes(20, 96, 112)).double()
    rois = torch.cat([torch.tensor([[0.0], [1.0]]).repeat(10, 1).double(), corners], 1)
    pooled = rfcn.position_sensitive_pool(maps.requires_grad_(), rois, 3, 1 / 16)
    (gradient,) = torch.autograd.grad((weights * pooled).sum(), maps)
    expected = (weights * rfcn.position_sensitive_pool(other, rois, 3, 1 / 16)).sum()
    assert (gradient * other).sum().item() == pytest.approx(expected.item(), rel=1e-12)


# Proposals and detections against literal loops in the coordinates of each release.


def literal_overlap(a, b) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(w, 0) * max(h, 0)
    return shared / (sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - shared)


def literal_nms(found: list, threshold: float) -> list:
    """`found`: (score, box, ...), best first."""
    kept = []
    for one in found:
        if all(literal_overlap(one[1], other[1]) <= threshold for other in kept):
            kept.append(one)
    return kept


def literal_decode(box, delta, matlab: bool):
    """py-faster-rcnn puts the centre half a pixel further and does not take it back from x2, y2."""
    w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
    if matlab:
        x, y = box[0] + 0.5 * (w - 1), box[1] + 0.5 * (h - 1)
    else:
        x, y = box[0] + 0.5 * w, box[1] + 0.5 * h
    x, y = delta[0] * w + x, delta[1] * h + y
    w, h = math.exp(delta[2]) * w, math.exp(delta[3]) * h
    if matlab:
        return [x - 0.5 * (w - 1), y - 0.5 * (h - 1), x + 0.5 * (w - 1), y + 0.5 * (h - 1)]
    return [x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h]


def clipped(box, low: int, width: float, height: float):
    return [min(max(value, low), limit) for value, limit in zip(box, [width, height] * 2, strict=True)]


def literal_proposals(network, features, image: int, matlab: bool, smallest: float, nms: float, limit, candidates):
    """Boxes of the release: scaled and 0-based, or of the original image and 1-based."""
    maps = features.maps[image : image + 1]
    hidden = network.rpn["rpn_conv/3x3"](maps).relu()
    scores = network.rpn["rpn_cls_score"](hidden).numpy()
    deltas = network.rpn["rpn_bbox_pred"](hidden).numpy()[0]
    scores = np.exp(scores.reshape(2, -1, scores.shape[-1]))
    scores = (scores / scores.sum(0))[1].reshape(9, *maps.shape[-2:])
    (height, width), (high, wide) = features.size, features.resized
    found = []
    for y, x, a in itertools.product(range(maps.shape[-2]), range(maps.shape[-1]), range(9)):
        box = [ANCHORS[a][j] + 16 * (x, y)[j % 2] + matlab for j in range(4)]
        box = literal_decode(box, deltas[4 * a : 4 * a + 4, y, x], matlab)
        if matlab:
            ratios = [(width - 1) / (wide - 1), (height - 1) / (high - 1)] * 2
            box = [(value - 1) * ratio + 1 for value, ratio in zip(box, ratios, strict=True)]
            box, floor = clipped(box, 1, width, height), smallest
        else:
            box, floor = clipped(box, 0, wide - 1, high - 1), smallest * features.scale
        if box[2] - box[0] + 1 >= floor and box[3] - box[1] + 1 >= floor:
            found.append((scores[a, y, x], box))
    found.sort(key=lambda one: -one[0])
    return [box for _, box in literal_nms(found[:candidates], nms)[:limit]]


@pytest.mark.parametrize("name", ["zf", "zf-matlab", "resnet50"])
@pytest.mark.parametrize(
    ("smallest", "nms", "limit", "candidates"), [(16, 0.7, 5, 200), (16, 0.9, 3000, None), (0, 0.9, 3000, None)]
)
def test_proposals_equal_a_literal_implementation(name, smallest, nms, limit, candidates, tmp_path):
    path = write(tmp_path / "weights.caffemodel", blobs(make(name)))
    network = make(name, {"caffemodel": path}, smallest=smallest).double()
    features = network.features(images(2, 41, 54).double())
    assert features.resized == (96, 126)
    matlab = name == "zf-matlab"
    proposals = network.propose(features, nms=nms, limit=limit, candidates=candidates)
    for image, one in enumerate(proposals):
        expected = np.array(literal_proposals(network, features, image, matlab, smallest, nms, limit, candidates))
        assert len(one) >= 4
        expected = expected - 1 if matlab else expected / features.scale
        np.testing.assert_allclose(one.boxes.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(("name", "side"), [("zf", 21 / 2), ("zf-matlab", 19 * 47 / 95 + 1)])
def test_smallest_side_is_measured_where_the_release_measures_it(name, side):
    """A box of 20 pixels at a scale of 2: 20 and the excess on the resized image, or 0..19 of 0..95 on 0..47."""
    maps = torch.zeros(1, 1, 6, 6)
    features = Features(maps, maps, (48, 48), (96, 96), 2.0)
    deltas = torch.zeros(1, 6 * 6 * 9, 4)
    deltas[..., 2:] = -9.0
    deltas[0, 9 * 21 + 4, 2:] = math.log(20 / 256)  # place (3, 3), anchor of 256 x 256
    for smallest, count in ((side - 0.01, 1), (side + 0.01, 0)):
        network = make(name, smallest=smallest)
        (found,) = network.select(features, torch.zeros(1, 324), deltas, nms=0.9, limit=9, candidates=None)
        assert len(found) == count


def test_proposals_equal_opencv(tmp_path):
    """OpenCV's Proposal layer follows py-faster-rcnn, but drops no small boxes and pads with zeros."""
    height, width, rng = 8, 10, np.random.default_rng(2)
    (tmp_path / "net.prototxt").write_text(
        f"""input: "s" input_shape {{ dim: 1 dim: 18 dim: {height} dim: {width} }}
        input: "d" input_shape {{ dim: 1 dim: 36 dim: {height} dim: {width} }}
        input: "info" input_shape {{ dim: 1 dim: 3 }}
        layer {{ name: "q" type: "Proposal" bottom: "s" bottom: "d" bottom: "info" top: "q"
        proposal_param {{ feat_stride: 16 base_size: 16 min_size: 16 ratio: 0.5 ratio: 1 ratio: 2
        scale: 8 scale: 16 scale: 32 pre_nms_topn: 6000 post_nms_topn: 300 nms_thresh: 0.7 }} }}"""
    )
    foreground = rng.permutation(9 * height * width).reshape(1, 9, height, width).astype(np.float32) / 1000
    deltas = (0.1 * rng.standard_normal((1, 36, height, width))).astype(np.float32)
    reference = cv2.dnn.readNetFromCaffe(str(tmp_path / "net.prototxt"))
    reference.setInput(np.concatenate([1 - foreground, foreground], 1), "s")
    reference.setInput(deltas, "d")
    reference.setInput(np.array([[125, 155, 1]], np.float32), "info")
    expected = reference.forward()[:, 1:]
    expected = expected[(expected != 0).any(1)]
    maps = torch.zeros(1, 1, height, width)
    (got,) = make("zf", smallest=0).select(
        Features(maps, maps, (125, 155), (125, 155), 1.0),
        torch.from_numpy(foreground).permute(0, 2, 3, 1).flatten(1),
        torch.from_numpy(deltas).permute(0, 2, 3, 1).reshape(1, -1, 4),
        nms=0.7, limit=300, candidates=6000,
    )  # fmt: skip
    assert len(expected) > 30
    np.testing.assert_allclose(got.boxes.numpy(), expected, atol=1e-3)


def literal_detections(network, features, image: int, matlab: bool, lowest: float, limit: int | None):
    """From the proposals of the release on, class by class; (score, box, class), 0-based."""
    (height, width), scale = features.size, features.scale
    starts = literal_proposals(network, features, image, matlab, 16, 0.7, 300, 6000)
    frame = [[value - 1 for value in box] if matlab else [value / scale for value in box] for box in starts]
    alone = Features(features.maps[image : image + 1], features.last[image : image + 1], *_rest(features))
    scores, deltas = network.regions(alone, [Proposals(torch.tensor(frame, dtype=torch.float64))])
    probabilities, deltas = scores.softmax(1).numpy(), deltas.numpy()
    detections = []
    for column in range(1, len(LABELS)):
        found = []
        for r, start in enumerate(starts):
            box = start if matlab else [value / scale for value in start]
            box = literal_decode(box, deltas[r, min(column, deltas.shape[1]) - 1], matlab)
            box = clipped(box, int(matlab), width - 1 + matlab, height - 1 + matlab)
            found.append((probabilities[r, column], [value - matlab for value in box], LABELS[column]))
        found.sort(key=lambda one: -one[0])
        found = found[:100] if matlab else [one for one in found if one[0] > lowest]
        detections += literal_nms(found, 0.3)
    detections.sort(key=lambda one: -one[0])
    return detections[:limit]


def _rest(features):
    return features.size, features.resized, features.scale


@pytest.mark.parametrize("name", KINDS)
def test_detections_equal_a_literal_implementation(name, tmp_path):
    layers = blobs(make(name))
    for head in ("cls_score", "rfcn_cls"):  # undecided scores, so that the limits of the release matter
        if head in layers:
            layers[head] = [0.3 * blob for blob in layers[head]]
    network = make(name, {"caffemodel": write(tmp_path / "weights.caffemodel", layers)}).double()
    inputs = images(2, 60, 85).double()
    features = network.features(inputs)
    for image in range(2):
        # One by one: proposals that pool the same places have the same scores to the last digit, and keep their order.
        (found,) = network.detect(inputs[image : image + 1])
        lowest, limit = {"zf-matlab": (0, None), "resnet50": (-math.inf, 400)}.get(name, (0.05, 100))
        expected = literal_detections(network, features, image, name == "zf-matlab", lowest, limit)
        assert len(expected) > 10
        np.testing.assert_allclose(found.scores.numpy(), [one[0] for one in expected], atol=1e-9)
        np.testing.assert_allclose(found.boxes.numpy(), [one[1] for one in expected], atol=1e-9)
        assert found.labels.tolist() == [one[2] for one in expected]


@pytest.mark.parametrize(("name", "count"), [("zf", 100), ("zf-matlab", 600), ("resnet50", 400)])
def test_limits_on_detections(name, count):
    """150 separate boxes that may be anything: the 100 or 400 best of the image, or the 100 best of each class."""
    network = make(name)
    places = torch.arange(150.0)
    corners = torch.stack([places % 15 * 10, places // 15 * 10], 1)
    starts = torch.cat([corners, corners + 6], 1)
    scores = torch.zeros(150, 7)
    scores[:, 1:] = torch.rand(150, 6, generator=torch.Generator().manual_seed(0))
    network.propose = lambda *_, **__: [Proposals(starts)]
    network.regions = lambda *_: (scores, torch.zeros(150, 6, 4))
    (found,) = network.detect(images(1, 100, 150))
    assert len(found.scores) == count
    foreground = scores.softmax(1)[:, 1:]
    best = foreground.topk(100, 0).values if name == "zf-matlab" else foreground.flatten().topk(count).values
    assert found.scores.tolist() == sorted(best.flatten().tolist(), reverse=True)
    grown = 0 if name == "zf-matlab" else 1  # a zero delta
    row = (foreground == found.scores[0]).nonzero()[0, 0]
    assert found.boxes[0].tolist() == (starts[row] + torch.tensor([0, 0, grown, grown])).tolist()


@pytest.mark.parametrize(("name", "count"), [("zf", 1), ("vgg16", 1), ("zf-matlab", 18), ("resnet50", 18)])
def test_lowest_score_of_a_detection(name, count):
    """Three boxes, one class with the probabilities 0.06, 0.04 and 10^-6, five with 10^-9."""
    network, first = make(name), torch.tensor([0.06, 0.04, 1e-6])
    rest = torch.full((3, 5), 1e-9)
    probabilities = torch.cat([1 - first[:, None] - rest.sum(1, keepdim=True), first[:, None], rest], 1)
    starts = torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]])
    network.propose = lambda *_, **__: [Proposals(starts)]
    network.regions = lambda *_: (probabilities.log(), torch.zeros(3, 1, 4))
    (found,) = network.detect(images(1, 20, 60))
    assert len(found.scores) == count
    np.testing.assert_allclose(found.scores[:3].numpy(), first[: min(count, 3)].numpy(), rtol=1e-5)
    assert set(found.labels[:3].tolist()) == {1}


# The windows of the second stage: 2 pixels of the resized image for one of the image, 16 for a place of the maps.
BOX = [3.8, 10.25, 50.0, 40.1]


@pytest.mark.parametrize(
    ("name", "arguments", "attack", "test"),
    [
        ("zf", {}, [7.6, 20.5, 100.0, 80.2], [7.6, 20.5, 100.0, 80.2]),
        ("resnet50", {}, [7.6, 20.5, 100.0, 80.2], [7.6, 20.5, 100.0, 80.2]),
        ("zf-matlab", {}, [7.6, 20.5, 100.0, 80.2], [8, 21, 100, 80]),
        ("zf-matlab", {"round_windows": False}, [7.6, 20.5, 100.0, 80.2], [8, 21, 100, 80]),
        ("zf-matlab", {"round_windows": True}, [8, 21, 100, 80], [8, 21, 100, 80]),
    ],
)
def test_windows_are_rounded_in_the_normal_test_of_the_matlab_release(name, arguments, attack, test, monkeypatch):
    """The attack reads them as they are, like the code of the paper's authors, unless it is told otherwise."""
    network, seen = make(name, **arguments), []
    for module, function in ((faster_rcnn.operators, "roi_pool"), (rfcn, "position_sensitive_pool")):
        pool = getattr(module, function)
        monkeypatch.setattr(
            module, function, lambda maps, rois, *rest, pool=pool: seen.append(rois) or pool(maps, rois, *rest)
        )
    features, proposals = network.features(images(1, 48, 64)), [Proposals(torch.tensor([BOX]))]
    assert features.scale == 2
    for compute, expected in ((network.scores, attack), (network.regions, test)):
        seen.clear()
        compute(features, proposals)
        for rois in seen:
            np.testing.assert_allclose(rois.numpy(), [[0, *expected]], rtol=1e-6)
        assert seen


def test_rounding_moves_a_window_to_other_places_of_the_maps():
    """7.6 / 16 = 0.475 belongs to the first column of the maps, 8 / 16 to the second; columns hold 0, -1, -2, .."""
    network = make("zf-matlab")
    maps = -torch.arange(8.0).expand(1, 1, 6, 8)
    features, proposals = Features(maps, maps, (48, 64), (96, 128), 2.0), [Proposals(torch.tensor([BOX]))]
    for rounded, first in ((False, 0), (True, -1)):
        pooled = faster_rcnn.operators.roi_pool(maps, network.windows(features, proposals, rounded), 6, 1 / 16)
        assert pooled[0, 0, :, 0].tolist() == [first] * 6


def test_settings_of_the_normal_test_and_of_the_attack(monkeypatch):
    network = make("zf", short=600, long=1000)
    features = network.features(images(1, 60, 80))
    dense = network.propose(features, nms=1.0, limit=30000)[0]
    assert len(dense) > network.candidates  # 39 * 51 * 9 = 17901 anchors
    asked = {}
    monkeypatch.setattr(network, "propose", lambda _, **settings: asked.update(settings) or [dense[:5]])
    network.detect(images(1, 60, 80))
    assert asked == {"nms": 0.7, "limit": 300, "candidates": 6000}


@pytest.mark.parametrize("name", KINDS)
def test_image_without_proposals_gives_no_scores_and_no_detections(name):
    network, inputs = make(name, smallest=1e4), images(1, 60, 70)
    features = network.features(inputs)
    proposals = network.propose(features, nms=0.9, limit=3000)
    assert len(proposals[0]) == 0 and network.scores(features, proposals).shape == (0, 7)
    assert len(network.detect(inputs)[0].scores) == 0


# The network as a whole.


@pytest.mark.parametrize("name", KINDS)
def test_an_image_does_not_depend_on_its_batch(name):
    network, inputs = make(name), images(2, 59, 70)
    features = network.features(inputs)
    proposals = network.propose(features, nms=0.9, limit=50)
    both = network.scores(features, proposals)
    alone = network.scores(network.features(inputs[1:]), proposals[1:])
    torch.testing.assert_close(both[len(proposals[0]) :], alone, rtol=1e-4, atol=1e-5)
    assert all(one.boxes.dtype == torch.float32 and not one.boxes.requires_grad for one in proposals)


@pytest.mark.parametrize("name", KINDS)
def test_gradient_is_the_derivative(name):
    """Central difference along a random direction, double precision."""
    network, inputs = make(name).double(), images(1, 61, 74).double()
    proposals = [Proposals(torch.from_numpy(random_boxes(15, 61, 74)).double())]
    shape = network.scores(network.features(inputs), proposals).shape
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_derivative(lambda x: network.scores(network.features(x), proposals) * weights, inputs, step=1e-5)


def test_halves_of_the_matlab_release(tmp_path):
    """Each file holds the trunk; the one of the detection half is used."""
    layers = blobs(make("zf-matlab"))
    trunk = {name: layers[name] for name in ("conv1", "conv2", "conv3", "conv4", "conv5")}
    detection = trunk | {name: layers[name] for name in ("fc6", "fc7", "cls_score", "bbox_pred")}
    names = {"rpn_conv/3x3": "conv_proposal1", "rpn_cls_score": "proposal_cls_score",
             "rpn_bbox_pred": "proposal_bbox_pred"}  # fmt: skip
    proposal = {name: [0 * blob for blob in arrays] for name, arrays in trunk.items()}
    proposal |= {other: layers[name] for name, other in names.items()}
    halves = {
        "caffemodel": write(tmp_path / "detection_final", detection),
        "proposal_caffemodel": write(tmp_path / "proposal_final", proposal),
    }
    got = make("zf-matlab", halves).state_dict()
    expected = make("zf-matlab", {"caffemodel": write(tmp_path / "whole", layers)}).state_dict()
    assert got.keys() == expected.keys() and all(torch.equal(got[key], expected[key]) for key in got)
    with pytest.raises(ValueError, match="proposal_final: .* give detection_final"):
        make("zf-matlab", {"proposal_caffemodel": halves["proposal_caffemodel"]})
    with pytest.raises(ValueError, match="detection_final: layer 'rpn_conv/3x3' is missing"):
        make("zf-matlab", {"caffemodel": halves["caffemodel"]})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("zf", {"body": "alexnet"}, "no body 'alexnet'; choose one of zf, vgg16"),
        ("resnet50", {"body": "zf"}, "no body 'zf'; choose one of resnet50, resnet101"),
        ("zf", {"convention": "r"}, "no convention 'r'; choose one of py, py-r-fcn, matlab"),
        ("zf", {"round_window": True}, "no setting 'round_window'; known are short, .*, round_windows"),
        ("zf", {"round_windows": True}, "round_windows: the convention 'py' does not round; leave it out"),
        ("resnet50", {"round_windows": True}, "round_windows: the convention 'py-r-fcn' does not round"),
        ("zf", {"widths": {"conv6": 3}}, "no layer 'conv6'"),
    ],
)
def test_unknown_names_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(name, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels"), [("vgg16", (512, 512)), ("resnet101", (1024, 1024))])
def test_attack_at_full_width(name, channels):
    """An image of VOC: the dense proposals of the attack, and a gradient at a few of them."""
    architecture, arguments = FULL[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = building.build(architecture, arguments)
    inputs = images(1, 375, 500).requires_grad_()
    features = network.features(inputs)
    assert (features.maps.shape[1], features.last.shape[1]) == channels
    assert features.maps.shape[2:] == features.last.shape[2:] == (38, 50)
    (proposals,) = network.propose(features, nms=0.9, limit=3000)
    assert len(proposals) == 3000
    values = network.scores(features, [proposals[torch.arange(10)]])
    assert values.shape == (10, 21)
    values[:, 3].sum().backward()
    assert torch.isfinite(inputs.grad).all() and inputs.grad.abs().max() > 0
