"""torchvision's networks behind the interface, with random weights, against torchvision's own use of them."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
import yaml
from finite_differences import assert_derivative
from torch import nn
from torchvision.models import WeightsEnum

from dag.attack.perturb import attacks, detection_problem, perturb
from dag.attack.rules import rules_of
from dag.data import mini, voc
from dag.networks import building, interface
from dag.networks.interface import Proposals
from dag.networks.layers import operators
from dag.networks.torchvision_models import _best, detector, segmenter, voc_columns
from dag.workflow import store

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
HERE = "dag.networks.torchvision_models"
SMALL = {"min_size": 96, "max_size": 192}
FASTER = {**SMALL, "box_score_thresh": 0.03, "rpn_post_nms_top_n_test": 100}
SIZE = (45, 64)  # resized to 96 x 136, padded to 96 x 160

# torchvision's name -> settings that keep it quick and let it find many things.
DETECTORS = {
    "fasterrcnn_resnet50_fpn": FASTER,
    "fasterrcnn_resnet50_fpn_v2": FASTER,
    "fasterrcnn_mobilenet_v3_large_fpn": FASTER,
    "retinanet_resnet50_fpn": {**SMALL, "score_thresh": 0.3},
    "retinanet_resnet50_fpn_v2": {**SMALL, "score_thresh": 0.3},
    "ssd300_vgg16": {"score_thresh": 0.03, "topk_candidates": 20},
    "fcos_resnet50_fpn": {**SMALL, "score_thresh": 0.3},
}
SEGMENTERS = [
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
]
WEIGHTS = dict.fromkeys(DETECTORS, "COCO_V1") | dict.fromkeys(SEGMENTERS, "COCO_WITH_VOC_LABELS_V1")
TWO_STAGE = [name for name in DETECTORS if name.startswith("fasterrcnn")]
SOFTMAX = [*TWO_STAGE, "ssd300_vgg16"]

# The ids that COCO's own annotation files give to the classes of VOC, in VOC's order; 0 is background.
COCO_IDS = [0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72]


def images(count: int = 1, size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    """Coarse noise, as neighbouring pixels are alike in photographs, and a little fine noise: no two are equal."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(count, 3, 6, 8, generator=generator), size, mode="bilinear")
    return 240 * coarse + 15 * torch.rand(count, 3, *size, generator=generator)


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def class_layers(network: nn.Module) -> list[nn.Module]:
    """The last layers of the classification."""
    if hasattr(network, "roi_heads"):
        return [network.roi_heads.box_predictor.cls_score]
    head = network.head.classification_head
    return [head.cls_logits] if hasattr(head, "cls_logits") else list(head.module_list)


@functools.cache
def make(name: str) -> interface.Network:
    """Random weights, as lively as trained ones: layers keep their scale, classes differ from place to place."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = detector(name, **DETECTORS[name]) if name in DETECTORS else segmenter(name, short_side=64)
        network.eval().requires_grad_(False)
        epsilons = [norm.eps for norm in norms(network)]
        for norm in norms(network):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.momentum, norm.eps = 1.0, 1e-5
            norm.train()
        if name.startswith("fcos"):
            network.head.regression_head.bbox_reg.bias += 2  # boxes of four strides instead of none
        inputs = images(2)
        features = network.features(inputs) if name in DETECTORS else network.body(inputs)
        if name in TWO_STAGE:
            network.scores(features, network.propose(features, nms=0.7, limit=100))
        network.eval()
        for norm, epsilon in zip(norms(network), epsilons, strict=True):
            norm.eps = epsilon
        if name in DETECTORS:
            layers, outputs = class_layers(network), {}
            hooks = [
                layer.register_forward_hook(
                    lambda layer, _, output: outputs.setdefault(layer, []).append(output.transpose(0, 1).flatten(1))
                )
                for layer in layers
            ]
            network.confidence(features, network.propose(features, nms=0.7, limit=100))
            for layer, hook in zip(layers, hooks, strict=True):
                hook.remove()
                everywhere = torch.cat(outputs[layer], 1)  # logits (channel, place), all levels of the pyramid
                spread = everywhere.std(1).mean()
                layer.weight /= spread
                layer.bias.sub_(everywhere.mean(1)).div_(spread).sub_(0 if name in SOFTMAX else 2)
    return network


def theirs(name: str, monkeypatch, **settings) -> nn.Module:
    """torchvision's network for its weights (frozen normalisation, its epsilon), with those of `make`."""
    state = make(name).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    return torchvision.models.get_model(name, weights=WEIGHTS[name], **settings).eval()


