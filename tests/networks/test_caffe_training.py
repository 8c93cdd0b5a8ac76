"""Training at full size: losses and steps against numbers by hand, and narrow networks that learn and go on."""

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_caffemodel import caffemodel
from torch import nn
from torch.nn import functional as F
from torch.optim.sgd import sgd

from dag.data import voc
from dag.networks import building, interface, training_common
from dag.networks.caffe import initialisation, losses, training
from dag.networks.caffe.deeplab import deeplab_resnet101
from dag.networks.caffe.faster_rcnn import faster_rcnn
from dag.networks.caffe.rfcn import rfcn

torch.set_num_threads(1)

RECIPES = yaml.safe_load((Path(__file__).parents[2] / "config" / "recipes.yaml").read_text())["recipes"]
LABELS = [0, 2, 8]
VGG16 = {"conv1": 4, "conv2": 4, "conv3": 6, "conv4": 6, "conv5": 8, "fc6": 12, "fc7": 10}
ALEXNET = {"conv1": 6, "conv2": 8, "conv3": 6, "conv4": 4, "conv5": 6, "fc6": 12, "fc7": 10}
ZF = {"conv1": 6, "conv2": 8, "conv3": 9, "conv4": 10, "conv5": 8, "rpn": 7, "fc6": 12, "fc7": 11}
FCN = "dag.networks.caffe.fcn:"
# name: (network, layers of the file it starts from with fc6 and fc7 as inner products)
NETWORKS = {
    "fcn-alexnet": {"architecture": FCN + "fcn_alexnet", "arguments": {"labels": LABELS, "widths": ALEXNET}},
    "fcn32s-vgg16": {"architecture": FCN + "fcn32s_vgg16", "arguments": {"labels": LABELS, "widths": VGG16}},
    "fcn16s-vgg16": {"architecture": FCN + "fcn16s_vgg16", "arguments": {"labels": LABELS, "widths": VGG16}},
    "fcn8s-vgg16": {"architecture": FCN + "fcn8s_vgg16", "arguments": {"labels": LABELS, "widths": VGG16}},
    "faster-rcnn-zf-07": {
        "architecture": "dag.networks.caffe.faster_rcnn:faster_rcnn",
        "arguments": {"body": "zf", "labels": LABELS, "widths": ZF, "short": 256, "long": 400, "smallest": 4},
    },
    "faster-rcnn-vgg16-07": {
        "architecture": "dag.networks.caffe.faster_rcnn:faster_rcnn",
        "arguments": {"body": "vgg16", "labels": LABELS, "widths": VGG16 | {"rpn": 7}, "short": 256, "smallest": 4},
    },
    "rfcn": {
        "architecture": "dag.networks.caffe.rfcn:rfcn",
        "arguments": {
            "body": "resnet50",
            "labels": LABELS,
            "widths": {"conv1": 2, "rpn": 7, "conv_new_1": 9},
            "short": 256,
            "smallest": 4,
        },
    },
    "deeplab-aspp": {
        "architecture": "dag.networks.caffe.deeplab:deeplab_vgg16",
        "arguments": {"labels": LABELS, "widths": VGG16 | {"fc6": 6, "fc7": 5}},
    },
    "deeplab-resnet101": {
        "architecture": "dag.networks.caffe.deeplab:deeplab_resnet101",
        "arguments": {"labels": LABELS, "width": 2},
    },
}


def entry(recipe: str) -> dict:
    """The network of a recipe, narrow."""
    task = RECIPES[recipe]["task"]
    return {"name": recipe, "task": task} | NETWORKS[recipe]


