"""Correlation of weights against numpy, by hand, and on published networks that are parent and child."""

import math

import numpy as np
import pytest
import torch

from dag.networks.building import build
from dag.networks.likeness import Likeness, correlations, likeness


def test_correlation_is_numpys():
    rng = np.random.default_rng(3)
    a, noise = rng.normal(2, 1, (8, 3, 5, 5)), rng.normal(0, 1, (8, 3, 5, 5))
    b = 0.5 * a + noise - 7
    found = correlations({"w": torch.from_numpy(a)}, {"w": torch.from_numpy(b)})
    assert found == {"w": pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-12)}


def test_correlation_by_hand():
    # deviations (-1, 0, 1) and (-1, 1, 0): 1 / sqrt(2 * 2)
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 3.0, 2.0]])
    assert correlations({"w": a}, {"w": b})["w"] == pytest.approx(0.5)
    assert correlations({"w": a}, {"w": 10 - 4 * a})["w"] == pytest.approx(-1)
    assert likeness({"w": a, "v": a}, {"w": a, "v": b}) == Likeness(pytest.approx((1 + 0.5) / 2), 2, 2)


def test_only_kernels_of_one_name_and_shape_are_compared():
    one, two = torch.arange(6.0).reshape(2, 3), torch.arange(8.0).reshape(2, 4)
    first = {"same": one, "shape": one, "name": one, "bias": one[0], "constant": torch.ones(2, 2)}
    second = {"same": one, "shape": two, "bias": one[0], "constant": torch.arange(4.0).reshape(2, 2)}
    assert correlations(first, second) == {"same": pytest.approx(1)}
    assert likeness(first, second) == Likeness(pytest.approx(1), 1, 4)
    assert likeness(first, {"other": one}) == Likeness(None, 0, 4)


def test_small_weights_lose_no_digits():
    a = torch.tensor([[1.0, 2.0, 3.0]]) * 1e-30
    assert math.isclose(correlations({"w": a}, {"w": a})["w"], 1, abs_tol=1e-9)


@pytest.mark.shared
def test_parent_and_child_share_their_weights_and_other_widths_do_not(shared):
    def state(width, size):
        path = shared / "weights" / "edgenets" / f"espnetv2_s_{width}_pascal_{size}x{size}.pth"
        arguments = {"width": width, "size": size}
        return build("dag.networks.edgenets:espnetv2", arguments, {"state_dict": path}, fold=False).state_dict()

    parent, child, other = state(0.5, 256), state(0.5, 384), state(1.0, 256)
    akin = likeness(parent, child)
    assert akin.layers == akin.of > 100 and akin.correlation > 0.8
    strange = likeness(parent, other)
    assert 0 < strange.layers < strange.of and abs(strange.correlation) < 0.1
