"""Algorithm 1: closed forms, finite differences, and every rule on cases done by hand."""

import itertools
import math

import pytest
import torch
from finite_differences import assert_gradient, difference
from torch import Tensor

from dag.attack.engine import Attack, Problem, dense_adversaries
from dag.attack.rules import PRESETS, STATUSES, Rules

PAPER = Rules()
AUTHORS_DETECTION = PRESETS["authors", "detection"]
AUTHORS_SEGMENTATION = PRESETS["authors", "segmentation"]


def dense_adversary(image: Tensor, scores, labels: Tensor, adversarial: Tensor, *, boxes=None, **settings) -> Attack:
    """The attack on one image (1, 3, H, W); `scores` takes such images and returns (N, C)."""
    problem = Problem(image[0], labels, adversarial, boxes)
    ((_, result),) = dense_adversaries([problem], lambda x, _: [scores(x)], **settings)
    return result


def attack(image: Tensor, scores, labels, adversarial, rules=PAPER, iterations=50, **options):
    labels, adversarial = torch.tensor(labels), torch.tensor(adversarial)
    return dense_adversary(image, scores, labels, adversarial, rules=rules, iterations=iterations, **options)


class Linear:
    """f = W x + b with W (N, C, 3 H W); keeps every input and every output."""

    def __init__(self, weights, offsets):
        self.weights, self.offsets = torch.as_tensor(weights), torch.as_tensor(offsets)
        self.inputs, self.outputs = [], []

    def __call__(self, x: Tensor) -> Tensor:
        f = self.weights @ x.flatten() + self.offsets
        self.inputs.append(x.detach().clone())
        self.outputs.append(f.detach())
        return f


class Scripted:
    """Scores as given, one table (N, C) per pass; the gradient of f_c at target n is c + 1 at the n-th value of x.

    So a step tells which targets were pushed and what was suppressed: the n-th value moves by
    l'_n - suppressed_n, divided by the largest such number and times the step.
    """

    def __init__(self, *tables):
        self.tables = [torch.as_tensor(table, dtype=torch.float32) for table in tables]
        self.inputs = []

    def __call__(self, x: Tensor) -> Tensor:
        table = self.tables[len(self.inputs)]
        self.inputs.append(x.detach().clone())
        moving = (x - x.detach()).flatten()[: len(table), None] * torch.arange(1, table.shape[1] + 1)
        return table + moving

    def steps(self) -> list[list[float]]:
        """Values of each step for the targets."""
        values = [x.flatten()[: len(self.tables[0])] for x in self.inputs]
        return [(after - before).tolist() for before, after in itertools.pairwise(values)]


def logits(*columns: int, classes: int = 4, probability: float = 0.97) -> list[list[float]]:
    """Scores whose arg max is the given column with the given softmax probability."""
    rest = math.log((1 - probability) / (classes - 1))
    return [[math.log(probability) if c == column else rest for c in range(classes)] for column in columns]


# Closed forms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [0.5, 2.0])
def test_a_linear_network_with_one_target(dtype, step):
    generator = torch.Generator().manual_seed(0)
    image = 255 * torch.rand(1, 3, 4, 5, generator=generator, dtype=dtype)
    weights = torch.randn(1, 2, 60, generator=generator, dtype=dtype)
    g = weights[0, 1] - weights[0, 0]
    # every step takes step |g|^2 / max|g| from the margin f_l - f_l'
    loss = float(step * g.square().sum() / g.abs().max())
    for steps in (1, 2, 7):
        margin = (steps - 0.5) * loss
        network = Linear(weights, torch.zeros(1, 2, dtype=dtype))
        network.offsets[0, 0] = margin + (network.weights[0] @ image.flatten()).diff().item()
        result = attack(image, network, [0], [1], step=step)
        assert result.status == "converged"
        assert result.active == [1] * steps + [0] and result.iterations == steps
        expected = steps * step * (g / g.abs().max()).view_as(image)
        torch.testing.assert_close(result.perturbation, expected)
        assert result.perturbation.dtype == dtype


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
def test_the_largest_change_of_a_step_is_gamma_exactly(scale):
    weights = scale * torch.randn(1, 2, 48, generator=torch.Generator().manual_seed(1))
    weights[0, :, 5:] = 0  # some pixels have no influence
    result = attack(torch.zeros(1, 3, 4, 4), Linear(weights, [[1e30, 0.0]]), [0], [1], iterations=1)
    assert result.perturbation.abs().max() == 0.5
    assert torch.isfinite(result.perturbation).all() and not result.perturbation.flatten()[5:].any()


