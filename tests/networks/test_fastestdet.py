"""FastestDet: the published file loads whole, finds what is on VOC's images, and has the right gradient."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finite_differences import assert_derivative
from stored_statistics import compare, normalisations

from dag.data import voc
from dag.evaluate.metrics import detection_scores, match_detections
from dag.networks.building import build, load_weights, rewrite
from dag.networks.contract import check_interface
from dag.networks.fastestdet import fastestdet
from dag.networks.single_stage import Features


def made(shared, fold: bool = True):
    network = fastestdet()
    load_weights(network, shared / "weights" / "fastestdet" / "fastestdet.pth")
    network.eval().requires_grad_(False)
    return rewrite(network) if fold else network


def voc_images(shared, step: int = 1):
    """Every `step`th image (1, 3, H, W) with its objects."""
    root = shared / "voc" / "VOC2012"
    for image_id in (root / "ImageSets" / "Main" / "sample.txt").read_text().split()[::step]:
        yield torch.from_numpy(voc.read_image(root, image_id))[None], voc.read_objects(root, image_id)


def score(found, truths, ids) -> float:
    """VOC AP, percent, of detections whose class ids are mapped to those of VOC by `ids`, 0 for none."""
    rows = []
    for one in found:
        labels = ids[one.labels.numpy()]
        kept = labels > 0
        rows.append(
            SimpleNamespace(boxes=one.boxes.numpy()[kept], labels=labels[kept], scores=one.scores.numpy()[kept])
        )
    return float(detection_scores(match_detections(truths, rows))["score"][0])


@pytest.mark.shared
@pytest.mark.slow
def test_voc_objects_are_found(shared):
    """COCO has all classes of VOC.  Better than the YOLO of its size, which was trained on VOC, and with red and blue
    exchanged worse."""
    names = (shared / "weights" / "fastestdet" / "coco.names").read_text().split("\n")[:80]
    ids = np.array([voc.CLASSES.index(name) if name in voc.CLASSES else 0 for name in names])
    assert len(set(ids)) == 21
    weights = shared / "weights"
    files = {kind: weights / f"MobileNetV2-YOLO-Fastest-voc.{kind}" for kind in ("cfg", "weights")}
    network, yolo = made(shared), build("dag.networks.darknet:yolo", files=files)
    images, truths = zip(*voc_images(shared), strict=True)
    right, exchanged = (
        score([network.detect(image)[0] for image in seen], truths, ids)
        for seen in (images, [image.flip(1) for image in images])
    )
    assert right > score([yolo.detect(image)[0] for image in images], truths, np.arange(21)) > 40
    assert right > exchanged + 3


@pytest.mark.shared
def test_every_layer_sees_what_it_was_trained_with(shared):
    network = made(shared, fold=False)
    found = compare(network, (network.detect(image) for image, _ in voc_images(shared, step=2)))
    assert len(found) == 70
    for name, (shift, ratio) in found.items():
        assert shift < 0.2, name
        assert 0.5 < ratio < 1.4, name


def test_the_interface_is_kept():
    torch.manual_seed(0)
    check_interface(fastestdet(range(1, 21)).eval().requires_grad_(False), "fastestdet")


def test_boxes_are_those_of_the_formula():
    """Cell (x 3, y 1) of 22 x 22, by hand."""
    network = fastestdet(range(2))
    rows = torch.zeros(484, 7)
    rows[22 + 3, :4] = torch.tensor([1.0, -0.5, -2.0, 0.0])
    x, y = 440 * (3 + math.tanh(1)) / 22, 220 * (1 + math.tanh(-0.5)) / 22
    w, h = 440 / (1 + math.exp(2)), 220 / 2
    torch.testing.assert_close(
        network._boxes(rows, (220, 440))[25], torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    )


def test_a_cell_has_one_detection_and_confidence_is_a_product():
    network = fastestdet((4, 7), score_threshold=0.3)
    rows = torch.full((1, 484, 7), -20.0)
    rows[0, [40, 200], 4] = torch.tensor([0.0, 1.0])  # objectness
    rows[0, 40, 5:] = torch.tensor([0.0, 1.0])
    rows[0, 200, 5:] = torch.tensor([0.0, 0.5])
    network.features = lambda images: Features(rows, (100, 200))
    (found,) = network.detect(torch.zeros(1, 3, 100, 200))
    expected = [1 / (1 + math.exp(-1)) / (1 + math.exp(-0.5)), 0.5 / (1 + math.exp(-1))]
    assert found.labels.tolist() == [7, 7]
    assert found.scores.tolist() == pytest.approx(expected)


def test_gradient():
    """Of the logits at a few proposals, those that an attack differentiates."""
    torch.manual_seed(0)
    network = fastestdet(range(3), size=64).double().eval()
    rng = np.random.default_rng(1)
    image = torch.from_numpy(rng.uniform(40, 200, (1, 3, 50, 70)))
    weights = torch.from_numpy(rng.normal(size=(16, 3)))
    for module in normalisations(network).values():  # as after training; else little is left of the image
        module.running_var.fill_(0.05)
    with torch.no_grad():
        proposals = network.propose(network.features(image), nms=1.0, limit=16)
    assert_derivative(lambda x: network.scores(network.features(x), proposals) * weights, image, 1e-3)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=re.escape("size 350 is no multiple of 32; the published network has 352")):
        fastestdet(size=350)
