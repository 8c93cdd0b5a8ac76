"""Steps, budgets, starts and Auto-PGD against closed forms, scipy and a literal loop."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from dag.attack.engine import Problem, dense_adversaries
from dag.attack.methods import Method, judgements, method_of, project, smoothed, start, stepped
from dag.attack.rules import CONVERGED, ITERATION_LIMIT, Rules


def grey(seed: int = 0, shape=(3, 5, 7)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape).astype(np.float32))


class Linear:
    """Scores of every pixel: f_c = (w_c, x) + b_c over the three channels, known exactly."""

    def __init__(self, classes: int = 3, seed: int = 1, dtype=torch.float64):
        rng = np.random.default_rng(seed)
        self.w = torch.from_numpy(rng.normal(0, 0.1, (classes, 3))).to(dtype)
        self.b = torch.from_numpy(rng.normal(0, 1, classes)).to(dtype)
        self.seen = []

    def __call__(self, x, problems):
        self.seen.append(x.detach().clone())
        return [(torch.einsum("cd,dhw->hwc", self.w, one) + self.b).flatten(0, 1) for one in x]


def problem(network: Linear, image: torch.Tensor, **changes) -> Problem:
    """An image whose true labels are what the network says of it."""
    labels = network(image[None], [])[0].argmax(1)
    network.seen.clear()
    return Problem(image, labels, (labels + 1) % len(network.b), **changes)


def attack(network, one, method, iterations, step=2.0, **options):
    options = {"rules": Rules(), "iterations": iterations, "step": step, "method": method} | options
    ((_, found),) = dense_adversaries([one], network, **options)
    return found


# One step on a linear network, by hand


def test_one_sign_step_of_cross_entropy():
    network, image = Linear(), grey().double()
    one = problem(network, image)
    found = attack(network, one, Method("ce", steps="sign", budget="linf", eps=8.0, stop="iterations"), 1)
    u = torch.einsum("cd,dhw->hwc", network.w, image) + network.b
    p = torch.softmax(u, 2)
    p.view(-1, 3)[torch.arange(35), one.labels] -= 1
    expected = 2 * torch.sign(torch.einsum("hwc,cd->dhw", p, network.w))
    expected = torch.maximum(torch.minimum(expected, 255 - image), -image)
    assert torch.equal(found.perturbation[0], expected)
    assert found.status == ITERATION_LIMIT and found.active[0] == 35


def test_one_l2_step_has_the_length_of_the_step():
    network, image = Linear(), torch.full((3, 4, 4), 128.0, dtype=torch.float64)
    found = attack(network, problem(network, image), Method("ce", steps="l2", stop="iterations"), 1, step=3.0)
    assert found.perturbation.norm().item() == pytest.approx(3.0, rel=1e-12)


def test_momentum_by_hand():
    method = Method("ce", steps="momentum", momentum=0.5)
    r, state = torch.zeros(3, 1, 1), None
    first = torch.tensor([3.0, -1.0, 0.0]).view(3, 1, 1)
    second = torch.tensor([-1.0, 0.5, 0.5]).view(3, 1, 1)
    r, state = stepped(method, r, first, first.abs().max(), 2.0, state)
    assert r.flatten().tolist() == [2, -2, 0]
    r, state = stepped(method, r, second, second.abs().max(), 2.0, state)
    # m = (3/4, -1/4, 0) / 2 + (-1/2, 1/4, 1/4) = (-1/8, 1/8, 1/4)
    assert state.flatten().tolist() == [-0.125, 0.125, 0.25]
    assert r.flatten().tolist() == [0, 0, 2]


def test_what_is_not_named_is_dense_adversary_generation():
    assert method_of({"rules": "algorithm-1", "iterations": 200, "step": 0.5}) == Method()
    assert method_of({"objective": "ce", "budget": "linf", "eps": 8}) == Method("ce", budget="linf", eps=8)


# Budgets


@pytest.mark.parametrize("eps", [2, 4, 8, 2.55, 7.65, 1 / 3])  # 7.65 is more in float32
def test_no_stored_value_exceeds_an_linf_budget(eps):
    image, rng = grey(4), np.random.default_rng(5)
    r = torch.from_numpy(rng.normal(0, 10, image.shape).astype(np.float32))
    cut = project(r, image, Method(budget="linf", eps=eps))
    stored, x = cut.numpy(), image.numpy()
    assert stored.dtype == np.float32
    bound = float(abs(stored).max())
    assert np.float32(eps - 1e-6) <= bound <= eps
    assert (x + stored).min() >= 0 and (x + stored).max() <= 255
    inside = (abs(r.numpy().astype(float)) <= eps) & (x + r.numpy() >= 0) & (x + r.numpy() <= 255)
    assert inside.any() and np.array_equal(stored[inside], r.numpy()[inside])
    assert torch.equal(project(cut, image, Method(budget="linf", eps=eps)), cut)


@pytest.mark.parametrize("eps", [0.5, 30, 200])
def test_no_stored_value_exceeds_an_l2_budget(eps):
    image, rng = grey(6), np.random.default_rng(7)
    r = torch.from_numpy(rng.normal(0, 20, image.shape).astype(np.float32))
    cut = project(r, image, Method(budget="l2", eps=eps)).numpy()
    length = np.sqrt((cut.astype(np.float64) ** 2).sum())
    assert length <= eps
    before = np.sqrt((r.numpy().astype(np.float64) ** 2).sum())
    shrunk = np.clip(r.numpy() * min(1, eps / before), -image.numpy(), 255 - image.numpy())
    np.testing.assert_allclose(cut, shrunk, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("budget", ["linf", "l2"])
def test_a_random_start_fills_the_ball(budget):
    image, method = torch.full((3, 40, 40), 128.0), Method("ce", budget=budget, eps=8.0, start="uniform")
    r = start(image, method, np.random.default_rng(1))
    assert torch.equal(r, start(image, method, np.random.default_rng(1)))
    assert not torch.equal(r, start(image, method, np.random.default_rng(2)))
    if budget == "linf":
        # uniform on [-8, 8]: mean 0 and standard deviation 16 / sqrt(12), n = 4800; five standard errors
        assert r.abs().max() <= 8
        assert abs(r.mean().item()) < 5 * 16 / math.sqrt(12 * 4800)
        assert r.std().item() == pytest.approx(16 / math.sqrt(12), rel=5 / math.sqrt(4800))
    else:
        # almost all of a ball in 4800 dimensions lies at its surface
        assert 7.9 < r.double().norm().item() <= 8


def test_dense_adversary_generation_within_a_budget():
    network, image = Linear(), grey(8).double()
    found = attack(network, problem(network, image), Method(budget="linf", eps=1.0), 30, step=0.5)
    assert found.perturbation.abs().max() <= 1
    free = attack(network, problem(network, image), Method(), 30, step=0.5)
    assert free.perturbation.abs().max() > 1


# What is kept, and when an attack stops


def test_the_best_iterate_is_kept():
    """A network that is right on 12, 5, 2, 7 pixels in turn, whatever it sees."""
    labels = torch.zeros(12, dtype=torch.int64)
    one = Problem(torch.full((3, 3, 4), 100.0, dtype=torch.float64), labels, labels + 1)

    def found(keep: str, iterations: int):
        correct = iter([12, 5, 2, 7])

        def scores(x, problems):
            margin = torch.where(torch.arange(12) < next(correct), 1.0, -1.0)
            return [torch.stack([margin + 1e-6 * x[0, 0].flatten(), torch.zeros_like(x[0, 0].flatten())], 1)]

        method = Method("ce", steps="sign", budget="linf", eps=9.0, stop="iterations", keep=keep)
        return attack(scores, one, method, iterations)

    assert found("last", 3).active == found("best", 3).active == [12, 5, 2, 7]
    assert torch.equal(found("best", 3).perturbation, found("last", 2).perturbation)
    assert not torch.equal(found("best", 3).perturbation, found("last", 3).perturbation)


def test_an_attack_may_go_on_although_nothing_is_correct():
    network, image = Linear(2), grey(9).double()
    network.w, network.b = torch.tensor([[0.1, -0.1, 0], [-0.1, 0.1, 0]], dtype=torch.float64), torch.zeros(2)
    options = {"steps": "sign", "budget": "linf", "eps": 255.0}
    ended = attack(network, problem(network, image), Method("margin", **options, stop="converged"), 60, step=6.0)
    full = attack(network, problem(network, image), Method("margin", **options, stop="iterations"), 60, step=6.0)
    assert ended.status == CONVERGED and ended.active[-1] == 0 and len(ended.active) < 61
    assert full.status == ITERATION_LIMIT and len(full.active) == 61
    assert full.active[: len(ended.active)] == ended.active


# Transforms of the gradient


@pytest.mark.parametrize("size", [3, 5, 15])
def test_smoothing_is_a_gaussian_filter(size):
    gradients = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 3, 9, 20)))
    place = np.arange(size) - (size - 1) / 2
    kernel = np.exp(-(place**2) / (2 * ((size - 1) / 2 / math.sqrt(3)) ** 2))
    kernel /= kernel.sum()
    expected = ndimage.convolve1d(gradients.numpy(), kernel, axis=2, mode="constant")
    expected = ndimage.convolve1d(expected, kernel, axis=3, mode="constant")
    np.testing.assert_allclose(smoothed(gradients, size).numpy(), expected, rtol=1e-12, atol=1e-14)
    assert smoothed(gradients, 0) is gradients


def test_scales_see_halved_images_and_add_their_gradients():
    network, image = Linear(), grey(3).double()
    one = problem(network, image)
    found = attack(network, one, Method("ce", steps="l2", scales=3, stop="iterations"), 1, step=1.0)
    assert [float(x.max()) for x in network.seen[:3]] == [image.max(), image.max() / 2, image.max() / 4]
    x = image.clone().requires_grad_()
    total = 0
    for power in range(3):
        (u,) = Linear()((x / 2**power)[None], [])
        total = total + torch.nn.functional.cross_entropy(u, one.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(found.perturbation[0], gradient / gradient.norm(), rtol=1e-9, atol=1e-12)


# Auto-PGD


def test_judgements_of_auto_pgd():
    # the paper's p_j = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of 100 iterations
    assert list(judgements(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(judgements(10)) == [2, 3, 4, 5, 6, 7, 8, 9]


def literal_apgd(loss, image, eps, iterations):
    """Algorithm 1 of Croce and Hein (2020) with a plain list for every quantity of it."""

    def cut(x):
        return torch.clamp(torch.clamp(x, image - eps, image + eps), 0, 255)

    def value(x):
        x = x.detach().requires_grad_()
        f = loss(x)
        return f.item(), torch.autograd.grad(f, x)[0]

    eta, xs = 2 * eps, [image]
    f, g = value(image)
    fs, best = [f], (f, image, g)
    moments = [0, *judgements(iterations)]
    kept = [(eta, f)]
    for k in range(iterations):
        x = xs[-1]
        if k in moments[1:]:
            begin = moments[moments.index(k) - 1]
            gained = sum(fs[i + 1] > fs[i] for i in range(begin, k))
            before_eta, before_best = kept[-1]
            few = gained <= 0.75 * (k - begin)
            stuck = before_eta == eta and before_best == best[0] and not (len(kept) > 1 and kept[-1][0] != kept[-2][0])
            kept.append((eta / 2 if few or stuck else eta, best[0]))
            if few or stuck:
                eta, x, g = eta / 2, best[1], best[2]
                xs[-1] = x
        z = cut(x + eta * torch.sign(g))
        x = z if k == 0 else cut(x + 0.75 * (z - x) + 0.25 * (x - xs[-2]))
        xs.append(x)
        f, g = value(x)
        fs.append(f)
        if f > best[0]:
            best = f, x, g
    return xs[-1] - image


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auto_pgd_is_its_algorithm(seed):
    """A network with curvature, so that steps are halved: the product of two linear ones."""
    torch.manual_seed(seed)
    first, second = Linear(seed=seed + 10), Linear(seed=seed + 20)

    def scores(x, problems):
        return [torch.sin(a / 2) * 3 + b / 4 for a, b in zip(first(x, problems), second(x, problems), strict=True)]

    image = grey(seed + 30, (3, 4, 4)).double()
    labels = scores(image[None], [])[0].argmax(1)
    one = Problem(image, labels, labels)
    method = Method("ce", steps="apgd", budget="linf", eps=4.0, stop="iterations")
    found = attack(scores, one, method, 40)

    def loss(x):
        return torch.nn.functional.cross_entropy(scores(x[None], [])[0], labels, reduction="sum")

    expected = literal_apgd(loss, image, 4.0, 40)
    torch.testing.assert_close(found.perturbation[0], expected, rtol=0, atol=1e-9)
    assert found.perturbation.abs().max() <= 4
    # and it gets further than plain steps of the same size
    plain = attack(scores, one, Method("ce", steps="sign", budget="linf", eps=4.0, stop="iterations"), 40, step=8.0)
    assert loss(image + found.perturbation[0]) >= loss(image + plain.perturbation[0]) - 1e-9


# In batches and late, nothing changes


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "method",
    [
        Method("ce", steps="momentum", budget="linf", eps=4.0, stop="iterations", keep="best"),
        Method("mce", steps="apgd", budget="linf", eps=4.0, stop="iterations", keep="best"),
        Method("segpgd", steps="sign", budget="l2", eps=40.0),
    ],
    ids=["momentum", "apgd", "segpgd"],
)
def test_an_image_depends_on_nothing_but_itself(method, late):
    network = Linear()
    problems = [problem(network, grey(seed).double(), name=str(seed)) for seed in range(5)]
    options = {"rules": Rules(), "iterations": 12, "step": 1.5, "method": method}
    alone = {p.name: a for one in problems for p, a in dense_adversaries([one], network, **options)}
    together = {p.name: a for p, a in dense_adversaries(problems, network, batch=3, late=late, **options)}
    for name, one in alone.items():
        assert together[name].status == one.status and together[name].active == one.active
        torch.testing.assert_close(together[name].perturbation, one.perturbation, rtol=0, atol=1e-9)


def test_a_loss_of_correct_targets_ends_with_the_last_of_them():
    network, image = Linear(), grey().double()
    method = Method("mce", steps="sign", budget="linf", eps=255.0, stop="iterations")
    found = attack(network, problem(network, image), method, 60, step=20.0)
    assert found.status == CONVERGED and found.active[-1] == 0 and found.iterations < 60
    assert found.passes == len(found.active)