def test_targets_become_active_again():
    """Two targets with the margins x_0 - 1.7 and 4 - x_0 / 2 + x_1, at (2, -1): 0.3 and 2.  By hand:

    step  gradient of the active    r              margins           active
    -     -                         (0, 0)         0.3,    2         both
    1     (-1/2, -1)                (-.25, -.5)    0.05,   1.625     both
    2     (-1/2, -1)                (-.5, -1)     -0.2,    1.25      second
    3     (1/2, -1)                 (-.25, -1.5)   0.05,   0.625     both, the first again
    4     (-1/2, -1)                (-.5, -2)     -0.2,    0.25      second
    5     (1/2, -1)                 (-.25, -2.5)   0.05,  -0.375     first
    6     (-1, 0)                   (-.75, -2.5)  -0.45,  -0.125     none
    """
    weights = torch.tensor([[[1, 0, 0], [0, 0, 0]], [[-0.5, 1, 0], [0, 0, 0]]], dtype=torch.float64)
    network = Linear(weights, torch.tensor([[-1.7, 0], [4, 0]], dtype=torch.float64))
    image = torch.tensor([2, -1, 0], dtype=torch.float64).view(1, 3, 1, 1)
    result = attack(image, network, [0, 0], [1, 1])
    assert result.active == [2, 2, 1, 2, 1, 1, 0]
    assert result.perturbation.flatten().tolist() == [-0.75, -2.5, 0]
    assert result.status == "converged" and result.iterations == 6


def test_targets_of_minus_one_take_no_part():
    # a second, never flipping target and a third without label: only the first counts
    weights = torch.randn(3, 3, 12, generator=torch.Generator().manual_seed(0))
    alone = attack(torch.zeros(1, 3, 2, 2), Linear(weights[:1], [[3.0, 0, 0]]), [0], [2])
    offsets = [[3.0, 0, 0], [0, 99, 0], [99, 0, 0]]
    beside = attack(torch.zeros(1, 3, 2, 2), Linear(weights, offsets), [0, -1, -1], [2, -1, -1])
    assert alone.active == beside.active
    torch.testing.assert_close(alone.perturbation, beside.perturbation)


def test_the_gradient_is_that_of_the_paper():
    """One step against central differences of sum over T_0 of (f_l' - f_l), in double precision."""
    torch.manual_seed(3)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(5, 4, 3, padding=1)
    ).double()
    image = torch.rand(1, 3, 3, 4, dtype=torch.float64)

    def scores(x):
        return network(x)[0].flatten(1).T

    with torch.no_grad():
        predicted = scores(image).argmax(1)
        labels = predicted.clone()
        labels[::4] = (predicted[::4] + 1) % 4  # not recognised from the start
        labels[5] = -1
        adversarial = torch.where(labels >= 0, (labels + 2) % 4, -1)
        active = (labels == predicted).nonzero().squeeze(1)
        assert 0 < len(active) < 12

        def objective(x):
            f = scores(x)
            return f[active, adversarial[active]] - f[active, labels[active]]

    result = dense_adversary(image, scores, labels, adversarial, rules=PAPER, iterations=1)
    assert result.active[0] == len(active)
    # the step is 0.5 g / max|g|: with the largest difference it gives the gradient back
    units = torch.eye(image.numel(), dtype=torch.float64).reshape(-1, *image.shape)
    largest = max(abs(difference(objective, image, unit, 1e-5)[0]) for unit in units)
    assert_gradient(objective, image, step=1e-5, gradient=result.perturbation * 2 * largest)


# How it ends


def test_the_statuses():
    assert STATUSES == ("converged", "iteration limit", "no targets", "no gradient")


def slope(offset: float) -> Linear:
    """Margin x_0 + offset at one target."""
    return Linear([[[1.0, 0, 0], [0, 0, 0]]], [[offset, 0.0]])


@pytest.mark.parametrize(
    ("iterations", "status", "active"),
    [
        (1, "iteration limit", [1, 1]),
        (4, "iteration limit", [1] * 5),
        (5, "converged", [1] * 5 + [0]),
        (200, "converged", [1] * 5 + [0]),
    ],
)
def test_there_is_one_entry_per_pass_and_the_last_is_of_the_result(iterations, status, active):
    # margin 2.2, 0.5 a step: five steps
    network, image = slope(2.2), torch.zeros(1, 3, 1, 1)
    result = attack(image, network, [0], [1], iterations=iterations)
    assert (result.status, result.active) == (status, active)
    assert len(network.inputs) == len(active)
    assert torch.equal(network.inputs[-1], image + result.perturbation)
    assert result.iterations == len(active) - 1
    assert result.perturbation.flatten().tolist() == [-0.5 * result.iterations, 0, 0]


