"""The miniature networks: interface, geometry, gradients."""

import numpy as np
import pytest
import torch
import torchvision.ops
from finite_differences import assert_derivative

from dag.networks import building, interface
from dag.networks.layers import boxes
from dag.networks.mini import bodies

LABELS = (0, 1, 2, 3, 5, 6, 8)

# The twelve networks; those that differ in their training only share an entry.
NETWORKS = {
    "fcn-alex": ("dag.networks.mini.fcn:fcn", {"body": "alex"}),
    "fcn-vgg": ("dag.networks.mini.fcn:fcn", {"body": "vgg", "skip": True}),
    "dl-vgg": ("dag.networks.mini.deeplab:deeplab", {"body": "vgg"}),
    "dl-rn101": ("dag.networks.mini.deeplab:deeplab", {"body": "rn101"}),
    "fr-zf": ("dag.networks.mini.faster_rcnn:faster_rcnn", {"body": "zf"}),
    "fr-vgg": ("dag.networks.mini.faster_rcnn:faster_rcnn", {"body": "vgg"}),
    "r-fcn-rn50": ("dag.networks.mini.rfcn:rfcn", {"body": "rn50"}),
    "r-fcn-rn101": ("dag.networks.mini.rfcn:rfcn", {"body": "rn101"}),
}
SEGMENTERS = [name for name in NETWORKS if name[:2] != "fr" and name[:2] != "r-"]
DETECTORS = [name for name in NETWORKS if name not in SEGMENTERS]


def make(name: str, seed: int = 0) -> interface.Network:
    architecture, arguments = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return building.build(architecture, {**arguments, "labels": LABELS})


def images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return 255 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def scores(network: interface.Network, inputs: torch.Tensor, proposals=None) -> torch.Tensor:
    if network.task == "segmentation":
        return network(inputs)
    features = network.features(inputs)
    return network.scores(features, proposals or network.propose(features, nms=0.9, limit=3000))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(48, 64), (97, 130)])
