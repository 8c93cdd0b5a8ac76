"""Objectives against the losses of the papers, written out and differentiated by torch in float64."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dag.attack.objectives import LOSSES, Seen
from dag.workflow.names import OBJECTNESS

N, C, T = 40, 5, 10


def scores() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    u = torch.from_numpy(rng.normal(0, 2, (N, C)))
    return u, torch.from_numpy(rng.integers(0, C, N))


def seen(u, y, t, share=None, right=None) -> Seen:
    """Scores with the next column as the adversarial one; every target counts."""
    right = u.argmax(1) == y if right is None else right
    return Seen(u, u.detach().amax(1), y, (y + 1) % u.shape[1], right, torch.ones_like(right), t, T, share)


SHARES = torch.tensor([0.5, 0.25, 2.0, 1.0, 0.125], dtype=torch.float64)


def one_hot(y):
    return F.one_hot(y, C).double()


def literal(name: str, u: torch.Tensor, y: torch.Tensor, t: int) -> torch.Tensor:
    """Loss of every target as its paper has it; what the papers hold constant is detached."""
    p = torch.exp(u) / torch.exp(u).sum(1, keepdim=True)
    own = p[torch.arange(N), y]
    entropy = -torch.log(own)
    correct = (u.argmax(1) == y).double()
    if name == "ce":
        return entropy
    if name == "segpgd":
        share = (t - 1) / (2 * T)
        return (1 - share) * correct * entropy + share * (1 - correct) * entropy
    if name == "cospgd":
        return F.cosine_similarity(p, one_hot(y), dim=1).detach() * entropy
    if name == "mce":
        return correct * entropy
    if name == "mce-bal":
        return correct * SHARES[y] * entropy
    if name == "js":
        m = (p + one_hot(y)) / 2
        return ((p * torch.log(p / m)).sum(1) - torch.log(m[torch.arange(N), y])) / 2
    if name == "tsallis":
        q = -2 + 3 * (t - 1) / (T - 1)
        return entropy if q == 1 else (1 - own ** (1 - q)) / (1 - q)
    if name in ("targeted", "vanishing", "fabrication"):
        return torch.log(p[torch.arange(N), (y + 1) % C])
    others = u - 1e9 * one_hot(y)
    return others.max(1).values - u[torch.arange(N), y]


@pytest.mark.parametrize("t", [1, 4, T])
@pytest.mark.parametrize("name", LOSSES)
def test_direction_and_value_are_those_of_the_loss(name, t):
    u, y = scores()
    u.requires_grad_()
    loss = literal(name, u, y, t)
    (gradient,) = torch.autograd.grad(loss.sum(), u)
    direction, value = LOSSES[name](seen(u.detach(), y, t, SHARES))
    # float64: a handful of operations, each right to 1.1e-16 of numbers below 10
    torch.testing.assert_close(direction, gradient, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(value(), loss.detach(), rtol=1e-12, atol=1e-13)


def test_by_hand_on_two_classes():
    """p = (3/4, 1/4): the numbers of every objective as fractions."""
    u, y = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64), torch.tensor([0])
    unit = torch.tensor([-0.25, 0.25], dtype=torch.float64)  # p - e_y
    weights = {
        "ce": 1,
        "segpgd": 1 - 3 / 20,  # t = 4, correct
        "cospgd": 3 / math.sqrt(10),
        "mce": 1,
        "mce-bal": 0.5,
        "js": -3 / 8 * math.log(3 / 7),
        "tsallis": 0.75**2,  # q = -1 at t = 4
    }
    for name, weight in weights.items():
        direction, _ = LOSSES[name](seen(u, y, 4, torch.tensor([0.5, 1.0])))
        torch.testing.assert_close(direction[0], weight * unit, rtol=1e-12, atol=0, msg=name)
    direction, value = LOSSES["margin"](seen(u, y, 4))
    assert direction.tolist() == [[-1, 1]] and value().item() == pytest.approx(-math.log(3))


def test_directions_stay_finite_where_probabilities_vanish():
    u, y = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]]), torch.tensor([0, 0])
    for name, loss in LOSSES.items():
        direction, value = loss(seen(u, y, 2, torch.ones(3)))
        assert torch.isfinite(direction).all() and torch.isfinite(value()).all(), name


@pytest.mark.parametrize("name", LOSSES)
def test_targets_that_do_not_count_have_no_direction(name):
    u, y = scores()
    whole, _ = LOSSES[name](seen(u, y, 4, SHARES))
    some = torch.arange(N) % 3 > 0
    direction, _ = LOSSES[name](seen(u, y, 4, SHARES)._replace(counts=some))
    assert torch.equal(direction[some], whole[some]) and not direction[~some].any()


@pytest.mark.parametrize(("wanted", "name"), [(0.0, "vanishing"), (1.0, "fabrication")])
def test_objectness_is_the_binary_cross_entropy_of_tog(wanted, name):
    """Chow et al., 2020: descend BCE(o, 0) over all proposals to have objects vanish, and BCE(o, 1) to make some up."""
    o = torch.linspace(-6, 6, 9, dtype=torch.float64, requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(o, torch.full_like(o, wanted), reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), o)
    u = torch.stack([torch.zeros_like(o), o], 1).detach()
    to = torch.full((len(o),), OBJECTNESS[name])
    direction, value = LOSSES[name](seen(u, 1 - to, 1))
    torch.testing.assert_close(direction[:, 1], -gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(value(), -loss.detach(), rtol=1e-12, atol=1e-14)


def test_balance_needs_frequencies():
    with pytest.raises(ValueError, match="needs the frequency of every class"):
        LOSSES["mce-bal"](seen(*scores(), 1))
