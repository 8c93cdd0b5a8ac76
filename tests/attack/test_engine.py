"""The engine against a plain loop, whatever the batch and the order; what it executes, and what it never allocates."""

import math

import numpy as np
import pytest
import test_perturb
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dag.attack import engine, perturb
from dag.attack.engine import Problem, dense_adversaries
from dag.attack.rules import Rules
from dag.data import mini
from dag.data.truths import Objects
from dag.networks.building import build
from dag.networks.caffe import deeplab, faster_rcnn, fcn
from dag.networks.interface import Segmenter
from dag.networks.layers.precision import arithmetic
from dag.networks.layers.upsampling import at_pixels, interpolation
from dag.workflow.seeds import generator

torch.set_num_threads(1)

LABELS = [0, *mini.LABELS]
SETTINGS = {
    "segmentation": {"rules": "algorithm-1", "iterations": 20, "step": 0.5},
    "detection": {"rules": "algorithm-1", "iterations": 20, "step": 0.5, "nms": 0.9, "limit": 60, "overlap": 0.1,
                  "confidence": 0.1},
}  # fmt: skip
TASKS = sorted(SETTINGS)


def network(task: str):
    return test_perturb.network(task).double()


def problems(made, count: int, settings: dict, device: str = "cpu") -> list[Problem]:
    rules = perturb.rules_of(settings, made.task)
    found = []
    for number in range(count):
        pixels, label_map, *_ = scene = mini.make_image(np.random.default_rng(number))
        image = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float64)).to(device)
        rng = generator(number)
        if made.task == "segmentation":
            truth = torch.from_numpy(label_map).long()
            found.append(perturb.segmentation_problem(made, image, truth, rules, rng, str(number))[0])
        else:
            labels, boxes = objects(scene)
            truth = Objects(boxes, labels, np.zeros(len(labels), bool))
            found.append(perturb.detection_problem(made, image, truth, settings, rules, rng, str(number))[0])
    return found


def objects(scene) -> tuple[np.ndarray, np.ndarray]:
    """Bounding boxes of the classes of a label map; enough to have targets."""
    label_map = scene[1]
    labels = np.array([label for label in np.unique(label_map) if label not in (0, 255)])
    boxes = []
    for label in labels:
        y, x = (label_map == label).nonzero()
        boxes.append((x.min(), y.min(), x.max(), y.max()))
    return labels.astype(np.int64), np.array(boxes, np.float32).reshape(-1, 4)


def plain(made, problem: Problem, settings: dict) -> tuple[Tensor, list[int]]:
    """Algorithm 1 as it is printed: full score maps, a scalar loss, one image."""
    r, active = torch.zeros_like(problem.image), []
    for _ in range(settings["iterations"] + 1):
        x = (problem.image + r)[None].requires_grad_()
        if made.task == "segmentation":
            f = made(x)[0].flatten(1).T[problem.where]
        else:
            f = made.scores(made.features(x), [problem.where])
        correct = f.argmax(1) == problem.labels
        active.append(int(correct.sum()))
        if active[-1] == 0 or len(active) > settings["iterations"]:
            break
        loss = f.gather(1, problem.adversarial[:, None]) - f.gather(1, problem.labels[:, None])
        loss[correct].sum().backward()
        r = r + settings["step"] * x.grad[0] / x.grad.abs().max()
    return r, active


@pytest.mark.parametrize("task", TASKS)
def test_every_iteration_is_that_of_a_plain_loop(task):
    made, settings = network(task), SETTINGS[task]
    todo = [problem for problem in problems(made, 4, settings) if len(problem.labels)]
    assert len(todo) >= 2
    for problem, result in perturb.attacks(made, todo, settings, batch=2):
        r, active = plain(made, problem, settings)
        assert result.active == active
        assert (result.perturbation[0] - r).abs().max() <= 1e-9 * r.abs().max()