def scores(network: interface.Network, inputs: torch.Tensor, proposals=None) -> torch.Tensor:
    if network.task == "segmentation":
        return network(inputs)
    features = network.features(inputs)
    return network.scores(features, proposals or network.propose(features, nms=0.9, limit=50))


def named(*names: str) -> list:
    """These names; all but the quickest network of every kind are marked as slow."""
    quick = (
        "fasterrcnn_mobilenet_v3_large_fpn",
        "retinanet_resnet50_fpn",
        "fcos_resnet50_fpn",
        "fcn_resnet50",
        "deeplabv3_mobilenet_v3_large",
        "lraspp_mobilenet_v3_large",
    )
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


# What the weights mean


def test_columns_are_those_of_coco():
    categories = torchvision.models.get_model_weights("fcos_resnet50_fpn")["COCO_V1"].meta["categories"]
    assert list(voc_columns(categories)) == COCO_IDS
    with pytest.raises(ValueError, match=r"^the weights do not know sheep; choose weights"):
        voc_columns([category for category in categories if category != "sheep"])


def test_labels():
    assert make("fasterrcnn_mobilenet_v3_large_fpn").labels == tuple(range(21))
    assert make("retinanet_resnet50_fpn").labels == tuple(range(1, 21))
    assert make("lraspp_mobilenet_v3_large").labels == tuple(range(21))


@pytest.mark.parametrize(
    ("labels", "expected"), [([0, 1], (0, 1)), ([2, 0, 1], (2, 0, 1))], ids=["one class", "background last"]
)
def test_a_detector_with_classes_of_ones_own(labels, expected):
    """What torchvision's network of as many columns finds, under the ids of the list."""
    name, settings = "fasterrcnn_mobilenet_v3_large_320_fpn", SMALL | {"box_score_thresh": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=len(labels), **settings
        ).eval()
    network = detector(name, labels, **settings).eval()
    network.load_state_dict(plain.state_dict())
    assert network.labels == expected
    with torch.no_grad():
        (whole,) = plain(list(images() / 255))
        (found,) = network.detect(images())
        features = network.features(images())
        proposals = network.propose(features, nms=0.9, limit=5)
        assert network.scores(features, proposals).shape == (len(proposals[0]), len(labels))
    assert len(found.labels) and found.labels.tolist() == [labels[column] for column in whole["labels"]]
    assert torch.equal(found.scores, whole["scores"])


@pytest.mark.parametrize("function", [detector, segmenter])
@pytest.mark.parametrize("name", ["fcn_resnet51", "resnet18"])
def test_unknown_networks(function, name):
    with pytest.raises(ValueError, match=rf"^torchvision has no network '{name}' with weights COCO"):
        function(name)


def test_every_address_is_the_one_of_torchvision():
    networks = yaml.safe_load((ROOT / "config/networks.yaml").read_text())["networks"]
    downloads = yaml.safe_load((ROOT / "config/downloads.yaml").read_text())["downloads"]
    ours = {name: entry for name, entry in networks.items() if entry["architecture"].startswith(HERE)}
    assert {entry["arguments"]["name"] for entry in ours.values()} == set(WEIGHTS)
    for name, entry in ours.items():
        theirs = entry["arguments"]["name"]
        url = torchvision.models.get_model_weights(theirs)[WEIGHTS[theirs]].url
        file = entry["files"]["state_dict"]
        assert name.startswith("tv-") and file == url.rpartition("/")[2]
        assert entry["task"] == ("detection" if theirs in DETECTORS else "segmentation")
        assert entry["architecture"] == f"{HERE}:{'detector' if theirs in DETECTORS else 'segmenter'}"
        # torchvision's convention: the last part of the name is the beginning of the checksum
        assert downloads[file] == {"urls": [url], "sha256_prefix": file.removesuffix(".pth").rpartition("-")[2]}


# The interface


