"""Networks from outside the project: what is right is accepted, every mistake gets its sentence."""

import pytest
import torch
from test_networks import NETWORKS, make
from torch import Tensor, nn
from torch.nn import functional as F

from dag.networks.contract import check_interface
from dag.networks.interface import Detections, Detector, Proposals, Segmenter


class Good(Segmenter):
    """Scores at a third of the resolution."""

    labels = (0, 7, 12)

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, 3, 5, stride=3, padding=2)
            self.norm = nn.BatchNorm2d(3)

    def body(self, images: Tensor) -> Tensor:
        return self.norm(self.layer(images / 255))

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(scores, size, mode="bilinear")


class GoodDetector(Detector):
    """One proposal per cell of 16 x 16 pixels, no background column, as in single-stage networks."""

    labels = (7, 12, 20)
    cells = torch.tensor([[x, y, x + 15.0, y + 15.0] for y in range(0, 64, 16) for x in range(0, 80, 16)])

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, 4, 16, stride=16)

    def features(self, images: Tensor) -> Tensor:
        return self.layer(images / 255).flatten(2)[0].T

    def propose(self, features, *, nms: float, limit: int) -> list[Proposals]:
        best = features[:, 3].argsort(descending=True)[:limit]
        return [Proposals(self.cells[best], best)]

    def scores(self, features, proposals: list[Proposals]) -> Tensor:
        return features[proposals[0].index, :3]

    def detect(self, images: Tensor) -> list[Detections]:
        features = self.features(images)
        (proposals,) = self.propose(features, nms=0.5, limit=10)
        scores, columns = self.confidence(features, [proposals]).max(1)
        order = scores.argsort(descending=True)
        ids = torch.tensor(self.labels)[columns]
        return [Detections(proposals.boxes[order], ids[order], scores[order])]


def changed(kind: type, **attributes) -> nn.Module:
    """A network whose methods and attributes are replaced, ready as `build` makes it."""
    network = type("Mine", (kind,), attributes)()
    return network.eval().requires_grad_(False)


def sentence(network: nn.Module) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        check_interface(network, "mine.py:build")
    text = str(caught.value)
    assert text.startswith("mine.py:build: ") and "\n" not in text
    assert torch.is_grad_enabled()
    return text.removeprefix("mine.py:build: ")


@pytest.mark.parametrize("kind", [Good, GoodDetector])
def test_a_good_network_is_left_as_it_was(kind):
    network = changed(kind)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    check_interface(network, "good")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.training and all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_of_the_project_pass(name):
    check_interface(make(name), name)


def test_other_classes_will_do_if_they_have_the_methods():
    """Nothing of the project is inherited."""

    class Duck(nn.Module):
        task, labels = "segmentation", [0, 5]

        def body(self, images):
            return torch.stack([images.mean(1), images[:, 0]], 1)

        def upsample(self, scores, size):
            return scores

        def forward(self, images):
            return self.body(images)

        def label_map(self, images):
            return (self(images).argmax(1) * 5).byte()

    check_interface(Duck(), "duck")


@pytest.mark.parametrize("count", [0, 1])
def test_a_detector_that_finds_nothing_is_not_refused(count):
    """Random weights may propose nothing on the image: its scores are not asked for then."""

    def propose(self, features, *, nms, limit):
        return [Proposals(self.cells[:count], torch.arange(count))]

    empty = Detections(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.empty(0))
    check_interface(changed(GoodDetector, propose=propose, detect=lambda self, images: [empty]), "shy")


# What `body` of a segmenter may get wrong, as a function of what it should return.


def body(function):
    return {"body": lambda self, images: function(Good.body(self, images))}


def in_place(self, images):
    images -= 100
    return Good.body(self, images)


def trains(self, images):
    self.train()
    return Good.body(self, images)


def learns(self, images):
    scores = self.layer(images / 255)
    return F.batch_norm(scores, self.norm.running_mean, self.norm.running_var, training=True)


def fails(self, images):
    return Good.body(self, images) + torch.zeros(1, 3, 22, 31)


