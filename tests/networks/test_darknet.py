"""Darknet import against OpenCV's reader and runtime, hand-computed boxes and finite differences."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from finite_differences import assert_derivative, assert_gradient

from dag.data import image_sets, voc
from dag.networks.building import build
from dag.networks.darknet import read_weights, yolo
from dag.networks.layers.boxes import overlap

torch.set_num_threads(1)
cv2.setNumThreads(1)

NANO, FASTEST = "MobileNetV2-YOLOv3-Nano-voc", "MobileNetV2-YOLO-Fastest-voc"
real = pytest.mark.parametrize("name", [NANO, FASTEST])

# Two classes, one anchor per head: 7 channels.  Layer 4 has 4 channels at a stride of 4.
LAYERS = """
[net]
# training options do not matter
batch=64
width=32
height=24
channels=3

[convolutional]
batch_normalize=1
filters=4
size=3
stride=2
pad=1
activation=relu
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
groups=2
activation=leaky
[convolutional]
filters=8
size=1
stride=1
padding=0
activation=linear
[shortcut]
from=-2
activation=linear
[maxpool]
size=3
stride=1
[dropout]
probability=.5
[route]
layers=-1,3
[convolutional]
batch_normalize=1
filters=7
size=3
stride=2
pad=1
activation=relu
[convolutional]
filters=7
size=1
stride=1
activation=linear
[yolo]
mask = 1
anchors = 3,4, 10,14
classes=2
num=2
scale_x_y = 1.1
nms_kind=greedynms
[route]
layers=8
[upsample]
stride=2
[route]
layers=-1, 2
[convolutional]
filters=7
size=1
stride=1
activation=linear
[yolo]
mask = 0
anchors = 3,4, 10,14
classes=2
num=2
"""

# One convolution of stride 16 on 48 x 32 images: a grid of 3 x 2 cells.
HEAD = """
[net]
width=48
height=32
[convolutional]
filters=7
size=1
stride=16
activation=linear
[yolo]
mask = 1
anchors = 1,1, 12,16
classes=2
num=2
scale_x_y={stretch}
"""


def numbers_of_layers(seed: int) -> np.ndarray:
    """Random weights for LAYERS, in the order of the file."""
    random = np.random.default_rng(seed)
    parts = []
    for inputs, filters, normalised in [(27, 4, 1), (18, 8, 1), (8, 8, 0), (144, 7, 1), (7, 7, 0), (15, 7, 0)]:
        parts.append(random.normal(size=filters))
        if normalised:
            parts += [random.normal(1, 0.2, filters), random.normal(size=filters), random.uniform(0.5, 2, filters)]
        parts.append(random.normal(size=filters * inputs) * inputs**-0.5)
    return np.concatenate(parts)


def write(folder: Path, cfg: str, numbers, version=(0, 2, 5), seen=b"\0" * 8) -> dict[str, Path]:
    files = {"cfg": folder / "tiny.cfg", "weights": folder / "tiny.weights"}
    files["cfg"].write_text(cfg)
    header = np.asarray(version, "<i4").tobytes() + seen
    files["weights"].write_bytes(header + np.asarray(numbers, "<f4").tobytes())
    return files


def tiny(folder: Path, seed: int = 0):
    return build("dag.networks.darknet:yolo", {"labels": (12, 15)}, write(folder, LAYERS, numbers_of_layers(seed)))


def head(folder: Path, biases, stretch: float = 1.0, **arguments):
    """A network whose raw output is `biases` (7,) in every cell, whatever the image."""
    files = write(folder, HEAD.format(stretch=stretch), [*biases, *([0.0] * 21)])
    return build("dag.networks.darknet:yolo", {"labels": (12, 15), **arguments}, files)


def real_network(shared: Path, name: str, **arguments):
    files = {role: shared / "weights" / f"{name}.{role}" for role in ("cfg", "weights")}
    return build("dag.networks.darknet:yolo", arguments, files)


def real_images(shared: Path, count: int) -> list[torch.Tensor]:
    root = shared / "voc" / "VOC2012"
    ids = image_sets.read_ids(root / "ImageSets" / "Main" / "sample.txt")
    return [torch.from_numpy(voc.read_image(root, image_id))[None] for image_id in ids[:count]]


def images(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height)) * 255


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


# Layers and weights


def test_layers_agree_with_opencv(tmp_path):
    network = tiny(tmp_path)
    other = cv2.dnn.readNetFromDarknet(str(tmp_path / "tiny.cfg"), str(tmp_path / "tiny.weights"))
    image = images(24, 32)
    other.setInput((image / 255).numpy())
    theirs = other.forward(["conv_8", "conv_13"])
    assert [map_.shape for map_ in theirs] == [(1, 7, 3, 4), (1, 7, 6, 8)]
    for mine, their in zip(network.maps(image), theirs, strict=True):
        np.testing.assert_allclose(mine.numpy(), their, atol=1e-5)


def pooled(folder: Path, size: int, stride: int) -> np.ndarray:
    """Max pooling of a ramp 0, 1, .. 11 of 3 x 4 pixels; one channel copies red, the others are 0."""
    cfg = "[net]\nwidth=4\nheight=3\n[convolutional]\nfilters=7\nsize=1\nactivation=linear\n"
    cfg += f"[maxpool]\nsize={size}\nstride={stride}\n[yolo]\nmask=0\nanchors=1,1\nclasses=2\n"
    network = yolo(**write(folder, cfg, [0] * 7 + [255] + [0] * 20), labels=(1, 2))
    ramp = torch.zeros(1, 3, 3, 4)
    ramp[0, 0] = torch.arange(12.0).reshape(3, 4) - 20  # negative: padding with 0 would win
    return network.maps(ramp)[0][0, 0].detach().numpy() + 20


def test_max_pooling(tmp_path):
    np.testing.assert_allclose(pooled(tmp_path, 3, 1), [[5, 6, 7, 7], [9, 10, 11, 11], [9, 10, 11, 11]], atol=1e-4)
    np.testing.assert_allclose(pooled(tmp_path, 2, 2), [[5, 7], [9, 11]], atol=1e-4)
    np.testing.assert_allclose(pooled(tmp_path, 2, 1), [[5, 6, 7, 7], [9, 10, 11, 11], [9, 10, 11, 11]], atol=1e-4)


@pytest.mark.parametrize(("variance", "gain"), [(0.0, 1e3), (-1e-7, (0.9e-6) ** -0.5), (3.0, 3.000001**-0.5)])
def test_batch_normalisation(tmp_path, variance, gain):
    cfg = HEAD.format(stretch=1).replace("filters=7", "filters=7\nbatch_normalize=1")
    kernel = np.arange(21) / 21
    numbers = [*[0.25] * 7, *[2.0] * 7, *[0.5] * 7, *[variance] * 7, *kernel]
    network = yolo(**write(tmp_path, cfg, numbers), labels=(1, 2))
    sums = kernel.reshape(7, 3).sum(1)  # an image of ones after division by 255
    expected = 2 * gain * (sums - 0.5) + 0.25
    white = network.maps(torch.full((1, 3, 32, 48), 255.0))[0][0, :, 0, 0]
    np.testing.assert_allclose(white.detach().numpy(), expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("linear", [-8, 2, 8]), ("relu", [0, 2, 8]), ("relu6", [0, 2, 6]), ("leaky", [-0.8, 2, 8])],
)
def test_activations(tmp_path, activation, expected):
    cfg = HEAD.format(stretch=1).replace("linear", activation)
    network = yolo(**write(tmp_path, cfg, [-8, 2, 8, 0, 0, 0, 0, *[0] * 21]), labels=(1, 2))
    found = network.maps(images(32, 48))[0][0, :3, 1, 1]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("version", "seen"), [((0, 1, 0), 4), ((0, 2, 0), 8), ((1, 0, 0), 8)])
def test_both_headers(tmp_path, version, seen):
    files = write(tmp_path, "", [1.0, 2.0, 3.0], version, b"\7" * seen)
    assert read_weights(files["weights"]).tolist() == [1, 2, 3]


# Boxes


def test_boxes_by_hand(tmp_path):
    """Anchor 12 x 16 of a 48 x 32 frame, doubled in width, in an image of 96 x 80 (factors 2 and 2.5)."""
    network = head(tmp_path, [logit(0.75), logit(0.5), np.log(2), 0, logit(0.5), logit(0.9), logit(0.2)], stretch=1.2)
    features = network.features(images(80, 96))
    assert features.rows.shape == (1, 6, 7)
    proposals = network.propose(features, nms=1.0, limit=100)[0]
    boxes = torch.empty(6, 4)
    boxes[proposals.index] = proposals.boxes
    # centre x = (0.75 * 1.2 - 0.1 + column) * 16 * 2, centre y = (0.5 * 1.2 - 0.1 + row) * 16 * 2.5
    x, y = 25.6 + 32 * np.array([0, 1, 2]), 20 + 40 * np.array([0, 1])
    expected = [[max(0, a - 24), max(0, b - 20), min(95, a + 24), min(79, b + 20)] for b in y for a in x]
    np.testing.assert_allclose(boxes.numpy(), expected, atol=1e-4)
    assert proposals.boxes.dtype == torch.float32 and proposals.index.dtype == torch.int64
    confidence = network.confidence(features, [proposals])
    np.testing.assert_allclose(confidence.numpy(), [[0.45, 0.1]] * 6, rtol=1e-5)
    np.testing.assert_allclose(network.scores(features, [proposals]).numpy(), [[logit(0.9), logit(0.2)]] * 6, rtol=1e-5)
    np.testing.assert_allclose(
        network.probabilities(network.scores(features, [proposals])), [[0.9, 0.2]] * 6, rtol=1e-5
    )


def test_detect_by_hand(tmp_path):
    """Boxes of 32 x 32 pixels, 16 apart: neighbours have IoU 1/3, diagonal ones 1/7."""
    biases = [0, 0, np.log(32 / 12), np.log(32 / 16), logit(0.5), logit(0.9), logit(0.2)]
    found = head(tmp_path, biases, score_threshold=0.3, nms=0.45).detect(images(32, 48, batch=2))
    assert len(found) == 2
    for detections in found:
        assert detections.labels.tolist() == [12] * 6  # 0.5 * 0.2 is below the threshold
        np.testing.assert_allclose(detections.scores, [0.45] * 6, rtol=1e-5)
    found = head(tmp_path, biases, score_threshold=0.05, nms=0.3).detect(images(32, 48))[0]
    # No two neighbours of the 3 x 2 cells remain; equal scores leave open whether that is 2 or 3 boxes per class.
    assert all(2 <= (found.labels == label).sum() <= 3 for label in (12, 15))
    assert (found.scores.diff() <= 0).all()
    assert head(tmp_path, biases, score_threshold=0.5).detect(images(32, 48))[0].boxes.shape == (0, 4)


def test_proposals_are_suppressed_whatever_the_class(tmp_path):
    network = tiny(tmp_path)
    features = network.features(images(60, 90, batch=2))
    for limit, nms in [(1000, 0.9), (1000, 0.2), (5, 0.9)]:
        for rows, proposals in zip(features.rows, network.propose(features, nms=nms, limit=limit), strict=True):
            assert 0 < len(proposals) <= min(limit, 60)
            confidence = (rows[:, 4:5].sigmoid() * rows[:, 5:].sigmoid()).amax(1)[proposals.index]
            assert (confidence.diff() <= 0).all()
    assert len(network.propose(features, nms=1.0, limit=1000)[0]) == 60


def test_batch_of_two_equals_two_images(tmp_path):
    network = tiny(tmp_path)
    pair = images(41, 57, batch=2)
    features = network.features(pair)
    proposals = network.propose(features, nms=0.9, limit=7)
    scores = network.scores(features, proposals)
    assert scores.shape == (14, 2)
    empty = proposals[0][torch.zeros(0, dtype=torch.int64)]
    for number in range(2):
        alone = network.features(pair[number : number + 1])
        mine = network.scores(alone, [proposals[number]])
        np.testing.assert_allclose(mine.numpy(), scores[7 * number : 7 * number + 7].numpy(), rtol=1e-4, atol=1e-5)
        assert torch.equal(network.propose(alone, nms=0.9, limit=7)[0].index, proposals[number].index)
    assert network.scores(features, [empty, proposals[1]]).shape == (7, 2)


# Gradients


def test_gradient(tmp_path):
    """Every pixel of a random sum of class logits against its central difference, float64."""
    network = tiny(tmp_path).double()
    image = images(10, 13).double()  # enlarged to 24 x 32
    proposals = network.propose(network.features(image), nms=0.9, limit=6)
    factors = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    assert_gradient(lambda x: network.scores(network.features(x), proposals) * factors, image, step=1e-5)


# Files that do not fit


def rejected(cfg: str, numbers, *, match: str, folder: Path, **options):
    with pytest.raises(ValueError, match=match) as error:
        build("dag.networks.darknet:yolo", {"labels": (12, 15)}, write(folder, cfg, numbers, **options))
    assert "\n" not in str(error.value) and "tiny." in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("[dropout]", "[gru]", r"tiny.cfg, layer 5 \[gru\], line 36: this kind of layer is not supported"),
        ("from=-2", "from=-2\nalpha=2", r"layer 3 \[shortcut\], line 30: option alpha=2 is not supported"),
        ("from=-2", "from=0", r"layer 3 .*outputs of the shapes 8 x 6 x 8 and 4 x 12 x 16 cannot be added"),
        ("from=-2", "from=3", r"layer 3 .*does not come before"),
        ("layers=-1, 2", "layers=-1, 0", r"layer 12 \[route\], .*7 x 6 x 8 and 4 x 12 x 16 cannot be joined"),
        ("layers=-1, 2", "layers=-1, x", "layers=-1, x is not made of whole numbers"),
        ("activation=leaky", "activation=norm_chan", "activation norm_chan is not supported"),
        ("from=-2\nactivation=linear", "from=-2\nactivation=ReLU", "activation ReLU is not supported"),
        ("classes=2", "classes=3", "3 classes do not fit 2 labels"),
        ("classes=2\n", "", "20 classes do not fit 2 labels"),
        ("mask = 1", "mask = 0,1", r"7 channels are not 2 anchors x \(5 \+ 2 classes\)"),
        ("mask = 1", "mask = 2", r"layer 9 \[yolo\], .*anchors \[2\] are requested"),
        ("anchors = 3,4, 10,14", "anchors = 3,4, 10", r"layer 9 \[yolo\], .*pairs"),
        ("nms_kind=greedynms", "nms_kind=cornersnms", "nms_kind cornersnms is not supported"),
        ("size=1", "size=1\nsize=1", "'size=1' is not expected here"),
        ("channels=3", "channels=1", "must have 3 channels"),
        ("width=32", "", "option width is missing"),
        ("[net]", "[network1]", r"first section is not \[net\]"),
        ("[net]", "net", "'net' is not expected here"),
        ("groups=2", "groups=3", r"layer 1 \[convolutional\], .*cannot be divided into 3 groups"),
    ],
)
def test_a_cfg_that_is_not_understood_is_rejected(tmp_path, old, new, match):
    assert old in LAYERS
    rejected(LAYERS.replace(old, new, 1), numbers_of_layers(0), match=match, folder=tmp_path)


def test_a_cfg_without_head_is_rejected(tmp_path):
    cfg = LAYERS[: LAYERS.index("[maxpool]")]
    rejected(cfg, numbers_of_layers(0)[:372], match=r"there is no \[yolo\] and no \[region\] layer", folder=tmp_path)


def test_weights_that_do_not_fit_are_rejected(tmp_path):
    numbers = numbers_of_layers(0)
    rejected(LAYERS, numbers[:-1], match=r"layer 13 .*tiny.weights ends before this layer is complete", folder=tmp_path)
    rejected(LAYERS, [*numbers, 0, 0], match="tiny.weights: 2 numbers too many for tiny.cfg", folder=tmp_path)
    # the header of the other version shifts all numbers by one
    rejected(LAYERS, numbers, match="tiny.weights", folder=tmp_path, version=(0, 2, 0), seen=b"\0" * 4)
    rejected(LAYERS, numbers, match="tiny.weights", folder=tmp_path, version=(0, 1, 0), seen=b"\0" * 8)
    rejected(LAYERS, [], match="not a header", folder=tmp_path, seen=b"")
    rejected(LAYERS, numbers, match="whole float32 numbers", folder=tmp_path, seen=b"\0" * 7)
    numbers[12:16] = -1e-5  # variances of the first layer
    rejected(LAYERS, numbers, match="tiny.weights has a variance of -1e-05", folder=tmp_path)


def test_a_foreign_cfg_is_rejected(tmp_path):
    files = write(tmp_path, LAYERS, numbers_of_layers(0))
    files["cfg"].write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="give a Darknet cfg file"):
        build("dag.networks.darknet:yolo", {}, files)


# The real networks


@pytest.mark.shared
@real
def test_raw_maps_agree_with_opencv(shared, name):
    network = real_network(shared, name)
    other = cv2.dnn.readNetFromDarknet(*(str(shared / "weights" / f"{name}.{role}") for role in ("cfg", "weights")))
    for image in real_images(shared, 10):
        small = torch.nn.functional.interpolate(image, network.frame, mode="bilinear", align_corners=False)
        other.setInput((small / 255).numpy())
        theirs = other.forward([f"conv_{number - 1}" for number in network.heads])
        for mine, their in zip(network.maps(image), theirs, strict=True):
            np.testing.assert_allclose(mine.numpy(), their, rtol=0, atol=1e-4)


@pytest.mark.shared
def test_nano_agrees_with_its_caffemodel(shared, tmp_path):
    """Other file format, other reader: the coarse head, with the epsilon of Darknet."""
    network = real_network(shared, NANO)
    text = (shared / "weights" / f"{NANO}.prototxt").read_text()
    text = text[: text.index('layer {\n    bottom: "layer65-conv"\n    top: "layer71-route"')]
    prototxt = tmp_path / "coarse.prototxt"
    prototxt.write_text(text.replace("use_global_stats: true", "use_global_stats: true eps: 0.000001"))
    other = cv2.dnn.readNetFromCaffe(str(prototxt), str(shared / "weights" / f"{NANO}.caffemodel"))
    for image in real_images(shared, 3):
        small = torch.nn.functional.interpolate(image, network.frame, mode="bilinear", align_corners=False)
        other.setInput((small / 255).numpy())
        np.testing.assert_allclose(network.maps(image)[0].numpy(), other.forward("layer69-conv"), rtol=0, atol=1e-4)


@pytest.mark.shared
@real
def test_detections_agree_with_opencv(shared, name):
    """Decoding and suppression of OpenCV; its [yolo] layer zeroes confidences up to the default of 0.2."""
    network = real_network(shared, name, score_threshold=0.2)
    other = cv2.dnn.readNetFromDarknet(*(str(shared / "weights" / f"{name}.{role}") for role in ("cfg", "weights")))
    found = 0
    for image in real_images(shared, 10):
        height, width = image.shape[-2:]
        small = torch.nn.functional.interpolate(image, network.frame, mode="bilinear", align_corners=False)
        other.setInput((small / 255).numpy())
        rows = np.concatenate([map_.reshape(-1, 25) for map_ in other.forward(other.getUnconnectedOutLayersNames())])
        centre, size = rows[:, :2] * (width, height), rows[:, 2:4] * (width, height)
        expected = []
        for column in range(20):
            boxes = np.concatenate([centre - size / 2, size], 1).astype(float)
            for row in cv2.dnn.NMSBoxes(boxes.tolist(), rows[:, 5 + column].tolist(), 0.2, network.nms):
                edges = np.concatenate([boxes[row, :2], boxes[row, :2] + boxes[row, 2:]])
                edges = edges.clip(0, [width - 1, height - 1] * 2)
                expected.append([rows[row, 5 + column], column + 1, *edges])
        expected = np.array(sorted(expected, reverse=True)).reshape(-1, 6)
        mine = network.detect(image)[0]
        assert mine.labels.tolist() == expected[:, 1].tolist()
        np.testing.assert_allclose(mine.scores, expected[:, 0], atol=1e-4)
        np.testing.assert_allclose(mine.boxes, expected[:, 2:], atol=0.05)
        found += len(expected)
    assert found > 10


@pytest.mark.shared
@real
def test_gradient_of_the_real_network(shared, name):
    network = real_network(shared, name).double()
    image = real_images(shared, 1)[0]
    proposals = network.propose(network.features(image.double()), nms=0.9, limit=200)

    assert_derivative(lambda x: network.scores(network.features(x), proposals)[:, 3:6], image.double(), step=1e-7)


@pytest.mark.shared
@real
def test_targets_of_the_real_network(shared, name):
    """Almost every anchor survives NMS 0.9; confidence orders the objects of an image as `detect` does."""
    network = real_network(shared, name)
    image = real_images(shared, 1)[0]
    features = network.features(image)
    proposals = network.propose(features, nms=0.9, limit=3000)[0]
    assert 1000 < len(proposals) <= 1500 and len(proposals.index.unique()) == len(proposals)
    height, width = image.shape[-2:]
    assert (proposals.boxes >= 0).all() and (proposals.boxes <= torch.tensor([width, height] * 2) - 1).all()
    confidence = network.confidence(features, [proposals])
    best = network.detect(image)[0]
    assert confidence.max() == best.scores[0]
    row = confidence.amax(1).argmax()
    assert confidence[row].argmax() + 1 == best.labels[0]
    assert overlap(proposals.boxes[row : row + 1], best.boxes[:1]).item() == 1