@pytest.mark.parametrize("task", TASKS)
def test_batch_and_order_change_nothing(task):
    made, settings = network(task), SETTINGS[task] | {"iterations": 6}
    todo = problems(made, 9, settings)
    alone = {p.name: result for p, result in perturb.attacks(made, todo, settings, batch=1)}
    shuffled = [todo[k] for k in np.random.default_rng(3).permutation(len(todo))]
    assert len(alone) == 9 and len({result.iterations for result in alone.values()}) > 1  # so images are exchanged
    for batch, order in ((3, todo), (8, todo), (3, shuffled)):
        for problem, result in perturb.attacks(made, order, settings, batch=batch):
            expected = alone[problem.name]
            assert result.active == expected.active and result.status == expected.status
            largest = expected.perturbation.abs().max()
            assert (result.perturbation - expected.perturbation).abs().max() <= 1e-9 * largest


# What is executed: trunk passes per useful iteration, and full slots.


class Countdown:
    """Scores of images whose attack takes a known number of iterations: each holds one target, and its number."""

    def __init__(self):
        self.batches = []

    def __call__(self, x: Tensor, todo: list[Problem]) -> list[Tensor]:
        self.batches.append(len(todo))
        # every step moves the single value by -1; the target falls when the image's own number is used up
        return [torch.stack([one.sum(), one.sum() * 0])[None] for one in x]


def countdown(number: int) -> Problem:
    return Problem(torch.full((1, 1, 1), number - 0.5), torch.tensor([0]), torch.tensor([1]), name=str(number))


def test_no_pass_is_wasted_and_slots_are_full():
    rng = np.random.default_rng(0)
    counts = np.clip(np.round(rng.lognormal(math.log(54) - 0.18, 0.6, 736)), 1, 200).astype(int)
    for batch in (4, 8, 16):  # at 32 the end of the queue shows: 0.93
        scores = Countdown()
        results = list(
            dense_adversaries(map(countdown, counts), scores, rules=Rules(), iterations=200, step=1, batch=batch)
        )
        assert sorted(result.iterations for _, result in results) == sorted(counts)
        useful = sum(len(result.active) for _, result in results)
        assert sum(scores.batches) <= 1.02 * useful
        assert sum(scores.batches) >= 0.95 * batch * len(scores.batches)


def test_out_of_memory_halves_the_batch_and_loses_nothing(capsys):
    class Small(Countdown):
        def __call__(self, x, todo):
            if len(todo) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(x, todo)

    numbers = [5, 3, 9, 1, 7, 2]
    scores = Small()
    results = list(dense_adversaries(map(countdown, numbers), scores, rules=Rules(), iterations=20, step=1, batch=6))
    assert {problem.name: result.iterations for problem, result in results} == {str(n): n for n in numbers}
    assert max(scores.batches) == 3
    assert "out of memory with 6 images" in capsys.readouterr().out


def test_an_image_that_does_not_fit_alone_is_named():
    def scores(x, todo):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(engine.AttackError, match="^4 \\(1 x 1 pixels\\) does not fit into the memory of the GPU; use"):
        list(dense_adversaries([countdown(4)], scores, rules=Rules(), iterations=20, batch=2))