@pytest.mark.parametrize("name", named(*DETECTORS, *SEGMENTERS))
def test_interface(name):
    network, inputs = make(name), images(2).requires_grad_()
    values = scores(network, inputs)
    values.square().sum().backward()
    assert values.shape[1] == len(network.labels) and torch.isfinite(values).all()
    assert (inputs.grad.abs().amax((1, 2, 3)) > 0).all()
    if name in SEGMENTERS:
        assert values.shape == (2, 21, *SIZE)
        label_map = network.label_map(inputs)
        assert label_map.dtype == torch.uint8 and torch.equal(label_map.long(), values.argmax(1))
        return
    proposals = network.propose(network.features(inputs), nms=0.9, limit=50)
    for one in proposals:
        assert len(one) == 50 and one.boxes.dtype == torch.float32 and (one.index is None) == (name in TWO_STAGE)
        assert (one.boxes[:, :2] > -1e-4).all() and (one.boxes[:, 2:] < torch.tensor(SIZE[::-1]) - 1 + 1e-4).all()
    torch.testing.assert_close(
        scores(network, inputs[1:], proposals[1:]), values[50:].detach(), rtol=1e-3, atol=1e-3
    )  # the first image of the batch does not matter
    confidence = network.confidence(network.features(inputs), proposals)
    assert confidence.shape == values.shape and (confidence > 0).all() and (confidence < 1).all()
    if not name.startswith("fcos"):
        torch.testing.assert_close(confidence, network.probabilities(values))
    if name not in TWO_STAGE:  # best first, by the best class of VOC
        best = confidence[:50, -20:].amax(1)
        assert (best.diff() <= 1e-6).all() and best.std() > 0


@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_fpn", "fcos_resnet50_fpn", "lraspp_mobilenet_v3_large"]
)
def test_the_gradient_is_the_one_of_finite_differences(name):
    network = copy.deepcopy(make(name)).double()
    inputs = images().double()
    proposals = None
    if name in DETECTORS:
        proposals = network.propose(network.features(inputs), nms=0.7, limit=20)
    shape = scores(network, inputs, proposals).shape
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    # with a larger step some rectifier crosses its kink
    assert_derivative(lambda x: scores(network, x, proposals) * weights, inputs, step=1e-8)


@pytest.mark.parametrize("name", [name for name in (*DETECTORS, *SEGMENTERS) if name != "ssd300_vgg16"])
def test_folding_changes_nothing(name):
    plain = copy.deepcopy(make(name)).double()
    folded = building.fold_batch_norm(copy.deepcopy(plain))
    assert not norms(folded)
    inputs = images().double()
    torch.testing.assert_close(scores(folded, inputs), scores(plain, inputs), rtol=1e-9, atol=1e-9)


# Segmentation