def test_what_is_not_recognised_needs_no_step():
    result = attack(torch.zeros(1, 3, 1, 1), slope(-1.0), [0], [1])
    assert (result.status, result.active, result.iterations) == ("converged", [0], 0)
    assert not result.perturbation.any()


@pytest.mark.parametrize("labels", [[], [-1, -1]])
def test_no_targets(labels):
    def scores(_):
        raise AssertionError("there is nothing to ask the network")

    labels = torch.tensor(labels, dtype=torch.int64)
    result = dense_adversary(torch.ones(1, 3, 2, 2), scores, labels, labels, rules=PAPER, iterations=5)
    assert (result.status, result.active, result.iterations) == ("no targets", [], 0)
    assert result.perturbation.shape == (1, 3, 2, 2) and not result.perturbation.any()


def test_no_gradient():
    network = Linear(torch.zeros(2, 2, 3), [[1.0, 0], [0, 1]])
    result = attack(torch.ones(1, 3, 1, 1), network, [0, 0], [1, 1])
    assert (result.status, result.active) == ("no gradient", [1]) and not result.perturbation.any()


def test_no_gradient_after_some_steps_keeps_the_perturbation():
    # the margin 9 + x_0 cannot fall below 7.75
    def scores(x):
        return torch.stack([9 + x.flatten()[0].clamp(min=-1.25), torch.zeros(())])[None]

    result = attack(torch.zeros(1, 3, 1, 1), scores, [0], [1])
    assert result.status == "no gradient" and result.active == [1, 1, 1, 1]
    assert result.perturbation.flatten().tolist() == [-1.5, 0, 0]


def test_opposite_pushes_that_cancel_are_no_gradient():
    weights = [[[1.0, 0, 0], [0, 0, 0]], [[1.0, 0, 0], [0, 0, 0]]]
    result = attack(torch.zeros(1, 3, 1, 1), Linear(weights, [[1.0, 0], [0, 1]]), [0, 1], [1, 0])
    assert (result.status, result.active) == ("no gradient", [2])


def test_nothing_is_clipped_inside():
    # the margin falls by 0.5 a step while the image leaves [0, 255] on both sides
    network = Linear([[[1.0, 0, -1.0], [0, 0, 0]]], [[255 + 9.8, 0.0]])
    image = torch.tensor([0.0, 100, 255]).view(1, 3, 1, 1)
    result = attack(image, network, [0], [1])
    assert result.iterations == 10
    assert [x.flatten().tolist() for x in network.inputs] == [[-0.5 * m, 100, 255 + 0.5 * m] for m in range(11)]


def test_the_image_is_left_alone():
    image = torch.zeros(1, 3, 1, 1)
    attack(image, slope(2.2), [0], [1])
    assert not image.any() and not image.requires_grad