SEGMENTERS = {
    "another task": ({"task": "depth"}, "its task is neither 'segmentation' nor 'detection'"),
    "no method": ({"label_map": None}, "it has no method label_map()"),
    "an undefined method": ({"upsample": Segmenter.upsample}, "Mine does not define upsample() (TypeError in "),
    "no labels": ({"labels": None}, "its labels are None; give a tuple"),
    "labels that are names": ({"labels": ("background", "cat", "dog")}, "its labels are ('background', 'cat', 'dog')"),
    "labels beyond VOC": ({"labels": (0, 1, 21)}, "its labels are (0, 1, 21); give a tuple"),
    "a label twice": ({"labels": (0, 1, 1)}, "its labels are (0, 1, 1); give at least 2 class ids, none"),
    "one label": ({"labels": (0,)}, "its labels are (0,); give at least 2"),
    "no background": ({"labels": (1, 2, 3)}, "its labels are (1, 2, 3); a segmenter needs"),
    "fewer columns than labels": (body(lambda x: x[:, :2]), "body(images) has the shape (1, 2, 23, 31) "),
    "a column too many": ({"labels": (0, 7)}, "body(images) has the shape (1, 3, 23, 31) "),
    "a dictionary": (body(lambda x: {"out": x}), "body(images) is a dict; return a tensor"),
    "no upsampling": (
        {"upsample": lambda self, scores, size: scores},
        "upsample(scores, (H, W)) has the shape (1, 3, 23, 31) for an image of height 67 and width 93; it must be (1",
    ),
    "axes swapped": (
        {"upsample": lambda self, scores, size: Good.upsample(self, scores, size[::-1])},
        "upsample(scores, (H, W)) has the shape (1, 3, 93, 67)",
    ),
    "whole numbers": (
        {**body(lambda x: (9 * x).round()), "upsample": lambda self, s, size: F.interpolate(s, size).long()},
        "upsample(scores, (H, W)) is torch.int64; return floats",
    ),
    "a size that must divide": ({"body": fails}, "The size of tensor a (23) must match the size of tensor b (22)"),
    "not finite": (body(lambda x: x / (x - x)), "body(images) has values that are not finite"),
    "probabilities": (body(lambda x: x.softmax(1)), "network(images) are probabilities"),
    "a softmax in upsample": (
        {"upsample": lambda self, scores, size: Good.upsample(self, scores, size).softmax(1)},
        "upsample() is not linear",
    ),
    "a bias in upsample": (
        {"upsample": lambda self, scores, size: Good.upsample(self, scores, size) + 1}, "upsample() is not linear",
    ),
    "another forward": ({"forward": lambda self, x: 2 * Segmenter.forward(self, x)}, "network(images) is not upsample"),
    "no gradient": (body(torch.Tensor.detach), "network(images) has no gradient to the images"),
    "numpy": (body(lambda x: torch.from_numpy(x.detach().numpy())), "network(images) has no gradient to the images"),
    "rounded": ({"body": lambda self, x: Good.body(self, x.round())}, "network(images) has no gradient to the images"),
    "an endless gradient": (body(lambda x: x + (x - x).abs().sqrt()), "the gradient of network(images) is not finite"),
    "numpy without detach": (body(lambda x: torch.from_numpy(x.numpy())), "Can't call numpy() on Tensor that requires"),
    "images changed": ({"body": in_place}, "body(images) changes the images in place"),
    "dropout": (body(F.dropout), "network(images) differs from pass to pass"),
    "training mode": ({"body": trains}, "a pass switches between training and evaluation"),
    "statistics that go on": ({"body": learns}, "a pass changes its buffer norm.running_mean"),
    "columns in the label map": (
        {"label_map": lambda self, x: self(x).argmax(1).byte()}, "label_map(images) holds [1, 2], not in its labels",
    ),
    "a label map of another type": (
        {"label_map": lambda self, x: Segmenter.label_map(self, x).long()}, "label_map(images) is torch.int64; return",
    ),
    "a label map of another shape": (
        {"label_map": lambda self, x: Segmenter.label_map(self, x)[0]}, "label_map(images) has the shape (67, 93) ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", SEGMENTERS)
def test_mistakes_of_segmenters(mistake):
    attributes, start = SEGMENTERS[mistake]
    assert sentence(changed(Good, **attributes)).startswith(start)


def propose(function):
    """`propose` with other boxes."""

    def method(self, features, *, nms, limit):
        (proposals,) = GoodDetector.propose(self, features, nms=nms, limit=limit)
        return [Proposals(function(proposals.boxes), proposals.index)]

    return {"propose": method}


def all_cells(self, features, *, nms, limit):
    boxes = self.cells.repeat(2, 1)
    return [Proposals(boxes, torch.arange(len(boxes)) % len(self.cells))]


def found(function):
    """`detect` with other (boxes, labels, scores)."""

    def method(self, images):
        (detections,) = GoodDetector.detect(self, images)
        return [Detections(*function(detections.boxes, detections.labels, detections.scores))]

    return {"detect": method}


def scored(function):
    return {"scores": lambda self, features, proposals: function(GoodDetector.scores(self, features, proposals))}


DETECTORS = {
    "no method": ({"confidence": None}, "it has no method confidence()"),
    "one box for the batch": (
        {"propose": lambda self, features, *, nms, limit: self.cells}, "propose() does not return a list with one",
    ),
    "another signature": (
        {"propose": lambda self, features: []}, "<lambda>() got an unexpected keyword argument 'nms' (TypeError in ",
    ),
    "boxes in fractions": (propose(lambda b: b / torch.tensor([93.0, 67, 93, 67])), "propose() returns the box (0."),
    "boxes of another frame": (propose(lambda b: b * 6), "propose() returns the box ("),
    "x, y, width, height": (
        propose(lambda b: torch.cat([b[:, :2], b[:, 2:] - b[:, :2]], 1)), "propose() returns the box ("),
    "boxes beyond the border": (propose(lambda b: b - 4), "propose() returns the box ("),
    "boxes of five numbers": (propose(lambda b: F.pad(b, (0, 1))), "boxes of propose() has the shape (20, 5) "),
    "double boxes": (propose(torch.Tensor.double), "boxes of propose() is torch.float64; return torch.float32"),
    "more than the limit": ({"propose": all_cells}, "propose() returns 40 proposals for limit=20"),
    "scores of all anchors": (
        {"scores": lambda self, features, proposals: features[:19, :3]}, "scores() has the shape (19, 3) ",
    ),
    "a background column too many": ({"labels": (7, 12)}, "scores() has the shape (20, 3) "),
    "probabilities": (scored(lambda x: x.softmax(1)), "scores() are probabilities"),
    "scores that depend on each other": (scored(lambda x: x - x.mean(0)), "scores() of a proposal depend on the other"),
    "dropout": (scored(F.dropout), "scores() differs from pass to pass"),
    "no gradient": (scored(torch.Tensor.detach), "scores() has no gradient to the images"),
    "features without gradient": (
        {"features": torch.no_grad()(GoodDetector.features)}, "scores() has no gradient to the images",
    ),
    "confidence beyond 1": (
        {"confidence": lambda self, features, proposals: 2 + features[:, :3]}, "confidence() holds ",
    ),
    "percent": ({"probabilities": lambda self, scores: 100 * scores.sigmoid()}, "probabilities() holds "),
    "no list": ({"detect": lambda self, images: None}, "detect() does not return a list with one Detections"),
    "columns": (found(lambda b, n, s: (b, 0 * n, s)), "detect() finds [0], not in its labels"),
    "labels as floats": (found(lambda b, n, s: (b, n.float(), s)), "labels of detect() is torch.float32"),
    "worst first": (found(lambda b, n, s: (b, n, s.flip(0))), "detect() does not return the best score first"),
    "logits": (found(lambda b, n, s: (b, n, s + 3)), "scores of detect() holds 3."),
    "fewer scores than boxes": (found(lambda b, n, s: (b, n, s[1:])), "scores of detect() has the shape (9,) "),
}  # fmt: skip


@pytest.mark.parametrize("mistake", DETECTORS)
def test_mistakes_of_detectors(mistake):
    attributes, start = DETECTORS[mistake]
    assert sentence(changed(GoodDetector, **attributes)).startswith(start)
