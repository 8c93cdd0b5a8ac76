"""Training of the miniature networks: it learns, it repeats itself, it complains."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dag.networks import building, training_common
from dag.networks.mini import bodies, training

LABELS = (0, 2, 8)
SEGMENTER = ("dag.networks.mini.fcn:fcn", {"body": "alex", "labels": LABELS})
DETECTOR = (
    "dag.networks.mini.faster_rcnn:faster_rcnn",
    {"body": "zf", "labels": LABELS, "sizes": (16, 24), "ratios": (1,)},
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scenes(count: int = 4):
    """Images (48, 64) of one bright (class 2) and one dark (class 8) square on grey, with label maps and boxes."""
    rng = np.random.default_rng(0)
    images, label_maps, objects = [], [], []
    for _ in range(count):
        image, label_map = rng.normal(120, 5, (3, 48, 64)), np.zeros((48, 64), np.uint8)
        found = []
        for half, (label, colour) in enumerate(((2, 200), (8, 40))):
            y, x = rng.integers(2, 25), rng.integers(2, 9) + 32 * half
            image[:, y : y + 20, x : x + 20] = colour
            label_map[y : y + 20, x : x + 20] = label
            found.append((x, y, x + 19, y + 19))
        images.append(image.clip(0, 255).astype(np.float32))
        label_maps.append(label_map)
        objects.append(
            SimpleNamespace(boxes=np.array(found, np.float32), labels=np.array([2, 8]), difficult=np.zeros(2, bool))
        )
    return images, label_maps, objects


def nothing() -> SimpleNamespace:
    """The objects of an image without any."""
    return SimpleNamespace(boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, int), difficult=np.zeros(0, bool))


def fit_segmenter(iterations: int, seed: int = 0, **options):
    images, label_maps, _ = scenes()
    network = training.initial(*SEGMENTER, seed=seed)
    return training.train_segmentation(
        network, images, label_maps, iterations=iterations, seed=seed, batch=4, **options
    )


def fit_detector(iterations: int, seed: int = 0, **options):
    images, _, objects = scenes()
    network = training.initial(*DETECTOR, seed=seed)
    return training.train_detection(network, images, objects, iterations=iterations, seed=seed, batch=4, **options)


def losses(capsys) -> list[float]:
    return [float(line.rpartition(" ")[2]) for line in capsys.readouterr().err.splitlines()]


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_segmenter_learns_its_images(capsys):
    network = fit_segmenter(60)
    middle, last = losses(capsys)
    assert last <= middle < 0.2  # log(3) = 1.1 for three classes at random
    images, label_maps, _ = scenes()
    predicted = network.label_map(torch.from_numpy(np.stack(images))).numpy()
    assert (predicted == np.stack(label_maps)).mean() > 0.95
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())


def test_detector_learns_its_images():
    network = fit_detector(80)
    images, _, objects = scenes()
    for found, truth in zip(network.detect(torch.from_numpy(np.stack(images))), objects, strict=True):
        for box, label in zip(truth.boxes, truth.labels, strict=True):
            best = found.boxes[found.labels == int(label)][0].numpy()
            assert found.scores[found.labels == int(label)][0] > 0.5
            assert np.abs(best - box).max() < 5


def test_pretraining_tells_colours_apart(capsys):
    rng = np.random.default_rng(1)
    labels = np.array([2, 8] * 8)
    images = rng.normal(120, 5, (16, 3, 24, 24)) + np.where(labels == 2, 25, -25)[:, None, None, None]
    weights = training.pretrain("alex", images.astype(np.float32), labels, iterations=50, seed=0)
    assert losses(capsys)[-1] < 0.1
    trunk = bodies.body("alex", dilated=True)
    bodies.load_pretrained(trunk, weights)
    network = training.initial(*SEGMENTER, seed=0, pretrained=weights)
    assert same_weights(network.trunk, trunk)


@pytest.mark.parametrize("fit", [fit_segmenter, fit_detector])
def test_a_seed_fixes_every_bit(fit):
    first = fit(3, seed=5)
    torch.rand(7)  # whatever happened to the global generator before
    assert same_weights(first, fit(3, seed=5))
    assert not same_weights(first, fit(3, seed=6))


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fit_segmenter(1)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("fit", [fit_segmenter, fit_detector])
def test_infinite_loss_stops_with_a_sentence(fit, monkeypatch):
    images, label_maps, objects = scenes()
    images[0][:] = np.nan
    monkeypatch.setitem(globals(), "scenes", lambda: (images, label_maps, objects))
    with pytest.raises(ValueError, match="mini: the loss is nan at iteration 1; check the training images"):
        fit(2, title="mini")


def test_bad_training_sets_are_refused():
    images, label_maps, objects = scenes()
    segmenter, detector = training.initial(*SEGMENTER, seed=0), training.initial(*DETECTOR, seed=0)
    settings = {"iterations": 1, "seed": 0, "title": "mini"}
    with pytest.raises(ValueError, match=r"images of one size, but there are \[\(3, 40, 64\), \(3, 48, 64\)\]"):
        training.train_segmentation(segmenter, [images[0], images[1][:, :40]], label_maps[:2], **settings)
    with pytest.raises(ValueError, match="mini: 4 images of 48 x 64 pixels but 3 label maps of 48 x 64"):
        training.train_segmentation(segmenter, images, label_maps[:3], **settings)
    with pytest.raises(ValueError, match="mini: 4 images but the objects of 1"):
        training.train_detection(detector, images, objects[:1], **settings)
    with pytest.raises(ValueError, match="batch 0; each must be at least 1"):
        training.train_segmentation(segmenter, images, label_maps, batch=0, **settings)
    with pytest.raises(ValueError, match="mini: no image has an object to learn"):
        training.train_detection(detector, images[:1], [nothing()], **settings)
    label_maps[0][0, 0] = 15
    with pytest.raises(ValueError, match=r"mini: class ids \[15\] occur in the training set"):
        training.train_segmentation(segmenter, images, label_maps, **settings)
    objects[2].labels[0] = 20
    with pytest.raises(ValueError, match=r"mini: class ids \[20\] occur in the training set"):
        training.train_detection(detector, images, objects, **settings)


def test_difficult_objects_take_no_part():
    images, _, objects = scenes()
    easy = [SimpleNamespace(boxes=one.boxes[:1], labels=one.labels[:1], difficult=one.difficult[:1]) for one in objects]
    for one in objects:
        one.difficult[1] = True
    settings = {"iterations": 2, "seed": 0, "batch": 2}
    trained = [
        training.train_detection(training.initial(*DETECTOR, seed=0), images, truth, **settings)
        for truth in (easy, objects)
    ]
    assert same_weights(*trained)


def test_void_pixels_take_no_part():
    """What is labelled is learned, whatever lies under void."""
    images, label_maps, _ = scenes()
    void = [np.where(one == 2, 255, one).astype(np.uint8) for one in label_maps]
    network = training.train_segmentation(
        training.initial(*SEGMENTER, seed=0), images, void, iterations=40, seed=0, batch=4
    )
    predicted = network.label_map(torch.from_numpy(np.stack(images))).numpy()
    assert (predicted == np.stack(void))[np.stack(void) != 255].mean() > 0.95


def test_images_without_objects_are_legal():
    images, _, objects = scenes()
    objects[0] = SimpleNamespace(
        boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, int), difficult=np.zeros(0, bool)
    )
    training.train_detection(training.initial(*DETECTOR, seed=0), images, objects, iterations=2, seed=0, batch=1)


def test_anchors_and_regions_are_picked_within_their_limits():
    generator = torch.Generator().manual_seed(0)
    first = torch.zeros(2, 100, dtype=torch.bool)
    first[0, :40], first[1, :3] = True, True
    second = torch.zeros_like(first)
    second[0, 50:90], second[1, 50:60] = True, True
    rows, valid = training_common.pick(first, second, most=8, total=30, generator=generator)
    assert rows.shape == valid.shape == (2, 30)
    assert all(len(set(one.tolist())) == 30 for one in rows)
    picked = first.gather(1, rows) & valid, second.gather(1, rows) & valid
    assert [one.sum(1).tolist() for one in picked] == [[8, 3], [22, 10]]
    assert valid.sum(1).tolist() == [30, 13]


def test_mirrored_boxes_stay_on_the_mirrored_object():
    """The loss of a network sees the square at the place where its box is."""
    images, _, objects = scenes(1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        inputs, mirrored = training._augment(torch.from_numpy(np.stack(images)), generator)
        box = torch.from_numpy(objects[0].boxes[0])
        x_min, y_min, x_max, y_max = (training.boxes.flip(box, 64) if mirrored[0] else box).int().tolist()
        inside = inputs[0, :, y_min : y_max + 1, x_min : x_max + 1]
        assert inside.std((1, 2)).max() < 1e-3


def test_weights_are_saved_whole(tmp_path):
    network = training.initial(*SEGMENTER, seed=0)
    training_common.save(network.state_dict(), tmp_path / "weights" / "one.pt")
    again = training.initial(*SEGMENTER, seed=1)
    building.load_weights(again, tmp_path / "weights" / "one.pt")
    assert same_weights(network, again)
    assert [one.name for one in (tmp_path / "weights").iterdir()] == ["one.pt"]


@pytest.mark.parametrize("total", [20, 140, 301])
def test_steps_and_rates_are_those_of_the_library(total):
    """The function and the schedule against torch's classes, with their gradients, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    ours = [tensor.clone().requires_grad_() for tensor in start]
    theirs = [tensor.clone().requires_grad_() for tensor in start]
    optimizer = torch.optim.AdamW(theirs, lr=3e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=total, pct_start=0.15)
    state = training._state(ours)
    for step in range(total):
        factor, beta1 = training.one_cycle(step, total)
        assert 3e-3 * factor == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert beta1 == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-12)
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        training._adamw(ours, state, 3e-3 * factor, beta1)
        optimizer.step()
        schedule.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
