"""Attacks on the objectness of proposals, and on a label of the attacker's choice."""

import numpy as np
import pytest
import test_perturb
import torch

from dag.attack import perturb, single
from dag.data import mini
from dag.networks.building import build
from dag.networks.layers import boxes

SETTINGS = single.settings_of("vanishing-8", "detection") | {"nms": 0.9, "limit": 60}


def detector(architecture: str = "faster_rcnn:faster_rcnn"):
    torch.manual_seed(1)
    return build(f"dag.networks.mini.{architecture}", {"body": "alex", "labels": [0, 3, 7], "width": 16})


def picture() -> torch.Tensor:
    return torch.from_numpy(mini.make_image(np.random.default_rng(0))[0].transpose(2, 0, 1).astype(np.float32))


def attacked(network, objective: str) -> tuple:
    """Problem and end of an attack of ten steps."""
    settings = SETTINGS | {"objective": objective}
    problem, targets = perturb.problem_of(network, picture(), None, settings, np.random.default_rng(0), "x")
    assert targets.available == targets.count == len(problem.where) > 20
    ((_, found),) = perturb.attacks(network, [problem], settings)
    return problem, found


@pytest.mark.parametrize("architecture", ["faster_rcnn:faster_rcnn", "rfcn:rfcn"])
def test_objectness_is_that_of_the_anchor_that_became_the_proposal(architecture):
    network = detector(architecture)
    with torch.no_grad():
        features = network.features(torch.cat([picture()[None], picture()[None].flip(3)]))
        found = network.propose(features, nms=0.9, limit=30)
        logits, deltas = network.objectness_and_deltas(features)
        decoded = boxes.clip(boxes.decode(network.anchors(features), deltas), features.size)
        objectness = network.objectness(features, found).split([len(one) for one in found])
    for number, (one, values) in enumerate(zip(found, objectness, strict=True)):
        for box, value in zip(one.boxes, values, strict=True):
            same = (decoded[number] == box).all(1)
            assert value in logits[number][same]
        assert (values.diff() <= 0).all()  # best first


def test_vanishing_and_fabrication_move_the_objectness_of_the_proposals():
    network = detector()
    means = {}
    for objective in ("vanishing", "fabrication"):
        problem, found = attacked(network, objective)
        r = found.perturbation[0]
        assert r.abs().max() <= 8 and len(found.active) == 11
        with torch.no_grad():
            for name, x in (("clean", problem.image), (objective, problem.image + r)):
                logits = network.objectness(network.features(x[None]), [problem.where])
                means[name] = logits.sigmoid().mean().item()
                wrong = (logits > 0) == (objective == "vanishing")
                if name != "clean":  # active: what is not yet as wanted
                    assert found.active[-1] == int(wrong.sum())
    noise = problem.image + 8 * torch.randn(problem.image.shape, generator=torch.Generator().manual_seed(0)).sign()
    with torch.no_grad():
        logits = network.objectness(network.features(noise[None]), [problem.where])
    by_noise = abs(logits.sigmoid().mean().item() - means["clean"])
    assert means["vanishing"] < means["clean"] - 2 * by_noise and means["fabrication"] > means["clean"] + 2 * by_noise


def test_targeted_raises_the_probability_of_the_adversarial_label():
    network, settings = test_perturb.network("segmentation"), single.settings_of("targeted-8", "segmentation")
    truth = torch.from_numpy(mini.make_image(np.random.default_rng(0))[1]).long()
    problem, _ = perturb.problem_of(network, picture(), truth, settings, np.random.default_rng(0), "x")
    ((_, found),) = perturb.attacks(network, [problem], settings)

    noise = 8 * torch.randn(problem.image.shape, generator=torch.Generator().manual_seed(0)).sign()
    means = []
    for r in (torch.zeros_like(noise), noise, found.perturbation[0]):
        with torch.no_grad():
            f = perturb.pixel_scores(network)(problem.image[None] + r, [problem])[0].log_softmax(1)
        means.append(f.gather(1, problem.adversarial[:, None]).mean().item())
    clean, by_noise, moved = means
    assert moved > clean + 2 * abs(by_noise - clean)


def test_a_network_without_objectness_is_refused(monkeypatch):
    network = detector()
    monkeypatch.setattr(type(network), "objectness", lambda *_: None)
    with pytest.raises(ValueError, match="^its proposals have no objectness, which the objective fabrication attacks"):
        attacked(network, "fabrication")