@pytest.mark.parametrize("name", named(*SEGMENTERS))
def test_segmenters_are_torchvisions_own(name, monkeypatch, tmp_path):
    """On an image that has its shorter side already both enlarge the scores to the same size."""
    network, reference = make(name), theirs(name, monkeypatch)
    inputs = images(size=(64, 91))
    preset = torchvision.models.get_model_weights(name)[WEIGHTS[name]].transforms()
    assert segmenter.__defaults__ == (None,) and preset.resize_size == [520]
    ready = (inputs / 255 - torch.tensor(preset.mean)[:, None, None]) / torch.tensor(preset.std)[:, None, None]
    expected = reference(ready)["out"].detach()
    torch.testing.assert_close(network(inputs), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))

    torch.save(reference.state_dict(), tmp_path / "file.pth")
    built = building.build(f"{HERE}:segmenter", {"name": name}, {"state_dict": tmp_path / "file.pth"})
    assert built.short_side == 520
    built.short_side = 64
    torch.testing.assert_close(built(inputs), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_resizing_is_the_one_of_the_preset(monkeypatch):
    name, inputs = "lraspp_mobilenet_v3_large", images(size=(100, 143), seed=1)
    network, reference = make(name), theirs(name, monkeypatch)
    preset = torchvision.models.get_model_weights(name)[WEIGHTS[name]].transforms(resize_size=64)
    ready = preset(inputs / 255)
    assert ready.shape[-2:] == (64, 91)
    expected = reference(ready)["out"]
    torch.testing.assert_close(network.upsample(network.body(inputs), (64, 91)), expected, rtol=1e-3, atol=1e-4)
    assert network(inputs).shape[-2:] == (100, 143)


# Detection


@pytest.mark.parametrize("name", named(*DETECTORS))
def test_detections_are_torchvisions_own(name, monkeypatch, tmp_path):
    """In double precision: in single, rounding changes the order of detections of almost the same score."""
    reference, inputs = theirs(name, monkeypatch, **DETECTORS[name]), images(2).double()
    torch.save(reference.state_dict(), tmp_path / "file.pth")
    arguments = {"name": name, **DETECTORS[name]}
    network = building.build(f"{HERE}:detector", arguments, {"state_dict": tmp_path / "file.pth"}, fold=False).double()
    with torch.no_grad():
        whole = reference.double()(list(inputs / 255))
    for found, expected in zip(network.detect(inputs), whole, strict=True):
        kept = [row for row, label in enumerate(expected["labels"].tolist()) if label in COCO_IDS[1:]]
        assert 5 < len(kept) < len(expected["labels"])
        labels = [COCO_IDS.index(label) for label in expected["labels"][kept].tolist()]
        assert found.labels.tolist() == labels and found.labels.dtype == torch.int64
        edges = expected["boxes"][kept] - torch.tensor([0, 0, 1, 1])
        torch.testing.assert_close(found.boxes, edges, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.scores, expected["scores"][kept], rtol=1e-6, atol=0)
        assert (found.scores.diff() <= 0).all()


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_fpn"])
def test_second_stage_is_torchvisions_own(name, monkeypatch):
    """Scores and confidence at the proposals that torchvision's network makes for itself."""
    network, reference = make(name), theirs(name, monkeypatch, **DETECTORS[name])
    seen = {}
    reference.rpn.register_forward_hook(lambda *args: seen.update(boxes=args[2][0][0]))
    reference.roi_heads.box_predictor.register_forward_hook(lambda *args: seen.update(logits=args[2][0]))
    inputs = images()
    reference(list(inputs / 255))
    back = torch.tensor([SIZE[1] / 136, SIZE[0] / 96] * 2)
    proposals = [Proposals(seen["boxes"] * back - torch.tensor([0.0, 0, 1, 1]))]
    probabilities = seen["logits"].softmax(1)[:, COCO_IDS]
    features = network.features(inputs)
    torch.testing.assert_close(network.confidence(features, proposals), probabilities, rtol=1e-3, atol=1e-5)
    values = network.scores(features, proposals)
    difference = seen["logits"][:, 44] - seen["logits"][:, 17]
    torch.testing.assert_close(values[:, 5] - values[:, 8], difference, rtol=1e-3, atol=1e-3)


def test_proposals_are_those_of_the_region_proposal_network(monkeypatch):
    """torchvision's own without any of its limits, and then one suppression over all of its boxes."""
    name = "fasterrcnn_mobilenet_v3_large_fpn"
    settings = {f"rpn_{when}_nms_top_n_test": 10**6 for when in ("pre", "post")}
    settings |= {"rpn_nms_thresh": 1.0, "rpn_score_thresh": 0.0}
    reference = theirs(name, monkeypatch, **SMALL, **settings)
    seen = []
    reference.rpn.register_forward_hook(lambda *args: seen.append(args[2][0][0]))
    inputs = images()
    reference(list(inputs / 255))
    boxes = seen[0]  # best first
    kept = boxes[operators.nms(boxes, -torch.arange(float(len(boxes))), 0.8)]
    back = torch.tensor([SIZE[1] / 136, SIZE[0] / 96] * 2)
    expected = kept * back - torch.tensor([0.0, 0, 1, 1])
    network = make(name)
    (found,) = network.propose(network.features(inputs), nms=0.8, limit=10**6)
    assert len(found) == len(expected) < len(boxes)
    torch.testing.assert_close(found.boxes[:50], expected[:50], rtol=0, atol=1e-2)
    (best,) = network.propose(network.features(inputs), nms=0.8, limit=30)
    assert torch.equal(best.boxes, found.boxes[:30])


@pytest.mark.parametrize("name", named("retinanet_resnet50_fpn", "ssd300_vgg16", "fcos_resnet50_fpn"))
def test_every_detection_is_a_proposal(name):
    """Boxes and confidence of single-stage networks at an anchor are what torchvision reports of it."""
    network, inputs = make(name), images()
    (found,) = network.detect(inputs)
    features = network.features(inputs)
    proposals = network.propose(features, nms=1.0, limit=10**6)
    confidence = network.confidence(features, proposals)
    columns = found.labels - network.labels[0]
    for box, column, score in zip(found.boxes, columns, found.scores, strict=True):
        away = (proposals[0].boxes - box).abs().amax(1) + (confidence[:, column] - score).abs()
        assert away.min() < 1e-3


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_fpn", "retinanet_resnet50_fpn"])
def test_boxes_are_in_the_frame_of_the_image(name):
    """The network sees the same, whether it or the caller enlarges the image to twice its size."""
    network, inputs = copy.deepcopy(make(name)).double(), images(size=(48, 72), seed=2).double()
    enlarged = F.interpolate(inputs, scale_factor=2, mode="bilinear")
    one, two = (network.propose(network.features(x), nms=0.7, limit=100)[0] for x in (inputs, enlarged))
    end = torch.tensor([0.0, 0, 1, 1])
    torch.testing.assert_close(2 * (one.boxes + end), two.boxes + end, rtol=0, atol=1e-2)
    torch.testing.assert_close(scores(network, inputs, [one]), scores(network, enlarged, [two]), rtol=1e-3, atol=1e-4)


def test_best_boxes_are_those_of_one_suppression():
    generator = torch.Generator().manual_seed(4)
    corners = 100 * torch.rand(3000, 2, generator=generator)
    boxes = torch.cat([corners, corners + 60 * torch.rand(3000, 2, generator=generator)], 1)
    boxes[::7, 2] = boxes[::7, 0]  # no area
    ranks = torch.rand(3000, generator=generator)
    rows = torch.arange(3000)[torch.arange(3000) % 7 > 0]
    every = rows[operators.nms(boxes[rows], ranks[rows], 0.5)]
    for limit in (1, 20, len(every), 10**4):
        assert torch.equal(_best(boxes, ranks, 0.5, limit), every[:limit])


# The attack


@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_fpn", "fcos_resnet50_fpn", "lraspp_mobilenet_v3_large"]
)
def test_one_step_of_the_attack(name, tmp_path):
    root, image_id = tmp_path / "test", "000001"
    mini.make_voc(root, {"Main/test": [image_id]}, seed=5)
    settings = {"rules": "authors", "iterations": 1, "step": 0.5}
    settings |= {"nms": 0.9, "limit": 500, "overlap": 0.1, "confidence": 0.0}
    header = {"ids": [image_id], "settings": settings}
    perturb(make(name), [(root, image_id)], tmp_path / "a.h5", settings=settings, seed=1, name=name, header=header)
    r, known = store.read(tmp_path / "a.h5", image_id, "perturbations")
    assert r.shape == voc.read_image(root, image_id).shape and known["targets"] > 0
    assert known["status"] == "iteration limit" and abs(r).max() == 0.5


