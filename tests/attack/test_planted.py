"""Planted examples: a readout is known by construction, and attacks that cannot follow a gradient miss them."""

import numpy as np
import pytest
import test_perturb
import torch
from test_perturb import one_thread, root  # noqa: F401

from dag.attack.engine import Problem
from dag.attack.methods import Method, start
from dag.attack.perturb import attacks
from dag.attack.planted import GAIN, POINTS, find_planted, planted, planted_scores
from dag.networks.interface import Segmenter

PGD = {"objective": "ce", "steps": "sign", "budget": "linf", "eps": 8, "step": 2, "start": "uniform",
       "stop": "iterations", "iterations": 20}  # fmt: skip
COSPGD = PGD | {"objective": "cospgd"}
WEIGHT = torch.tensor([[0.02, -0.01, 0.03], [-0.02, 0.02, 0.01], [0.01, 0.03, -0.02]])
IMAGE = torch.linspace(20, 230, 3 * 4 * 5).view(3, 4, 5).round()


def linear(x, problems):
    """Scores (N, 3), linear in the colours of the pixels `where`."""
    return [(WEIGHT @ one.flatten(1)[:, problem.where]).T for one, problem in zip(x, problems, strict=True)]


def pixels(count: int = 20) -> Problem:
    labels = torch.zeros(count, dtype=torch.int64)
    labels[3] = -1
    return Problem(IMAGE, labels, labels + 1, where=torch.arange(count), name="one")


@pytest.mark.parametrize("method", [Method(budget="linf", eps=8), Method(budget="l2", eps=30)])
def test_a_readout_tells_the_planted_example_from_the_image_and_from_random_points(method):
    problem, example = planted(pixels(), linear, method, np.random.default_rng(1))
    if method.budget == "linf":  # a corner of the cube
        assert set(example.abs().unique().tolist()) == {8.0}
    else:
        assert 29 < example.norm() <= 30
    rng = np.random.default_rng(1)
    points = [start(IMAGE, Method(budget=method.budget, eps=method.eps, start="uniform"), rng) for _ in range(POINTS)]
    told = problem.labels == 0
    assert told.sum() > 10 and problem.labels[3] == -1 and problem.first is None

    def s(r):
        (f,) = planted_scores(linear)((IMAGE + r)[None], [problem])
        assert f.shape == (20, 2) and not f[:, 0].any()
        return f[told, 1] / GAIN

    # s is 1 more at the planted example than at the image; the answer changes in the middle of the gap
    highest = torch.stack([s(r) for r in [torch.zeros_like(IMAGE), *points]]).amax(0)
    torch.testing.assert_close(s(example) - s(torch.zeros_like(IMAGE)), torch.ones(int(told.sum())), rtol=0, atol=1e-4)
    torch.testing.assert_close(s(example), -highest, rtol=0, atol=1e-4)
    assert (highest < 0).all()
    # linear scores: s is linear along the way from the image to the example
    torch.testing.assert_close(s(example / 2), (s(example) + s(torch.zeros_like(IMAGE))) / 2, rtol=0, atol=1e-4)


class Bent(Segmenter):
    """Scores that are linear in the colours, with a gradient that is not theirs."""

    labels = (0, 1, 2)

    def __init__(self, backward):
        super().__init__()

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return torch.einsum("ij,bjhw->bihw", WEIGHT, x)

            @staticmethod
            def backward(ctx, gradient):
                return backward(torch.einsum("ij,bihw->bjhw", WEIGHT, gradient))

        self.function = Function

    def body(self, x):
        return self.function.apply(x)

    def upsample(self, scores, size):
        return scores


@pytest.mark.parametrize("settings", [PGD, COSPGD, PGD | {"steps": "apgd"}], ids=["pgd", "cospgd", "apgd"])
@pytest.mark.parametrize(
    ("backward", "found"),
    [(lambda g: g, True), (torch.zeros_like, False), (torch.neg, False), (lambda g: g * 0 + 1e-3, False)],
    ids=["true", "zero", "reversed", "constant"],
)
def test_what_hides_its_gradient_is_told_from_what_does_not(settings, backward, found):
    problem, _ = planted(pixels(), linear, Method(budget="linf", eps=8), np.random.default_rng(3))
    network, targets = Bent(backward), int((problem.labels == 0).sum())
    ((_, attack),) = attacks(network, [problem], settings, shares=None, readout=planted_scores)
    assert (attack.active[-1] == 0) is found
    if found:  # the optimum of a linear network is a corner that suits every pixel
        assert attack.perturbation.abs().max() <= 8
    else:
        assert attack.active[-1] > targets / 4


def test_targets_that_never_change_are_none():
    problem, _ = planted(pixels(), lambda x, problems: [torch.ones(20, 3)], Method(budget="linf", eps=8),
                         np.random.default_rng(0))  # fmt: skip
    assert (problem.labels == -1).all()


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_of_real_networks(task, root):  # noqa: F811
    network = test_perturb.network(task)
    base = test_perturb.SEGMENTATION if task == "segmentation" else test_perturb.DETECTION
    images = [(root, image_id) for image_id in test_perturb.IDS]
    sources = {"net@pgd": base | PGD, "net@cospgd": base | COSPGD, "net@dag-8": base | {"budget": "linf", "eps": 8},
               "net@best": base | PGD | {"keep": "best"},
               "net@worst": base | {"worst_of": [base | PGD, base | COSPGD]}}  # fmt: skip
    rows = find_planted(network, images, sources, seed=1, name="net")
    assert [(row["source"], row["image"]) for row in rows] == [(name, i) for name in sources for _, i in images]
    by = {name: [row for row in rows if row["source"] == name] for name in sources}
    assert sum(row["targets"] for row in rows) > 0
    for row in rows:
        assert (row["budget"], row["eps"]) == ("linf", 8)
        assert 0 <= row["left"] <= row["targets"]
    for last, best in zip(by["net@pgd"], by["net@best"], strict=True):
        assert best["left"] <= last["left"]
    for one, two, worst in zip(by["net@pgd"], by["net@cospgd"], by["net@worst"], strict=True):
        assert worst["left"] == min(one["left"], two["left"])  # the same example for all
        assert one["targets"] == two["targets"] == worst["targets"]
    assert sum(row["left"] for row in by["net@cospgd"]) <= 0.05 * sum(row["targets"] for row in by["net@cospgd"])
    # whatever else is asked for at the same time
    again = find_planted(network, images[1:2], {"net@cospgd": sources["net@cospgd"]}, seed=1, name="net")
    assert again == by["net@cospgd"][1:2]


def test_the_rule_of_strength_and_class_weights_do_not_concern_readouts(root):  # noqa: F811
    authors = test_perturb.DETECTION | {"rules": "authors", "budget": "linf", "eps": 8, "iterations": 5}
    images = [(root, test_perturb.IDS[0])]
    (row,) = find_planted(test_perturb.network("detection"), images, {"net@authors": authors}, seed=1, name="net")
    assert row["left"] <= row["targets"]
    balanced = test_perturb.SEGMENTATION | PGD | {"objective": "mce-bal"}
    mce = balanced | {"objective": "mce"}
    rows = find_planted(
        test_perturb.network("segmentation"), images, {"net@bal": balanced, "net@mce": mce}, seed=1, name="net"
    )
    assert rows[0]["left"] == rows[1]["left"]  # weights of one