def test_images_of_different_shapes_are_refused():
    other = Problem(torch.zeros(1, 1, 2), torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(ValueError, match="group them by shape"):
        list(dense_adversaries([countdown(4), other], Countdown(), rules=Rules(), iterations=3, batch=2))


class Sizes(TorchDispatchMode):
    """Number of values of the largest tensor that any operation has made."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                Sizes.largest = max(Sizes.largest, tensor.numel())
        return result


def test_one_forward_and_one_backward_pass_of_the_trunk_and_no_proposals_in_the_loop(monkeypatch):
    made, settings = network("detection"), SETTINGS["detection"]
    todo = [problem for problem in problems(made, 3, settings) if len(problem.labels)]
    assert any(problem.labels.unique().numel() > 1 for problem in todo)  # several classes
    passes = {"forward": 0, "backward": 0}
    last = [module for module in made.trunk.modules() if isinstance(module, nn.Conv2d)][-1]
    last.register_forward_hook(lambda module, inputs, output: count(passes, "forward", len(output), output))
    monkeypatch.setattr(type(made), "propose", None)
    monkeypatch.setattr(type(made), "select", None)
    results = [result for _, result in perturb.attacks(made, todo, settings, batch=2)]
    assert passes["forward"] == sum(len(result.active) for result in results)
    # an image that ends beside another takes part in that one's backward pass
    steps = sum(result.iterations for result in results)
    assert steps <= passes["backward"] <= steps + len(results)


def count(passes: dict, kind: str, images: int, output: Tensor) -> None:
    passes[kind] += images
    output.register_hook(lambda gradient: passes.update(backward=passes["backward"] + len(gradient)))


def test_no_score_map_of_the_size_of_the_image_is_made():
    made, settings = network("segmentation"), SETTINGS["segmentation"] | {"iterations": 2}
    # many classes, so that nothing else is as large as a score map
    made.score = nn.Conv2d(made.score.in_channels, 200, 1).double().requires_grad_(False)
    made.labels = tuple(range(200))
    problem = max(problems(made, 4, settings), key=lambda p: -len(p.labels) if len(p.labels) else -math.inf)
    list(perturb.attacks(made, [problem], settings))  # the interpolation is found once
    scores = perturb.pixel_scores(made)
    scores(problem.image[None], [problem])
    Sizes.largest = 0
    with Sizes():
        x = problem.image[None].requires_grad_()
        (f,) = scores(x, [problem])
        torch.autograd.grad(f.sum(), x)
    assert len(problem.labels) < 96 * 128 / 2
    assert 0 < Sizes.largest < 200 * 96 * 128


# Interpolation.


def segmenters() -> dict[str, Segmenter]:
    torch.manual_seed(0)
    narrow = dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"), 4)
    return {
        "fcn": build("dag.networks.mini.fcn:fcn", {"body": "alex", "labels": LABELS}),
        "fcn with skip": build("dag.networks.mini.fcn:fcn", {"body": "vgg", "labels": LABELS, "skip": True}),
        "deeplab": build("dag.networks.mini.deeplab:deeplab", {"body": "rn50", "labels": LABELS}),
        "fcn-alexnet": fcn.fcn_alexnet(widths=narrow),
        "fcn8s": fcn.fcn8s_vgg16(widths=narrow),
        "deeplab-vgg16": deeplab.deeplab_vgg16(widths=narrow | {"fc6": 4, "fc7": 4}, frame=97),
    }


@pytest.mark.parametrize("name", ["fcn", "fcn with skip", "deeplab", "fcn-alexnet", "fcn8s", "deeplab-vgg16"])
@torch.no_grad()
def test_scores_of_pixels_are_those_of_the_whole_map(name):
    made = segmenters()[name].double().eval()
    size = (61, 94)
    low = made.body(torch.rand(1, 3, *size).double() * 255)
    low = torch.randn(low.shape, dtype=torch.float64)
    matrices = interpolation(made, low, size)
    assert matrices is not None
    whole = made.upsample(low, size)[0].flatten(1).T
    pixels = torch.randperm(size[0] * size[1])[:500]
    found = torch.sparse.mm(at_pixels(*matrices, pixels), low[0].flatten(1).T)
    torch.testing.assert_close(found, whole[pixels], rtol=1e-12, atol=1e-12)


class Mixed(Segmenter):
    """An upsampling that adds its neighbour to every column."""

    labels = (0, 1, 2)

    def upsample(self, scores, size):
        larger = nn.functional.interpolate(scores, size, mode="bilinear")
        return larger + larger.roll(1, 1)


class Sheared(Segmenter):
    """An upsampling that is no product of rows and columns."""

    labels = (0, 1, 2)

    def upsample(self, scores, size):
        larger = nn.functional.interpolate(scores, size, mode="bilinear")
        return torch.stack([line.roll(k, -1) for k, line in enumerate(larger.unbind(2))], 2)


@pytest.mark.parametrize("kind", [Mixed, Sheared])
def test_an_upsampling_that_is_no_plain_interpolation_is_recognised(kind):
    assert interpolation(kind(), torch.rand(1, 3, 7, 9), (28, 36)) is None


def test_a_network_without_plain_interpolation_is_attacked_all_the_same():
    made, settings = network("segmentation"), SETTINGS["segmentation"] | {"iterations": 4}
    straight = made.upsample
    made.upsample = lambda scores, size: straight(scores + 0.5 * scores.roll(1, 1), size)
    todo = [problem for problem in problems(made, 3, settings) if len(problem.labels)]
    for problem, result in perturb.attacks(made, todo, settings, batch=2):
        r, active = plain(made, problem, settings)
        assert result.active == active and (result.perturbation[0] - r).abs().max() <= 1e-9 * r.abs().max()


def test_faster_rcnn_at_reduced_width_is_attacked_like_by_a_plain_loop():
    torch.manual_seed(0)
    widths = {"conv1": 4, "conv2": 4, "conv3": 4, "conv4": 4, "conv5": 4, "rpn": 4, "fc6": 8, "fc7": 8}
    made = faster_rcnn.faster_rcnn("zf", widths=widths, short=120, long=200).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.requires_grad_(False).mul_(4)
    settings = SETTINGS["detection"] | {"iterations": 5, "confidence": 0}
    todo = [problem for problem in problems(made, 3, settings) if len(problem.labels)]
    assert todo
    for problem, result in perturb.attacks(made, todo, settings, batch=2):
        r, active = plain(made, problem, settings)
        assert result.active == active and (result.perturbation[0] - r).abs().max() <= 1e-9 * r.abs().max()


# Lower precision.


def test_a_rough_attack_ends_by_exact_counts():
    made = network("segmentation").float()
    settings = SETTINGS["segmentation"] | {"precision": "bf16", "iterations": 60}
    todo = [
        Problem(p.image.float(), p.labels, p.adversarial, p.boxes, p.where, p.name)
        for p in problems(made.double(), 3, settings)
        if len(p.labels)
    ]
    made.float()
    for problem, result in perturb.attacks(made, todo, settings):
        with torch.no_grad():
            f = made(problem.image[None] + result.perturbation)[0].flatten(1).T[problem.where]
        assert result.active[-1] == (f.argmax(1) == problem.labels).sum()
        assert result.status == ("converged" if result.active[-1] == 0 else "iteration limit")
        assert result.iterations <= 60
    exact = dict(perturb.attacks(made, todo, settings | {"precision": "fp32"}))
    assert any(  # so something was computed in another precision
        not torch.equal(result.perturbation, exact[problem].perturbation)
        for problem, result in (
            (next(q for q in todo if q.name == p.name), r) for p, r in perturb.attacks(made, todo, settings)
        )
    )


def test_an_attack_that_is_gone_on_with_takes_the_steps_that_are_left():
    half = dict(dense_adversaries([countdown(9)], Countdown(), rules=Rules(), iterations=5, step=1))
    ((problem, stopped),) = half.items()
    again = Problem(problem.image, problem.labels, problem.adversarial, name="9", start=stopped)
    ((_, result),) = dense_adversaries([again], Countdown(), rules=Rules(), iterations=20, step=1)
    ((_, whole),) = dense_adversaries([countdown(9)], Countdown(), rules=Rules(), iterations=20, step=1)
    assert stopped.status == "iteration limit" and result.status == "converged"
    assert result.active == whole.active and torch.equal(result.perturbation, whole.perturbation)


def test_torch_is_told_to_leave_tf32_alone_and_gets_its_settings_back():
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [setting.fp32_precision for setting in settings]
    for precision, expected in (("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
        with arithmetic(precision, "cpu"):
            assert [setting.fp32_precision for setting in settings] == [expected] * 2
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
    assert [setting.fp32_precision for setting in settings] == before
