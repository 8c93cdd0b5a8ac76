"""Attacks on the sum of losses: the gradient is the sum, targets of every network count, chance is shared."""

import numpy as np
import pytest
import test_perturb
import torch
from test_perturb import root  # noqa: F401

from dag.attack.engine import Problem, dense_adversaries
from dag.attack.ensemble import check_alike, ensemble_scores, together
from dag.attack.methods import Method
from dag.attack.rules import Rules
from dag.attack.targets import Targets
from dag.networks.building import build

IDS = test_perturb.IDS


def linear(weight: torch.Tensor, bias: float):
    """Scores (N, 2): u and -u at every pixel of `where`, u linear in the colours."""

    def scores(x, problems):
        found = []
        for image, one in zip(x, problems, strict=True):
            u = weight @ image.flatten(1)[:, one.where] + bias
            found.append(torch.stack([u, -u], 1))
        return found

    return scores


def part(image: torch.Tensor, where: list[int]) -> tuple[Problem, Targets]:
    labels = torch.zeros(len(where), dtype=torch.int64)
    return Problem(image, labels, labels + 1, where=torch.tensor(where)), Targets(labels, labels + 1, available=9)


def test_one_step_is_along_the_sum_of_gradients():
    """Both networks have the targets that are right for them; the step of Algorithm 1 by hand."""
    image = torch.full((3, 2, 3), 100.0)
    first, second = torch.tensor([1.0, 0.0, -0.5]), torch.tensor([0.5, 2.0, 0.0])
    problem, targets = together([part(image, [0, 1]), part(image, [1, 5])])
    assert targets.count == 4 and targets.available == 18 and len(problem.labels) == 4
    scores = ensemble_scores([linear(first, 0.0), linear(second, -300.0)])  # u = 50 and u = -50: the second is wrong
    both = ensemble_scores([linear(first, 0.0), linear(second, 0.0)])
    for function, share, active in ((scores, 0.0, 2), (both, 1.0, 4)):
        ((_, found),) = dense_adversaries(
            [problem], function, rules=Rules(), iterations=1, step=0.5, method=Method(stop="iterations")
        )
        gradient = torch.zeros(3, 6)
        gradient[:, [0, 1]] += -2 * first[:, None]
        gradient[:, [1, 5]] += -2 * share * second[:, None]
        expected = 0.5 * gradient / gradient.abs().max()
        torch.testing.assert_close(found.perturbation[0].flatten(1), expected)
        assert found.active[0] == active


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_network_with_itself_is_that_network(root, tmp_path, task):  # noqa: F811
    """Twice the gradient, so the same step; the labels of both are drawn alike."""
    one = test_perturb.perturbed(task, root, IDS, tmp_path / "one.h5")
    two = test_perturb.perturbed(task, root, IDS, tmp_path / "two.h5", others=[test_perturb.network(task)])
    for image_id in IDS:
        (r, known), (again, about) = one[image_id], two[image_id]
        assert np.array_equal(r, again)
        assert about["targets"] == 2 * known["targets"] and (about["active"] == 2 * np.array(known["active"])).all()


def test_another_network_changes_the_perturbation(root, tmp_path):  # noqa: F811
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = build("dag.networks.mini.fcn:fcn", {"body": "alex", "labels": test_perturb.LABELS, "width": 16})
    settings = test_perturb.SEGMENTATION | {"rules": "authors"}  # which push every target
    one = test_perturb.perturbed("segmentation", root, IDS, tmp_path / "one.h5", settings=settings)
    two = test_perturb.perturbed("segmentation", root, IDS, tmp_path / "two.h5", settings=settings, others=[other])
    alone = test_perturb.perturbed("segmentation", root, IDS[:1], tmp_path / "a.h5", settings=settings, others=[other])
    assert np.array_equal(two[IDS[0]][0], alone[IDS[0]][0])
    assert not any(np.array_equal(one[i][0], two[i][0]) for i in IDS if two[i][0].any())


def test_networks_that_do_not_fit():
    segmenter, detector = test_perturb.network("segmentation"), test_perturb.network("detection")
    fewer = build("dag.networks.mini.fcn:fcn", {"body": "alex", "labels": [0, 1, 2], "width": 8})
    check_alike([segmenter, segmenter])
    for others in ([segmenter, detector], [segmenter, fewer]):
        with pytest.raises(
            ValueError, match="^networks of an ensemble need the same task, classes and score columns, no"
        ):
            check_alike(others)

    class Sigmoids(type(detector)):
        def probabilities(self, scores):
            return scores.sigmoid()

    other = test_perturb.network("detection")
    other.__class__ = Sigmoids
    with pytest.raises(ValueError, match="probabilities of the same kind, softmax or sigmoids"):
        check_alike([detector, other])
