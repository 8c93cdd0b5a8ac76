"""Diverse inputs: targets are followed to where they have gone, draws are those of the image and the iteration."""

import numpy as np
import pytest
import test_perturb
import torch
from test_perturb import root  # noqa: F401

from dag.attack.diversity import diversified
from dag.attack.engine import AttackError, Problem, dense_adversaries
from dag.attack.methods import Method
from dag.attack.rules import Rules
from dag.networks.interface import Proposals
from dag.workflow.seeds import generator

HEIGHT, WIDTH = 40, 60


def ramp() -> torch.Tensor:
    """Values are the coordinates of a pixel, plus 100: (y, x, 0)."""
    y, x = torch.meshgrid(torch.arange(float(HEIGHT)), torch.arange(float(WIDTH)), indexing="ij")
    return torch.stack([100 + y, 100 + x, torch.zeros_like(x)])


def problem(where) -> Problem:
    count = len(where)
    return Problem(ramp(), torch.zeros(count, dtype=torch.int64), torch.ones(count, dtype=torch.int64), where=where)


def test_pixels_are_followed():
    where, moved = torch.arange(HEIGHT * WIDTH), 0
    for seed in range(20):
        seen, placed = diversified(ramp(), problem(where), 1.0, np.random.default_rng(seed))
        assert seen.shape == (3, HEIGHT, WIDTH) and placed.where.min() >= 0 and placed.where.max() < HEIGHT * WIDTH
        found = seen.flatten(1)[:2, placed.where] - 100
        expected = torch.stack([where // WIDTH, where % WIDTH])
        # half a pixel of rounding, at a size of at least 0.9; bilinear, half a pixel at the border
        assert (found - expected).abs().max() <= 0.5 / 0.9 + 1e-3
        moved += not torch.equal(placed.where, where)
    assert moved >= 15


def test_boxes_are_followed():
    image = torch.zeros(3, HEIGHT, WIDTH)
    image[:, 10:30, 20:50] = 255
    box = Proposals(torch.tensor([[20.0, 10, 49, 29]]))
    one = Problem(image, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), where=box)
    for seed in range(20):
        seen, placed = diversified(image, one, 1.0, np.random.default_rng(seed))
        y, x = (seen[0] > 128).nonzero(as_tuple=True)
        bright = torch.tensor([x.min(), y.min(), x.max(), y.max()]).float()
        assert (placed.where.boxes[0] - bright).abs().max() <= 0.75


def test_places_are_uniform_and_probabilities_hold():
    """All of the border is padding somewhere, on every side."""
    white, sides, changed = torch.full((3, HEIGHT, WIDTH), 255.0), torch.zeros(4), 0
    for seed in range(300):
        seen, _ = diversified(white, problem(torch.arange(1)), 0.3, np.random.default_rng(seed))
        changed += bool((seen == 0).any())
        sides += torch.stack([side.max() == 0 for side in (seen[0, 0], seen[0, -1], seen[0, :, 0], seen[0, :, -1])])
    # binomial: 90 with a standard deviation of 8; a factor that rounds to the size is no change to be seen
    assert 60 < changed < 115 and (sides > 15).all()


def test_the_gradient_is_that_of_what_was_seen():
    """A linear score: the step is along the adjoint of resizing and padding, computed by a Jacobian."""
    where, weight = torch.tensor([5 * WIDTH + 7, 20 * WIDTH + 30]), torch.tensor([1.0, -2.0, 0.5])

    def scores(x, problems):
        found = []
        for image, one in zip(x, problems, strict=True):
            u = weight @ image.flatten(1)[:, one.where]
            found.append(torch.stack([u + 1000, -u], 1))
        return found

    one = Problem(ramp(), torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64), where=where, seed=11)
    method = Method(diversity=1.0, stop="iterations")
    ((_, found),) = dense_adversaries([one], scores, rules=Rules(), iterations=1, step=0.5, method=method)

    def loss(x):
        seen, placed = diversified(x, one, 1.0, generator("diversity", 11, 0))
        (u,) = scores(seen[None], [placed])
        return (u[:, 1] - u[:, 0]).sum()

    gradient = torch.autograd.functional.jacobian(loss, ramp())
    torch.testing.assert_close(found.perturbation[0], 0.5 * gradient / gradient.abs().max())
    assert found.passes == 4  # two iterations, the last one counts alone; each counts and looks


def test_draws_are_those_of_the_image(root, tmp_path):  # noqa: F811
    settings = test_perturb.SEGMENTATION | {"diversity": 0.7}
    ids = test_perturb.IDS
    whole = test_perturb.perturbed("segmentation", root, ids, tmp_path / "a.h5", settings=settings)
    alone = test_perturb.perturbed("segmentation", root, ids[1:2], tmp_path / "b.h5", settings=settings)
    plain = test_perturb.perturbed("segmentation", root, ids, tmp_path / "c.h5")
    assert np.array_equal(alone[ids[1]][0], whole[ids[1]][0])
    assert not np.array_equal(plain[ids[1]][0], whole[ids[1]][0])
    # what is counted is the image as it is
    assert [known["start"] for _, known in whole.values()] == [known["start"] for _, known in plain.values()]
    found = test_perturb.perturbed("detection", root, ids[:1], tmp_path / "d.h5",
                                   settings=test_perturb.DETECTION | {"diversity": 1.0})  # fmt: skip
    assert found[ids[0]][0].any()


def test_single_stage_networks_are_refused():
    box = Proposals(torch.tensor([[2.0, 1, 4, 9]]), torch.tensor([3]))
    one = Problem(ramp(), torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), where=box)
    run = dense_adversaries(
        [one], lambda x, problems: [x[:, :2, 0, 0]], rules=Rules(), iterations=1, method=Method(diversity=1.0)
    )
    with pytest.raises(
        AttackError, match="the image: the proposals of this network stay where .*; leave `diversity` out"
    ):
        list(run)