def test_the_step_on_log_probabilities_is_the_step_on_logits():
    """The term common to all columns has no part in grad f_l' - grad f_l."""
    network = copy.deepcopy(make("fasterrcnn_mobilenet_v3_large_fpn")).double()
    inputs = images().double()
    objects = voc.Objects(np.float32([[5, 5, 40, 40]]), np.array([12]), np.array([False]))
    settings = {"rules": "algorithm-1", "options": {"active": "unreached"}, "iterations": 1, "step": 0.5}
    settings |= {"nms": 0.9, "limit": 200, "overlap": 0.1, "confidence": 0.0}
    rules, rng = rules_of(settings, "detection"), np.random.default_rng(0)
    problem, targets = detection_problem(network, inputs[0], objects, settings, rules, rng, "one")
    ((_, attack),) = attacks(network, [problem], settings)
    seen = []
    network.roi_heads.box_predictor.register_forward_hook(lambda *args: seen.append(args[2][0]))
    x = inputs.clone().requires_grad_()
    scores(network, x, [targets.proposals])
    ids, rows = torch.tensor(COCO_IDS), torch.arange(targets.count)
    active = seen[0][:, ids].argmax(1) != targets.adversarial
    pushed, true = ids[targets.adversarial], ids[targets.labels]
    ((seen[0][rows, pushed] - seen[0][rows, true]) * active).sum().backward()
    assert attack.active[0] == active.sum() > 0
    torch.testing.assert_close(attack.perturbation, 0.5 * x.grad / x.grad.abs().max(), rtol=1e-6, atol=1e-9)