def test_interface(name, size):
    network = make(name)
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())
    inputs = images(2, *size).requires_grad_()
    values = scores(network, inputs)
    values.square().sum().backward()
    assert values.shape[1] == len(LABELS) and torch.isfinite(values).all()
    assert (inputs.grad.abs().amax((1, 2, 3)) > 0).all()
    assert torch.equal(values, scores(network, inputs))
    if network.task == "segmentation":
        assert values.shape == (2, 7, *size)
        label_map = network.label_map(inputs)
        assert label_map.shape == (2, *size) and label_map.dtype == torch.uint8
        assert set(label_map.unique().tolist()) <= set(LABELS)
    else:
        proposals = network.propose(network.features(inputs), nms=0.9, limit=3000)
        assert values.shape == (sum(map(len, proposals)), 7)
        for one in proposals:
            assert one.boxes.dtype == torch.float32 and not one.boxes.requires_grad
            assert (one.boxes >= 0).all() and (one.boxes[:, 0::2] <= size[1] - 1).all()
            assert (one.boxes[:, 1::2] <= size[0] - 1).all()
        torch.testing.assert_close(
            network.confidence(network.features(inputs), proposals).sum(1), torch.ones(len(values))
        )
        for found in network.detect(inputs):
            assert found.boxes.shape == (len(found.scores), 4) and set(found.labels.tolist()) <= set(LABELS[1:])
            assert (found.scores > network.lowest).all() and (found.scores.diff() <= 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_does_not_depend_on_its_batch(name):
    network, inputs = make(name), images(2, 49, 66)
    if network.task == "segmentation":
        torch.testing.assert_close(network(inputs)[1:], network(inputs[1:]), rtol=1e-4, atol=1e-5)
        return
    features = network.features(inputs)
    proposals = network.propose(features, nms=0.7, limit=50)
    both = network.scores(features, proposals)
    alone = network.scores(network.features(inputs[1:]), proposals[1:])
    torch.testing.assert_close(both[len(proposals[0]) :], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_is_the_derivative(name):
    """Central difference along a random direction, double precision."""
    network, inputs = make(name).double(), images(1, 49, 66).double()
    proposals = None
    if network.task == "detection":
        proposals = [interface.Proposals(one.boxes[::20]) for one in
                     network.propose(network.features(inputs), nms=0.9, limit=3000)]  # fmt: skip
    shape = scores(network, inputs, proposals).shape
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_derivative(lambda x: scores(network, x, proposals) * weights, inputs, step=1e-5)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_upsampling_is_linear(name):
    network = make(name).double()
    low = network.body(images(1, 97, 130).double())
    other = torch.randn(low.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    up = network.upsample(2 * low - 3 * other, (97, 130))
    expected = 2 * network.upsample(low, (97, 130)) - 3 * network.upsample(other, (97, 130))
    torch.testing.assert_close(up, expected)
    assert network.upsample(torch.ones_like(low), (97, 130)).sub(1).abs().max() < 1e-12


def test_upsampling_does_not_shift_with_the_image_size():
    """The scores of an image are the same whether or not it goes on to the right and below."""
    network = make("fcn-alex")
    low = torch.randn(1, 7, 13, 17, generator=torch.Generator().manual_seed(3))
    whole = network.upsample(low, (104, 136))
    assert torch.equal(network.upsample(low, (97, 130)), whole[:, :, :97, :130])


@pytest.mark.parametrize("name", bodies.NAMES)
@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize("size", [(96, 128), (97, 130)])
def test_strides_of_the_bodies(name, dilated, size):
    body = bodies.body(name, dilated).eval()
    assert body.stride == (4 if dilated else 8)
    maps = body(images(1, *size))
    for feature_map, stride, width in zip(maps, (4, body.stride), body.widths, strict=True):
        assert feature_map.shape == (1, width, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("name", bodies.NAMES)
def test_pretrained_weights_fit_the_dilated_body(name):
    plain, dilated = bodies.body(name), bodies.body(name, dilated=True)
    bodies.load_pretrained(dilated, plain.state_dict())
    for one, other in zip(plain.state_dict().values(), dilated.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_pretrained_weights_of_another_body_are_refused():
    weights = bodies.body("alex").state_dict()
    with pytest.raises(ValueError, match="body.pt: .* of 30 tensors of the body do not match"):
        bodies.load_pretrained(bodies.body("zf"), weights, "body.pt")
    del weights["early.0.0.weight"]
    with pytest.raises(ValueError, match="1 of 30 tensors .* early.0.0.weight"):
        bodies.load_pretrained(bodies.body("alex"), weights)
    with pytest.raises(ValueError, match="no body 'vgg19'"):
        bodies.body("vgg19")


def test_anchors():
    """Areas, ratios and centres; the first cell by hand."""
    base = boxes.base_anchors((16, 32), (0.25, 1, 4), 8)
    # 32 x 8, 32 x 32 and 16 x 64 pixels (width x height) around the centre 3.5 of the pixels 0..7.
    assert base[0].tolist() == [-12, 0, 19, 7]
    assert base[3].tolist() == [-12, -12, 19, 19]
    assert base[5].tolist() == [-4, -28, 11, 35]
    torch.testing.assert_close(boxes.area(base), torch.tensor([256.0, 1024.0] * 3))
    grid = boxes.grid_anchors(base, 2, 3, 8).view(2, 3, 6, 4)
    torch.testing.assert_close(grid[1, 2], base + torch.tensor([16.0, 8, 16, 8]))


def test_encode_and_decode():
    # A box of 10 x 20 pixels moved by half its width, twice as wide, half as high.
    start, deltas = torch.tensor([[0.0, 0, 9, 19]]), torch.tensor([[0.5, 0, np.log(2), np.log(0.5)]]).float()
    moved = torch.tensor([[-0.0, 5, 19, 14]])
    torch.testing.assert_close(boxes.decode(start, deltas), moved, atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes.encode(start, moved), deltas)
    # py-faster-rcnn returns x_max + 1, y_max + 1 for a zero delta.
    assert boxes.decode(start, torch.zeros(1, 4), excess=1).tolist() == [[0, 0, 10, 20]]
    rng = np.random.default_rng(0)
    low = torch.from_numpy(rng.uniform(0, 50, (2, 40, 2)))
    first, second = (torch.cat([one, one + torch.from_numpy(rng.uniform(0, 60, (40, 2)))], 1) for one in low)
    torch.testing.assert_close(boxes.decode(first, boxes.encode(first, second)), second)


def test_clip_flip_and_overlap():
    some = torch.tensor([[-5.0, 2, 200, 300], [3, 4, 6, 9]])
    assert boxes.clip(some, (97, 130)).tolist() == [[0, 2, 129, 96], [3, 4, 6, 9]]
    assert boxes.flip(some[1], 130).tolist() == [123, 4, 126, 9]
    # 4 x 6 pixels and 4 x 6 pixels, shifted by one column: 18 shared of 30.
    assert boxes.overlap(some[1:], some[1:] + torch.tensor([1.0, 0, 1, 0])).item() == pytest.approx(18 / 30)
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 50, (30, 2))
    many = torch.from_numpy(np.concatenate([low, low + rng.uniform(0, 40, (30, 2))], 1)).float()
    expected = torchvision.ops.box_iou(boxes.exclusive(many), boxes.exclusive(many[:7]))
    torch.testing.assert_close(boxes.overlap(many, many[:7]), expected)
    torch.testing.assert_close(
        boxes.overlap(many.view(2, 15, 4), many.view(2, 15, 4))[1], boxes.overlap(*[many[15:]] * 2)
    )


def literal_proposals(anchors, objectness, deltas, size, nms, limit, candidates):
    """The proposal step box by box, in double precision."""
    found = []
    for (x0, y0, x1, y1), logit, (dx, dy, dw, dh) in zip(anchors, objectness, deltas, strict=True):
        w, h = x1 - x0 + 1, y1 - y0 + 1
        x, y = x0 + (w - 1) / 2 + dx * w, y0 + (h - 1) / 2 + dy * h
        w, h = w * np.exp(dw), h * np.exp(dh)
        box = [x - (w - 1) / 2, y - (h - 1) / 2, x + (w - 1) / 2, y + (h - 1) / 2]
        found.append((logit, np.clip(box, 0, [size[1] - 1, size[0] - 1] * 2)))
    found.sort(key=lambda item: -item[0])
    kept = []
    for _, box in found[:candidates]:
        if all(literal_overlap(box, other) <= nms for other in kept):
            kept.append(box)
    return np.array(kept[:limit])


def literal_overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(w, 0) * max(h, 0)
    area = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return shared / (sum(area) - shared)


@pytest.mark.parametrize("name", ["fr-zf", "r-fcn-rn50"])
@pytest.mark.parametrize(("nms", "limit", "candidates"), [(0.7, 20, 100), (0.9, 3000, None)])
def test_proposals_equal_a_literal_implementation(name, nms, limit, candidates):
    network, inputs = make(name).double(), images(2, 33, 42).double()
    features = network.features(inputs)
    objectness, deltas = (raw.numpy() for raw in network.objectness_and_deltas(features))
    proposals = network.propose(features, nms=nms, limit=limit, candidates=candidates)
    anchors = network.anchors(features).numpy()
    assert anchors.shape == (5 * 6 * 9, 4)
    for image, one in enumerate(proposals):
        expected = literal_proposals(anchors, objectness[image], deltas[image], (33, 42), nms, limit, candidates)
        np.testing.assert_allclose(one.boxes.numpy(), expected, atol=1e-9)


def test_normal_test_limits_the_candidates_and_the_attack_does_not(monkeypatch):
    network, inputs = make("fr-zf"), images(1, 96, 128)
    dense = network.propose(network.features(inputs), nms=0.9, limit=3000)[0]
    assert len(dense) > network.candidates
    asked = {}
    monkeypatch.setattr(network, "propose", lambda features, **settings: asked.update(settings) or [dense])
    network.detect(inputs)
    assert asked == {"nms": 0.7, "limit": 150, "candidates": 600}


def test_small_boxes_are_dropped_before_the_candidates_are_counted():
    some = torch.tensor([[0.0, 0, 3, 30], [0, 0, 20, 20], [50, 50, 53, 53], [40, 0, 50, 10]])
    rows = boxes.best_boxes(some, torch.tensor([4.0, 3, 2, 1]), nms=0.7, candidates=2, smallest=5)
    assert rows.tolist() == [1, 3]


def test_detections_of_a_head_known_by_hand():
    """Two proposals of one object, one of another class on the same place, one background."""
    network = make("fr-zf")
    starts = torch.tensor([[10.0, 10, 49, 49], [12, 10, 51, 49], [10, 12, 49, 51], [80, 20, 99, 39]])
    scores_ = torch.full((4, 7), -9.0)
    scores_[0, 2], scores_[1, 2], scores_[2, 5], scores_[3, 0] = 9.0, 8.0, 9.0, 9.0
    deltas = torch.zeros(4, 4)
    deltas[0, 0] = 1.0  # shifts by SPREAD = 0.1 of 40 pixels
    network.propose = lambda *_, **__: [interface.Proposals(starts)]
    network.regions = lambda *_: (scores_, deltas)
    (found,) = network.detect(images(1, 96, 128))
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [LABELS[2], LABELS[5]]
    torch.testing.assert_close(found.boxes[order], torch.tensor([[14.0, 10, 53, 49], [10, 12, 49, 51]]))


def test_image_without_proposals_gives_no_scores_and_no_detections():
    for name in ("fr-zf", "r-fcn-rn50"):
        network, inputs = make(name), images(1, 49, 66)
        features = network.features(inputs)
        assert network.scores(features, [interface.Proposals(torch.empty(0, 4))]).shape == (0, 7)