def build(recipe: str, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return building.build(NETWORKS[recipe]["architecture"], NETWORKS[recipe]["arguments"], fold=False)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tree(tmp_path) -> list[tuple[Path, str]]:
    """Two images in the VOC layout: a bright square (class 2) and a dark one (class 8) on grey."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "Annotations"):
        (tmp_path / "VOC" / folder).mkdir(parents=True)
    for number in range(2):
        pixels, label_map, objects = rng.normal(120, 5, (72, 96, 3)), np.zeros((72, 96), np.uint8), ""
        for half, (label, colour) in enumerate(((2, 220), (8, 30))):
            y, x = (int(value) for value in (rng.integers(4, 30), rng.integers(2, 10) + 48 * half))
            pixels[y : y + 36, x : x + 36] = colour
            label_map[y : y + 36, x : x + 36] = label
            edges = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + 36, y + 36), strict=True)
            box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
            objects += f"<object><name>{voc.CLASSES[label]}</name><bndbox>{box}</bndbox></object>"
        label_map[0] = 255
        root = tmp_path / "VOC"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "JPEGImages" / f"{number}.jpg", quality=98)
        Image.fromarray(label_map).save(root / "SegmentationClass" / f"{number}.png")
        (root / "Annotations" / f"{number}.xml").write_text(f"<annotation>{objects}</annotation>")
    return [(tmp_path / "VOC", "0"), (tmp_path / "VOC", "1")]


def imagenet(recipe: str, folder: Path) -> tuple[Path, dict[str, list[np.ndarray]]]:
    """A caffemodel as of a classification network: old format, inner products, another last layer; its blobs too."""
    network = build(recipe, seed=7)
    blobs = {}
    if RECIPES[recipe].get("decimated"):
        blobs["fc6"] = [numbers(1, 1, 25, 8 * 49).numpy() * 0.1, numbers(1, 1, 1, 25, seed=1).numpy()]
        blobs["fc7"] = [numbers(1, 1, 23, 25, seed=2).numpy() * 0.1, numbers(1, 1, 1, 23, seed=3).numpy()]
    for name, module in initialisation.layers(network).items():
        others = [*RECIPES[recipe]["new"], *RECIPES[recipe].get("decimated", {}), "upscore.*"]
        if any(re.fullmatch(pattern, name) for pattern in others):
            continue
        blobs[name] = [tensor.numpy().copy() for key, tensor in module.state_dict().items() if "." not in key]
        if name in ("fc6", "fc7"):
            blobs[name][0] = blobs[name][0].reshape(1, 1, len(blobs[name][0]), -1)
    blobs["fc1000" if "conv1" in blobs and "res2a_branch1" in blobs else "fc8"] = [np.ones((5, 4), np.float32)]
    path = folder / f"{recipe}.caffemodel"
    path.write_bytes(
        caffemodel({name: ("Convolution", arrays) for name, arrays in blobs.items()}, v1=True, legacy=True)
    )
    return path, blobs


def fit(recipe: str, images, folder: Path, initial: Path | None = None, seed: int = 0, code: str = "", **changes):
    settings = RECIPES[recipe] | changes
    initial = initial or imagenet(recipe, folder)[0]
    return training.fit(entry(recipe), settings, images, initial, folder / "one.checkpoint", seed=seed, code=code)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def printed_losses(capsys) -> list[float]:
    return [float(line.rpartition(" ")[2]) for line in capsys.readouterr().err.splitlines() if ", loss " in line]


# The solver


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"kind": "fixed"}, {0: 0.5, 99: 0.5}),
        ({"kind": "step", "every": 40, "factor": 0.1}, {0: 0.5, 39: 0.5, 40: 0.05, 79: 0.05, 80: 0.005}),
        ({"kind": "poly", "power": 0.9}, {0: 0.5, 50: 0.5 * 0.5**0.9, 75: 0.5 * 0.25**0.9, 99: 0.5 * 0.01**0.9}),
    ],
)
def test_rates(schedule, rates):
    recipe = {"rate": 0.5, "schedule": schedule, "iterations": 100}
    for iteration, expected in rates.items():
        assert training.rate(recipe, iteration) == pytest.approx(expected, rel=1e-12)


def test_steps_follow_the_definition():
    """Against a loop over single numbers in double precision; the rate changes on the way."""
    weight, velocity = numbers(6), torch.zeros(6)
    w, v = weight.double().tolist(), [0.0] * 6
    for step in range(8):
        gradient, rate = numbers(6, seed=step + 1), 0.1 if step < 4 else 0.01
        training.descend(weight, gradient, velocity, rate=rate, momentum=0.9, decay=0.3)
        for i, g in enumerate(gradient.double().tolist()):
            v[i] = 0.9 * v[i] + rate * (g + 0.3 * w[i])
            w[i] -= v[i]
    np.testing.assert_allclose(weight, w, rtol=1e-5)
    np.testing.assert_allclose(velocity, v, rtol=1e-4, atol=1e-7)


def test_steps_at_a_fixed_rate_are_those_of_the_library():
    ours, theirs = numbers(5), numbers(5)
    velocity, buffers = torch.zeros(5), [torch.zeros(5)]
    settings = {"weight_decay": 5e-4, "momentum": 0.99, "lr": 0.05, "dampening": 0, "nesterov": False}
    for step in range(10):
        gradient = numbers(5, seed=step + 1)
        training.descend(ours, gradient, velocity, rate=0.05, momentum=0.99, decay=5e-4)
        sgd([theirs], [gradient], buffers, maximize=False, foreach=False, fused=False, **settings)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_tiny_rates_are_not_lost():
    """FCN-8s learns at 1e-14 from gradients that are sums over pixels."""
    velocity = torch.zeros(1)
    training.descend(torch.ones(1), torch.full((1,), 1e6), velocity, rate=1e-14, momentum=0.99, decay=0)
    assert velocity.item() == pytest.approx(1e-8, rel=1e-6)


def test_learned_weights_and_their_multiples():
    network = build("fcn-alexnet")
    found = {id(weight): rest for weight, *rest in training.learned_weights(network, RECIPES["fcn-alexnet"])}
    assert found[id(network.conv1.weight)] == found[id(network.conv1.bias)] == found[id(network.fc7.bias)] == [1, 1]
    assert found[id(network.score_fr.weight)] == [1, 1] and found[id(network.score_fr.bias)] == [2, 0]
    assert id(network.upscore.weight) not in found and len(found) == 16
    network = build("fcn8s-vgg16")
    found = {id(weight): rest for weight, *rest in training.learned_weights(network, RECIPES["fcn8s-vgg16"])}
    assert found[id(network.trunk["conv1_1"].bias)] == [2, 0] and len(found) == 2 * (13 + 5)
    with pytest.raises(ValueError, match=r"recipe: 'upscroe' matches no layer; the network has conv1_1, "):
        training.learned_weights(network, {"frozen": "upscroe"})


@pytest.mark.parametrize(
    ("recipe", "frozen"),
    [
        ("faster-rcnn-vgg16-07", {"conv1_1", "conv1_2", "conv2_1", "conv2_2"}),
        ("faster-rcnn-zf-07", set()),
        ("fcn16s-vgg16", {"upscore2", "upscore16"}),
    ],
)
def test_frozen_layers(recipe, frozen):
    network = build(recipe)
    learned = {id(weight) for weight, _, _ in training.learned_weights(network, RECIPES[recipe])}
    still = {name for name, module in initialisation.layers(network).items() if id(module.weight) not in learned}
    assert still == frozen


def test_frozen_layers_of_resnets():
    for recipe, learned_stages in (("rfcn", "345"), ("deeplab-resnet101", "2345")):
        network = build(recipe)
        learned = {id(weight) for weight, _, _ in training.learned_weights(network, RECIPES[recipe])}
        for name, module in initialisation.layers(network).items():
            is_learned = any(id(parameter) in learned for parameter in module.parameters(recurse=False))
            if name.startswith(("bn", "scale")):
                assert not is_learned
            elif name.startswith("res"):
                assert is_learned == (name[3] in learned_stages)
            else:
                assert is_learned == (name != "conv1" or recipe == "deeplab-resnet101")


# Losses


def test_softmax_loss_by_hand():
    """Two pixels of two classes and a void one: -log p is log(1 + e^-1) = 0.3133 and log(1 + e^2) = 2.1269."""
    scores = torch.tensor([[[[1.0, 0.0, 9.0]], [[0.0, 2.0, 0.0]]]])
    wanted = torch.tensor([[[0, 0, 255]]])
    total = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))
    assert losses.softmax_loss(scores, wanted, mean=True).item() == pytest.approx(total / 2, rel=1e-6)
    assert losses.softmax_loss(scores, wanted, mean=False).item() == pytest.approx(total, rel=1e-6)
    twice = losses.softmax_loss(torch.cat([scores, scores]), torch.cat([wanted, wanted]), mean=False)
    assert twice.item() == pytest.approx(total, rel=1e-6)  # Caffe divides the sum by the batch
    assert losses.softmax_loss(scores, torch.full_like(wanted, 255)).item() == 0


def test_smooth_l1_by_hand():
    x = torch.tensor([0.0, 0.05, -0.1, 1 / 9, 0.5, -2.0])
    # (3 x)^2 / 2 up to 1/9, then |x| - 1/18
    expected = [0, 0.01125, 0.045, 1 / 18, 0.5 - 1 / 18, 2 - 1 / 18]
    np.testing.assert_allclose(losses.smooth_l1(x, 3), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.smooth_l1(x, 1), [0, 0.00125, 0.005, 1 / 162, 0.125, 1.5], rtol=1e-5)


def test_anchor_targets_by_hand():
    """Squares of 10 pixels in an image of 20 x 40; an object of the same size, and one half as large."""
    anchors = torch.tensor(
        [
            [0, 0, 9, 9],  # is the first object
            [2, 0, 11, 9],  # overlap 80 / 120
            [1, 0, 10, 9],  # 90 / 110
            [20, 0, 29, 9],  # the best of the second object, only 0.5
            [24, 5, 33, 14],  # 5 of 145 pixels of the second
            [-1, 0, 8, 9],  # leaves the image
            [31, 0, 40, 9],  # the same
            [10, 10, 19, 19],  # nothing there
        ]
    ).float()
    truth = torch.tensor([[0.0, 0, 9, 9], [20, 0, 29, 4]])
    positive, negative, match = losses.anchor_targets(anchors, truth, (20, 40))
    assert positive.tolist() == [True, False, True, True, False, False, False, False]
    assert negative.tolist() == [False, False, False, False, True, False, False, True]
    assert match[:4].tolist() == [0, 0, 0, 1]
    # an object far away from all anchors makes no anchor positive
    positive, negative, _ = losses.anchor_targets(anchors, torch.tensor([[36.0, 15, 39, 19]]), (20, 40))
    assert not positive.any() and negative.tolist() == [True] * 5 + [False] * 2 + [True]


def test_sampling():
    first, second = torch.zeros(400, dtype=torch.bool), torch.zeros(400, dtype=torch.bool)
    first[:200], second[200:] = True, True
    rows = losses.sample(first, second, 128, 256)
    assert len(rows) == 256 and first[rows].sum() == 128 and len(set(rows.tolist())) == 256
    first[10:200] = False
    rows = losses.sample(first, second, 128, 256)
    assert first[rows].sum() == 10 and second[rows].sum() == 200 and len(rows) == 210


class Scripted(nn.Module):
    """A detector that says what it is told: one anchor on each of the two objects, and nothing else."""

    proposal_nms = 0.7

    def __init__(self, objectness, anchor_deltas, scores, deltas):
        super().__init__()
        self.outputs = objectness, anchor_deltas, scores, deltas

    def features(self, image):
        return type("Features", (), {"scale": 2.0, "resized": (40, 40)})

    def anchors(self, features):
        return torch.tensor([[0.0, 0, 9, 9], [20, 20, 29, 29]])

    def objectness_and_deltas(self, features):
        return self.outputs[:2]

    def select(self, features, objectness, deltas, *, nms, limit, candidates):
        assert (nms, limit, candidates) == (0.7, 2000, 12000)
        return [interface.Proposals(torch.tensor([[0.0, 0, 4.5, 4.5], [10, 10, 13, 14.5]]))]

    def windows(self, features, proposals):
        return F.pad(proposals[0].boxes * features.scale, (1, 0))

    def regions(self, features, proposals):
        self.seen = proposals[0].boxes
        return self.outputs[2][: len(self.seen)], self.outputs[3][: len(self.seen)]


@pytest.mark.parametrize("mining", [False, True])
def test_detection_loss_by_hand(mining, monkeypatch):
    """One object, (0, 0, 9, 9) after scaling by 2: it is an anchor, a proposal, and is added to the proposals."""
    network = Scripted(
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([[[0.1, 0, 0, 0.5], [9, 9, 9, 9]]]),
        torch.zeros(3, 4),
        torch.zeros(3, 3, 4),
    )
    network.outputs[3][:, 1] = torch.tensor([1.0, 0, 0, 3])  # the object's class is column 2, without background row 1
    truth, columns = torch.tensor([[0.0, 0, 4.5, 4.5]]), torch.tensor([2])
    recipe = RECIPES["faster-rcnn-zf-07"] | {"mining": mining}
    # the first anchor is the object, the second is background
    loss = (math.log(2) + math.log(1 + math.exp(1))) / 2
    loss += (0.045 + 0.5 - 1 / 18) / 2
    # three proposals of log(4) each; two of them are the object, deltas off by 1 and 3
    loss += math.log(4) + 2 * (0.5 + 2.5) / 3
    assert losses.detection_loss(network, None, truth, columns, recipe).item() == pytest.approx(loss, rel=1e-5)
    if mining:  # of the three the hardest counts: log(4) + 3
        monkeypatch.setattr(losses, "REGIONS", 1)
        loss += 3 - 2
        assert losses.detection_loss(network, None, truth, columns, recipe).item() == pytest.approx(loss, rel=1e-5)


def test_box_targets_are_in_units_of_the_spread():
    """A proposal 10 wide that must move by 1 and grow by e^0.2: targets (0.1, 0, 0.2, 0) become (1, 0, 1, 0)."""
    network = Scripted(torch.zeros(1, 2), torch.zeros(1, 2, 4), torch.zeros(3, 2), torch.zeros(3, 1, 4))
    wide = 10 * math.exp(0.2)
    truth = torch.tensor([[6 - wide / 2, 0, 5 + wide / 2, 9]]) / 2
    recipe = RECIPES["faster-rcnn-zf-07"] | {"mining": True}  # keeps the order of the proposals
    wrong = losses.detection_loss(network, None, truth, torch.tensor([1]), recipe).item()
    network.outputs[3][0, 0] = torch.tensor([1.0, 0, 1, 0])
    right = losses.detection_loss(network, None, truth, torch.tensor([1]), recipe).item()
    # smooth L1 of 1 is 1/2, twice, one of three proposals
    assert wrong - right == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("name", ["faster", "rfcn"])
def test_trained_deltas_are_scaled_for_the_test(name):
    """What the layer says after it is what it said before, times (0.1, 0.1, 0.2, 0.2)."""
    if name == "faster":
        network = faster_rcnn("zf", labels=LABELS, widths=ZF, short=128, long=200, smallest=4)
    else:
        network = rfcn("resnet50", labels=LABELS, widths={"conv1": 2, "rpn": 7, "conv_new_1": 9}, short=128, long=200)
    network.eval().requires_grad_(False)
    features = network.features(255 * torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(0)))
    proposals = [interface.Proposals(torch.tensor([[3.0, 4, 50, 60], [0, 0, 79, 63], [20, 8, 70, 30]]))]
    scores, before = network.regions(features, proposals)
    losses.scale_deltas(network)
    again, after = network.regions(features, proposals)
    torch.testing.assert_close(scores, again)
    assert before.abs().min() > 0
    torch.testing.assert_close(after, before * torch.tensor([0.1, 0.1, 0.2, 0.2]), rtol=1e-5, atol=1e-8)


# What training sees


@pytest.mark.parametrize("mirror", ["never", "coin", "copies"])
def test_shuffled_images_come_once_in_a_round(mirror):
    recipe = {"order": "shuffled", "mirror": mirror}
    size = 14 if mirror == "copies" else 7
    pick = training.order(7, recipe, seed=3)
    rounds = [[pick(number) for number in range(start, start + size)] for start in (0, size, 5 * size)]
    for shown in rounds:
        assert sorted(row for row, _ in shown) == sorted(list(range(7)) * (size // 7))
        if mirror == "copies":
            assert len(set(shown)) == 14
    assert rounds[0] != rounds[1]
    assert [training.order(7, recipe, seed=3)(number) for number in range(size)] == rounds[0]
    assert [training.order(7, recipe, seed=4)(number) for number in range(size)] != rounds[0]
    mirrored = np.mean([pick(number)[1] for number in range(700)])
    assert mirrored == 0 if mirror == "never" else 0.4 < mirrored < 0.6


def test_drawn_images_may_repeat():
    pick = training.order(10, {"order": "drawn", "mirror": "never"}, seed=0)
    rows = [pick(number)[0] for number in range(1000)]
    assert len(set(rows[:10])) < 10 and min(np.bincount(rows)) > 60


def test_crop():
    image, wanted = torch.arange(60.0).reshape(1, 6, 10).expand(3, 6, 10), torch.arange(60).reshape(6, 10)
    mean = torch.tensor([10.0, 20, 30])[:, None, None]
    places = set()
    for seed in range(40):
        part, columns = training.crop(image, wanted, 5, mean, np.random.default_rng(seed))
        assert part.shape == (3, 5, 5)
        torch.testing.assert_close(part[0].long(), columns)
        places.add(int(columns[0, 0]))
    assert places <= {10 * y + x for y in (0, 1) for x in range(6)} and len(places) > 8
    part, columns = training.crop(image, wanted, 8, mean, np.random.default_rng(0))
    assert (columns[6:] == 255).all() and torch.equal(part[:, 6:], mean.expand(3, 2, 8))
    assert columns[0, 0] <= 2 and torch.equal(columns[:6], wanted[:, columns[0, 0] : columns[0, 0] + 8])


def test_label_maps_are_shrunk_to_the_places_of_the_scores():
    wanted = torch.arange(321 * 321).reshape(1, 321, 321)
    for size, step in ((41, 8), (21, 16), (11, 32)):
        assert torch.equal(training.shrink(wanted, (size, size)), wanted[:, ::step, ::step])
    rows = training.shrink(wanted, (31, 31))[0, :, 0] // 321
    assert rows.tolist() == [round(i * 320 / 30) for i in range(31)]


def test_resizing():
    image, wanted = torch.arange(8.0).expand(3, 4, 8), torch.arange(8).expand(4, 8)
    bigger, columns = training.resize(image, wanted, 1.5)
    assert bigger.shape == (3, 6, 12) and columns.shape == (6, 12)
    # sample i lies at (i + 1/2) / 1.5 - 1/2
    np.testing.assert_allclose(bigger[0, 0], np.clip((np.arange(12) + 0.5) / 1.5 - 0.5, 0, 7), atol=1e-5)
    assert columns[0].tolist() == [int(i / 1.5) for i in range(12)]
    assert training.resize(image, wanted, 1) == (image, wanted)


def test_deeplab_learns_at_every_scale():
    network = deeplab_resnet101(labels=LABELS, width=2, frame=65).eval().requires_grad_(False)
    images = 255 * torch.rand(1, 3, 65, 65, generator=torch.Generator().manual_seed(0))
    maps = network.score_maps(images)
    assert [one.shape[-1] for one in maps] == [9, 9, 7, 5]
    torch.testing.assert_close(maps[0], network.body(images))
    sizes = [F.interpolate(one, (9, 9), mode="bilinear", align_corners=True) for one in (maps[1], maps[3])]
    assert (maps[0] >= torch.maximum(*sizes) - 1e-5).all()


# Initial weights


@pytest.mark.parametrize("recipe", ["fcn-alexnet", "fcn32s-vgg16", "faster-rcnn-zf-07", "rfcn"])
def test_initial_weights_from_a_classification_network(recipe, tmp_path):
    path, blobs = imagenet(recipe, tmp_path)
    network = build(recipe)
    torch.manual_seed(0)
    initialisation.initialise(network, RECIPES[recipe], path)
    for name, module in initialisation.layers(network).items():
        tensors = [tensor for key, tensor in module.state_dict().items() if "." not in key]
        if name in blobs:
            for tensor, blob in zip(tensors, blobs[name], strict=True):
                np.testing.assert_array_equal(tensor, blob.reshape(tensor.shape))
        elif name == "upscore":
            assert torch.equal(tensors[0], build(recipe).upscore.weight)
        else:
            deviation = next(s for key, s in RECIPES[recipe]["new"].items() if re.fullmatch(key, name))
            assert not tensors[1].any()
            assert tensors[0].std() == pytest.approx(deviation, rel=0.3) if deviation else not tensors[0].any()


def test_decimated_weights(tmp_path):
    """Every fourth of 25 filters, six of them; every third place of 7 x 7; and fc7 reads the filters that are left."""
    path, blobs = imagenet("deeplab-aspp", tmp_path)
    network = build("deeplab-aspp")
    initialisation.initialise(network, RECIPES["deeplab-aspp"], path)
    fc6, fc7 = blobs["fc6"][0].reshape(25, 8, 7, 7), blobs["fc7"][0].reshape(23, 25)
    for branch in "1234":
        module = network.head[f"fc6_{branch}"]
        for o, i, y, x in np.ndindex(6, 8, 3, 3):
            assert module.weight[o, i, y, x] == fc6[4 * o, i, 3 * y, 3 * x]
        assert module.bias.tolist() == blobs["fc6"][1].ravel()[:24:4].tolist()
        module = network.head[f"fc7_{branch}"]
        for o, i in np.ndindex(5, 6):
            assert module.weight[o, i, 0, 0] == fc7[4 * o, 4 * i]
        assert not network.head[f"fc8_voc12_{branch}"].bias.any()
    wide = {"labels": LABELS, "widths": VGG16 | {"fc6": 26, "fc7": 5}}
    with pytest.raises(ValueError, match=r"'fc6' of \(25, 8, 7, 7\) cannot be subsampled to \(26, 8, 3, 3\)"):
        initialisation.initialise(
            building.build(NETWORKS["deeplab-aspp"]["architecture"], wide), RECIPES["deeplab-aspp"], path
        )


def test_initial_weights_must_fit(tmp_path):
    path, _ = imagenet("fcn-alexnet", tmp_path)
    with pytest.raises(ValueError, match=r"fcn-alexnet.caffemodel: layer 'conv1_1' is missing or has no weights"):
        initialisation.initialise(build("fcn32s-vgg16"), RECIPES["fcn32s-vgg16"], path)
    with pytest.raises(ValueError, match="recipe: 'score_frr' matches no layer; the network has conv1, "):
        initialisation.initialise(build("fcn-alexnet"), RECIPES["fcn-alexnet"] | {"new": {"score_frr": 0}}, path)


def test_each_stage_inherits_from_the_one_before(tmp_path):
    stages = [build(f"fcn{stride}s-vgg16", seed=stride) for stride in (32, 16, 8)]
    for stride, before, after in zip((16, 8), stages, stages[1:], strict=False):
        path = tmp_path / f"{stride}.pt"
        torch.save(before.state_dict(), path)
        initialisation.initialise(after, RECIPES[f"fcn{stride}s-vgg16"], path)
        old, new = initialisation.layers(before), training.layers(after)
        for name, module in new.items():
            if name == {16: "score_pool4", 8: "score_pool3"}[stride]:
                assert not module.weight.any() and not module.bias.any()
            elif not name.startswith("upscore"):
                assert torch.equal(module.weight, old[name].weight) and torch.equal(module.bias, old[name].bias)
    # a new skip of zeros, two bilinear upsamplings in place of one: nearly the same scores
    image = 255 * torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    first, second, third = (stage.eval()(image).detach() for stage in stages)
    for one, other in ((first, second), (second, third)):
        assert 0 < (one - other).abs().mean() < 0.1 * one.abs().mean()


def test_a_stage_refuses_what_is_not_the_one_before(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(build("fcn8s-vgg16").state_dict(), path)
    with pytest.raises(ValueError, match="weights.pt: layer 'score_pool4' has no place in the network"):
        initialisation.initialise(build("fcn16s-vgg16"), RECIPES["fcn16s-vgg16"], path)
    torch.save(build("fcn32s-vgg16").state_dict(), path)
    with pytest.raises(ValueError, match="weights.pt: layer 'score_pool4' is missing; is this the stage before"):
        initialisation.initialise(build("fcn8s-vgg16"), RECIPES["fcn8s-vgg16"], path)
    other = NETWORKS["fcn32s-vgg16"]["arguments"] | {"widths": VGG16 | {"fc7": 11}}
    torch.save(building.build(FCN + "fcn32s_vgg16", other).state_dict(), path)
    with pytest.raises(ValueError, match="weights.pt: layer 'fc7' does not fit: size mismatch for "):
        initialisation.initialise(build("fcn16s-vgg16"), RECIPES["fcn16s-vgg16"], path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="weights.pt: cannot be read as a state dict"):
        initialisation.initialise(build("fcn16s-vgg16"), RECIPES["fcn16s-vgg16"], path)


# Training


FASTER = {"rate": 1e-2, "schedule": {"kind": "fixed"}, "candidates": 300, "proposals": 60}
# recipe: changes with which a narrow network learns two images in no time
QUICK = {
    "fcn-alexnet": {"iterations": 30, "passes": 2, "rate": 1e-2},
    "fcn32s-vgg16": {"iterations": 30, "rate": 1e-6, "momentum": 0.9},
    "faster-rcnn-zf-07": FASTER | {"iterations": 12},
    "faster-rcnn-vgg16-07": FASTER | {"iterations": 12},
    "rfcn": FASTER | {"iterations": 10, "rate": 5e-2},
    "deeplab-aspp": {"iterations": 12, "batch": 3, "crop": 65, "rate": 1e-2},
    "deeplab-resnet101": {"iterations": 8, "passes": 2, "crop": 65, "rate": 1e-3},
}


@pytest.mark.parametrize("recipe", QUICK)
def test_the_loss_falls_and_frozen_layers_stay(recipe, tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_common.progress, "__defaults__", (1,))
    settings = RECIPES[recipe] | QUICK[recipe]
    path, _ = imagenet(recipe, tmp_path)
    start = build(recipe)
    initialisation.initialise(start, settings, path)
    network = fit(recipe, tree, tmp_path, path, **QUICK[recipe])
    shown = printed_losses(capsys)
    assert len(shown) == settings["iterations"]
    assert np.mean(shown[-3:]) < 0.95 * np.mean(shown[:3])
    learned = {id(weight) for weight, _, _ in training.learned_weights(start, settings)}
    before, after = dict(start.named_parameters()), dict(network.named_parameters())
    # in a narrow network some layers may be dead, but never all of them
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if id(before[name]) not in learned}.isdisjoint(moved)
    assert len(moved) > 0.5 * len(learned)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("recipe", ["fcn-alexnet", "faster-rcnn-zf-07"])
def test_a_training_that_goes_on_ends_with_the_same_weights(recipe, tree, tmp_path, monkeypatch):
    """Killed in the fifth iteration, with a checkpoint after the third."""
    changes = QUICK[recipe] | {"iterations": 6, "checkpoint": 3}
    path, _ = imagenet(recipe, tmp_path)
    whole = fit(recipe, tree, tmp_path, path, **changes | {"checkpoint": 100})
    assert not (tmp_path / "one.checkpoint").exists()

    steps = []
    real = training.rate

    def killed(settings, iteration):
        steps.append(iteration)
        if iteration == 4:
            raise KeyboardInterrupt
        return real(settings, iteration)

    monkeypatch.setattr(training, "rate", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, tree, tmp_path, path, **changes)
    assert (tmp_path / "one.checkpoint").exists() and steps == [0, 1, 2, 3, 4]
    steps.clear()
    monkeypatch.setattr(training, "rate", lambda *arguments: steps.append(arguments[1]) or real(*arguments))
    torch.rand(5)
    resumed = fit(recipe, tree, tmp_path, path, **changes)
    assert steps == [3, 4, 5]
    assert same_weights(whole, resumed)


def test_a_checkpoint_of_another_training_is_not_used(tree, tmp_path, capsys):
    path, _ = imagenet("fcn-alexnet", tmp_path)
    changes = QUICK["fcn-alexnet"] | {"iterations": 3, "checkpoint": 2}
    first = fit("fcn-alexnet", tree, tmp_path, path, **changes)
    fit("fcn-alexnet", tree, tmp_path, path, **changes)
    assert "training is resumed after 2 iterations" in capsys.readouterr().err
    for other in ({"seed": 1}, {"code": "x"}, {"momentum": 0.8}):
        network = fit("fcn-alexnet", tree, tmp_path, path, **changes | other)
        assert (
            "belongs to a training with other settings; training starts from the beginning" in capsys.readouterr().err
        )
        assert "code" in other or not same_weights(first, network)
    assert same_weights(first, fit("fcn-alexnet", tree, tmp_path, path, **changes))
    (tmp_path / "one.checkpoint").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="one.checkpoint: the checkpoint cannot be read .*; delete it"):
        fit("fcn-alexnet", tree, tmp_path, path, **changes)


def test_the_global_generator_is_left_alone(tree, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fit("fcn-alexnet", tree, tmp_path, imagenet("fcn-alexnet", tmp_path)[0], **QUICK["fcn-alexnet"] | {"iterations": 1})
    assert torch.equal(torch.rand(1), expected)


def test_a_step_follows_the_mean_gradient_of_its_passes(tmp_path):
    """One number, loss (w - x)^2 / 2 for x = 1, 2, 3: the gradient at 0 is -2, the next one -2 (1 - 0.1)."""
    network = nn.ModuleDict({"one": nn.Conv2d(1, 1, 1)})
    nn.init.zeros_(network["one"].weight)
    recipe = {"iterations": 2, "passes": 3, "rate": 0.1, "schedule": {"kind": "fixed"}, "momentum": 0.5, "decay": 0.0}
    settings = {"seed": 0, "identity": "", "title": "one"}
    training.minimise(
        network,
        lambda number: (float(number % 3 + 1),),
        lambda x: (network["one"].weight - x).square().sum() / 2 + 0 * network["one"].bias.sum(),
        recipe | {"checkpoint": 9},
        tmp_path / "none",
        **settings,
    )
    # V = 0.2 negative, w = 0.2; V = 0.5 * 0.2 + 0.1 * 1.8 = 0.28, w = 0.48
    assert network["one"].weight.item() == pytest.approx(0.48, rel=1e-6)


def test_infinite_loss_stops_with_a_sentence(tree, tmp_path):
    with pytest.raises(ValueError, match=r"fcn-alexnet: the loss is (nan|inf) at iteration \d+; check the training"):
        fit("fcn-alexnet", tree, tmp_path, **QUICK["fcn-alexnet"] | {"rate": 1e20})


def test_bad_training_sets_are_refused(tree, tmp_path):
    root = tree[0][0]
    label_map = np.array(Image.open(root / "SegmentationClass" / "1.png"))
    label_map[3, 3] = 15
    Image.fromarray(label_map).save(root / "SegmentationClass" / "1.png")
    with pytest.raises(ValueError, match=r"fcn-alexnet, image 1: class ids \[15\] occur in the training set"):
        fit("fcn-alexnet", tree, tmp_path, **QUICK["fcn-alexnet"])
    annotation = root / "Annotations" / "1.xml"
    annotation.write_text(annotation.read_text().replace(voc.CLASSES[8], "person"))
    with pytest.raises(ValueError, match=r"faster-rcnn-zf-07, image 1: class ids \[15\] occur"):
        fit("faster-rcnn-zf-07", tree, tmp_path, **QUICK["faster-rcnn-zf-07"])
    annotation.write_text("<annotation/>")
    with pytest.raises(ValueError, match="faster-rcnn-zf-07: no image has an object to learn"):
        fit("faster-rcnn-zf-07", tree[1:], tmp_path, **QUICK["faster-rcnn-zf-07"])
    with pytest.raises(ValueError, match="fcn-alexnet: images differ in size; give the recipe a `crop`"):
        fit("fcn-alexnet", tree, tmp_path, batch=2)
    matlab = copy.deepcopy(entry("faster-rcnn-zf-07"))
    matlab["arguments"]["convention"] = "matlab"
    path = imagenet("faster-rcnn-zf-07", tmp_path)[0]
    with pytest.raises(ValueError, match="recipes of detection need a Python convention; choose 'py'"):
        training.fit(matlab, RECIPES["faster-rcnn-zf-07"], tree, path, tmp_path / "x", seed=0)


def test_difficult_objects_and_empty_images_take_no_part(tree, tmp_path):
    root = tree[0][0]
    changes = QUICK["faster-rcnn-zf-07"] | {"iterations": 2}
    path, _ = imagenet("faster-rcnn-zf-07", tmp_path)
    annotation = root / "Annotations" / "0.xml"
    everything = annotation.read_text()
    first = everything[: everything.index("</object>") + 9] + "</annotation>"
    second = everything[everything.index("</object>") + 9 :]
    annotation.write_text(first)
    easy = fit("faster-rcnn-zf-07", tree[:1], tmp_path, path, **changes)
    annotation.write_text(first[:-13] + second.replace("<object>", "<object><difficult>1</difficult>"))
    (root / "Annotations" / "1.xml").write_text("<annotation/>")
    assert same_weights(easy, fit("faster-rcnn-zf-07", tree, tmp_path, path, **changes))


def test_the_result_is_used_like_a_released_network(tree, tmp_path):
    """Trained, saved and built again as any network of the configuration; both test functions work."""
    for recipe in ("fcn-alexnet", "faster-rcnn-zf-07"):
        trained = fit(recipe, tree, tmp_path, **QUICK[recipe] | {"iterations": 2})
        path = tmp_path / f"{recipe}.pt"
        training_common.save(trained.state_dict(), path)
        again = building.build(**NETWORKS[recipe], files={"state_dict": path})
        image = torch.from_numpy(voc.read_image(*tree[0]))[None]
        if recipe == "fcn-alexnet":
            assert torch.equal(again(image), trained(image)) and again.label_map(image).shape == (1, 72, 96)
        else:
            assert len(again.detect(image)) == 1
            assert torch.equal(again.detect(image)[0].boxes, trained.detect(image)[0].boxes)


def test_recipes_say_what_was_published():
    """The figures that decide, once more, from the solvers and training graphs."""
    fcn = [RECIPES[f"fcn{stride}s-vgg16"] for stride in (32, 16, 8)]
    assert [recipe["rate"] for recipe in fcn] == [1e-10, 1e-12, 1e-14]
    assert {(r["loss"], r["momentum"], r["decay"], r["passes"]) for r in fcn} == {("sum", 0.99, 5e-4, 1)}
    alex = RECIPES["fcn-alexnet"]
    assert (alex["loss"], alex["rate"], alex["passes"], alex["iterations"]) == ("mean", 1e-4, 20, 100_000)
    for name in ("zf", "vgg16"):
        first, second = RECIPES[f"faster-rcnn-{name}-07"], RECIPES[f"faster-rcnn-{name}-0712"]
        assert (first["iterations"], first["schedule"]["every"], first["passes"]) == (70_000, 50_000, 2)
        assert (second["iterations"], second["schedule"]["every"]) == (110_000, 80_000)
    deeplab = [RECIPES[f"deeplab-{name}"] for name in ("large-fov", "aspp", "resnet101")]
    assert [recipe["iterations"] for recipe in deeplab] == [6000, 20_000, 20_000]
    assert [recipe["passes"] * recipe["batch"] for recipe in deeplab] == [30, 10, 10]