@pytest.mark.parametrize("shape", [(3, 2), (1, 2), (2,), (1, 2, 2), (2, 2, 1, 1)])
def test_scores_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"scores of shape \(.*\) do not have one row for each of the 2 targets"):
        attack(torch.zeros(1, 3, 1, 1), lambda x: x.sum() + torch.zeros(shape), [0, 0], [1, 1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="the network's scores are not finite; check its weights and the input"):
        attack(torch.zeros(1, 3, 1, 1), lambda x: x.sum() + torch.tensor([[0, value]]), [0], [1])


def test_a_gradient_that_is_not_finite_is_refused_and_not_called_none():
    # the derivative of sqrt at 0
    def scores(x):
        return torch.stack([1 + x.sum().sqrt(), torch.zeros(())])[None]

    with pytest.raises(ValueError, match="the gradient of the network's scores is not finite"):
        attack(torch.zeros(1, 3, 1, 1), scores, [0], [1])


def test_an_unknown_active_set_is_refused():
    with pytest.raises(ValueError, match="active set 'all' is unknown; choose correct, unmoved or unreached"):
        attack(torch.zeros(1, 3, 1, 1), slope(1.0), [0], [1], rules=Rules(active="all"))


def test_the_strength_rule_without_boxes_is_refused():
    with pytest.raises(ValueError, match="the strength rule needs the boxes of proposals"):
        attack(torch.zeros(1, 3, 1, 1), slope(1.0), [0], [1], rules=Rules(strength=(0.35, 0.8)))


# Rule sets


def test_the_presets_are_those_of_the_specification():
    assert PRESETS["algorithm-1", "segmentation"] == PRESETS["algorithm-1", "detection"] == PAPER
    assert Rules("derangement", "correct", "label", False, None, 0.0) == PAPER
    assert Rules("absent", "unmoved", "label", False, (0.35, 0.8), 0.0) == AUTHORS_DETECTION
    assert Rules("absent", "unreached", "prediction", True, None, 0.01) == AUTHORS_SEGMENTATION


def test_algorithm_1_pushes_what_is_still_recognised():
    # label 1, adversarial 2: recognised, reached, third class, background
    network = Scripted(logits(1, 2, 3, 0), logits(2, 2, 3, 0))
    result = attack(torch.zeros(1, 3, 1, 2), network, [1] * 4, [2] * 4)
    assert (result.status, result.active) == ("converged", [1, 0])
    assert network.steps() == [[0.5, 0, 0, 0]]


APART = [[100 * n, 0, 100 * n + 9, 9] for n in range(8)]


def authors(network, count, boxes=APART, iterations=1, **options):
    """The authors' detection rules on targets of label 1 and adversarial label 2; background is column 0."""
    options = {"background": 0, "probabilities": lambda f: f.softmax(1)} | options
    boxes = torch.tensor(boxes[:count], dtype=torch.float32)
    image = torch.zeros(1, 3, 2, 2)
    return attack(image, network, [1] * count, [2] * count, AUTHORS_DETECTION, iterations, boxes=boxes, **options)


def test_the_authors_push_all_in_the_first_step():
    network = Scripted(logits(1, 2, 3, 0), logits(2, 2, 2, 2))
    result = authors(network, 4)
    assert (result.status, result.active) == ("converged", [4, 0])
    assert network.steps() == [[0.5] * 4]


def test_the_authors_push_what_is_neither_adversarial_nor_background_later():
    # recognised, reached, third class, background; only the recognised one keeps the attack going
    network = Scripted(logits(1, 1, 1, 1), logits(1, 2, 3, 0), logits(2, 2, 3, 1), logits(2, 2, 3, 0))
    result = authors(network, 4, iterations=9)
    assert network.steps() == [[0.5] * 4, [0.5, 0, 0.5, 0], [0, 0, 0.5, 0.5]]
    assert (result.status, result.active) == ("converged", [4, 1, 1, 0])


def test_without_a_background_column_nothing_is_background():
    network = Scripted(logits(1, 1), logits(0, 1), logits(0, 2))
    result = authors(network, 2, iterations=9, background=None)
    assert network.steps()[1] == [0.5, 0.5] and result.active == [2, 1, 0]


@pytest.mark.parametrize(("probability", "weak"), [(0.4, True), (0.79, True), (0.81, False), (0.999, False)])
def test_a_survivor_must_be_sure(probability, weak):
    network = Scripted(logits(1), logits(2, probability=probability), logits(2))
    result = authors(network, 1, iterations=9)
    assert (result.status, result.active) == ("converged", [1, 1, 0] if weak else [1, 0])
    assert network.steps() == [[0.5], [0.5]] if weak else [[0.5]]


def test_a_score_at_the_limit_is_sure_enough():
    network = Scripted(logits(1), logits(2))
    result = authors(network, 1, probabilities=lambda f: torch.full_like(f, 0.8, dtype=torch.float64))
    assert result.active == [1, 0]


# Pixels 0..99 of one row: an IoU of a/b is a common pixels of b in all.
SURE = [0, 0, 99, 0]


@pytest.mark.parametrize(
    ("neighbour", "iou", "weak"),
    [(SURE, 1, False), ([0, 0, 35, 0], 0.36, False), ([0, 0, 34, 0], 0.35, True), ([50, 0, 149, 0], 1 / 3, True)],
)
def test_neighbours_of_a_sure_winner_do_not_count(neighbour, iou, weak):
    # the first is sure; whether the second, weak one survives its suppression depends on their IoU
    tables = logits(2, probability=0.9) + logits(2, probability=0.5)
    network = Scripted(logits(1, 1), tables, logits(2, 2))
    result = authors(network, 2, boxes=[SURE, neighbour], iterations=9)
    assert result.active == ([2, 1, 0] if weak else [2, 0]), iou
    if weak:
        assert network.steps()[1] == [0, 0.5]


def test_overlap_is_counted_in_pixels():
    """Two boxes of 21 rows, 10 apart: 11 of 31 rows in common, 0.355; measured as x_max - x_min it would be 1/3."""
    tables = logits(2, probability=0.9) + logits(2, probability=0.5)
    result = authors(Scripted(logits(1, 1), tables), 2, boxes=[[0, 0, 9, 20], [0, 10, 9, 30]])
    assert result.active == [2, 0]


def test_of_weak_neighbours_only_the_winner_counts():
    tables = logits(2, probability=0.5) + logits(2, probability=0.7) + logits(2, probability=0.6)
    network = Scripted(logits(1, 1, 1), tables, logits(2, 2, 2))
    result = authors(network, 3, boxes=[SURE] * 3, iterations=9)
    assert result.active == [3, 1, 0]
    assert network.steps()[1] == [0, 0.5, 0]


def test_targets_that_are_not_moved_suppress_nobody():
    # the first is still recognised, with the same box: it takes no part in the suppression
    tables = logits(1, probability=0.9) + logits(2, probability=0.5)
    result = authors(Scripted(logits(1, 1), tables, logits(2, 2)), 2, boxes=[SURE] * 2, iterations=9)
    assert result.active == [2, 2, 0]


def test_the_strength_rule_can_be_joined_to_algorithm_1():
    network = Scripted(logits(1, 3), logits(2, 3, probability=0.5), logits(2, 3))
    rules = Rules(strength=(0.35, 0.8))
    boxes, probabilities = torch.tensor(APART[:2]).float(), lambda f: f.softmax(1)
    image = torch.zeros(1, 3, 1, 1)
    result = attack(image, network, [1, 1], [2, 2], rules, boxes=boxes, probabilities=probabilities)
    assert result.active == [1, 1, 0] and network.steps() == [[0.5, 0], [0.5, 0]]


def test_the_authors_push_pixels_from_what_they_show_to_what_they_shall_show():
    # label 1, adversarial 3; then a background pixel (0 to 0) and void (-1)
    labels, adversarial = [1, 1, 1, 0, 0, -1], [3, 3, 3, 0, 0, -1]
    network = Scripted(logits(1, 2, 3, 0, 2, 1), logits(3, 3, 3, 0, 0, 1))
    result = attack(torch.zeros(1, 3, 1, 2), network, labels, adversarial, AUTHORS_SEGMENTATION, background=0)
    assert (result.status, result.active) == ("converged", [3, 0])
    # 3 - 1 and 3 - 2 up, 0 - 2 down, divided by 2 and halved
    assert network.steps() == [[0.5, 0.25, 0, 0, -0.5, 0]]


@pytest.mark.parametrize(("left", "converged"), [(0, True), (2, True), (3, False), (200, False)])
@pytest.mark.parametrize("ground", [0, 1000])
def test_one_percent_of_the_foreground_may_be_left(left, converged, ground):
    # 200 foreground pixels: two may be left, whether they are foreground or background
    labels = torch.tensor([1] * 200 + [0] * ground + [-1] * 50)
    adversarial = torch.tensor([3] * 200 + [0] * ground + [-1] * 50)
    table = torch.tensor(logits(*[1] * left, *[3] * (200 - left), *[0] * ground, *[1] * 50))
    image = torch.zeros(1, 3, 21, 20)
    rules = AUTHORS_SEGMENTATION
    result = dense_adversary(
        image, Scripted(table, table), labels, adversarial, rules=rules, iterations=1, background=0
    )
    assert (result.status, result.active[0]) == ("converged" if converged else "iteration limit", left)


@pytest.mark.gpu
def test_a_gpu_does_the_same():
    weights = torch.randn(5, 3, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    offsets = torch.zeros(5, 3, dtype=torch.float64)
    offsets[:, 0] = 5
    here = attack(torch.zeros(1, 3, 4, 4).double(), Linear(weights, offsets), [0] * 5, [1, 2, 1, 2, 1])
    there = dense_adversary(
        torch.zeros(1, 3, 4, 4).double().cuda(), Linear(weights.cuda(), offsets.cuda()),
        torch.zeros(5, dtype=torch.int64).cuda(), torch.tensor([1, 2, 1, 2, 1]).cuda(), rules=PAPER, iterations=50,
    )  # fmt: skip
    assert here.active == there.active and here.status == there.status
    torch.testing.assert_close(there.perturbation.cpu(), here.perturbation)
