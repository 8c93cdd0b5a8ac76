"""A self-test of attacks: is an adversarial example found that is known to exist?

Zimmermann et al., "Increasing Confidence in Adversarial Robustness Evaluations", NeurIPS 2022: within the budget a
point is drawn, the planted example, and the network gets a readout with two columns that answers differently there.
An attack that does not change the answer is too weak or has no useful gradient.

Here every target has a readout of its own, linear in its scores u.  With the clean scores u_0, those of the planted
example u_1 and d = u_1 - u_0, it is s = d (u - u_0) / |d|^2: 0 at the clean image, 1 at the planted example.  It
answers "planted" above the midpoint of 1 and the largest s at the clean image and at random points of the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dag.attack.engine import Problem
from dag.attack.methods import Method, method_of, project, start
from dag.attack.perturb import attacks, first_of, problem_of, scores_of, truth_of
from dag.data.classes import Match
from dag.data.readers import VOC_LAYOUT, Reader
from dag.networks.interface import Network
from dag.networks.layers.precision import arithmetic
from dag.workflow.names import OBJECTNESS
from dag.workflow.seeds import generator

# Number of random points of the budget that a readout has to distinguish from the planted example.
POINTS = 8
# Score difference of the two columns for a difference of 1 in s: like that of a trained network, without saturation.
GAIN = 10.0

Scores = Callable[[Tensor, list[Problem]], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Readout:
    """`Problem.where` of a planted problem.

    Attributes
    ----------
    problem : Problem
        The network's problem.
    direction : Tensor (N, C)
        d / |d|^2 of every target.
    offset : Tensor (N,)
        s is ``direction * u - offset``, and above 0 where the answer is "planted".
    """

    problem: Problem
    direction: Tensor
    offset: Tensor


def find_planted(
    network: Network,
    images: Sequence[tuple[Path, str]],
    sources: Mapping[str, dict],
    *,
    seed: int,
    name: str,
    reader: Reader = VOC_LAYOUT,
    match: Match | None = None,
    device: str = "cpu",
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> list[dict]:
    """Plant one example in every image and test every attack on it.

    Parameters
    ----------
    network : Network
    images : list of (root, image id)
    sources : mapping of str to dict
        Settings of attacks with a budget, by the names of their sources.
    seed, name
        Seed, with the image id, of the example: the same for attacks of one budget.
    reader, match, device, progress
        As of `dag.attack.perturb.perturb`.

    Returns
    -------
    list of dict
        `source`, `image`, `budget`, `eps`, `objectness` (attacked instead of scores); `targets`, how many there are,
        and `left`, how many of them answer "clean" after the attack; none does at the planted example.
    """
    network, found = network.to(device), []
    read = []
    for root, image_id in images:
        image = torch.from_numpy(reader.image((root, image_id))).to(device)
        truth = truth_of(network, image, reader.truth(network.task, (root, image_id)), match)
        read.append((image_id, image, truth))
    todo = [(source, one) for source in sources for one in read]
    for source, (image_id, image, truth) in progress(todo, len(todo)):
        settings, rng = sources[source], generator("planted", seed, name, image_id)
        method = method_of(first_of(settings))
        with arithmetic("fp32", image.device.type):
            labels = generator("adversarial labels", seed, name, image_id)
            problem, _ = problem_of(network, image, truth, settings, labels, image_id)
            problem, _ = planted(problem, scores_of(network, method), method, rng)
        ((_, attack),) = attacks(
            network,
            [problem],
            settings,
            device=torch.device(device).type,
            shares=torch.ones(2, device=device),
            readout=planted_scores,
        )
        found.append(
            {
                "source": source,
                "image": image_id,
                "budget": method.budget,
                "eps": method.eps,
                "objectness": method.objective in OBJECTNESS,
                "targets": int((problem.labels == 0).sum()),
                "left": attack.left,
            }
        )
    return found


@torch.no_grad()
def planted(problem: Problem, scores: Scores, method: Method, rng: np.random.Generator) -> tuple[Problem, Tensor]:
    """The problem of finding a planted example.

    Parameters
    ----------
    problem : Problem
    scores : callable
        f of `dag.attack.engine.dense_adversaries`.
    method : Method
        With a budget.
    rng : numpy.random.Generator
        Generator of the planted example, the random points and `first`.

    Returns
    -------
    Problem
        Column 0 of its scores (`planted_scores`) is "clean", column 1 "planted".  Labels are -1 where there was no
        target, and where the planted example cannot be told from the random points.
    Tensor (3, H, W)
        The planted example as a perturbation: all targets of the problem are lost there.
    """
    image, anywhere = problem.image, replace(method, start="uniform")

    def seen(r: Tensor) -> Tensor:
        return scores((image + r)[None], [problem])[0]

    points = [start(image, anywhere, rng) for _ in range(POINTS)]
    example = start(image, anywhere, rng)
    if method.budget == "linf":  # a corner of the cube
        example = project(method.eps * example.sign(), image, method)
    clean, there = seen(torch.zeros_like(image)), seen(example)
    direction = there - clean
    direction = direction / direction.square().sum(1, keepdim=True)  # not finite if the scores do not change
    offset = (direction * clean).sum(1)
    inner = torch.stack([(direction * seen(r)).sum(1) - offset for r in points]).amax(0).clamp(min=0)
    offset = offset + (1 + inner) / 2
    # rounding may hide a change that is small
    told = (problem.labels >= 0) & direction.isfinite().all(1) & (inner < 1) & ((direction * there).sum(1) > offset)
    labels = torch.where(told, 0, -1)
    readout = Readout(problem, direction.nan_to_num(0, 0, 0), offset.nan_to_num(0, 0, 0))
    first = start(image, method, rng) if method.start != "zero" else None
    return replace(
        problem, labels=labels, adversarial=torch.where(told, 1, -1), boxes=None, where=readout, first=first
    ), example


def planted_scores(scores: Scores) -> Scores:
    """f of planted problems: (0, GAIN s) with the readout s of every target."""

    def two_columns(x: Tensor, problems: list[Problem]) -> list[Tensor]:
        readouts = [problem.where for problem in problems]
        found = []
        for readout, u in zip(readouts, scores(x, [readout.problem for readout in readouts]), strict=True):
            s = (readout.direction * u).sum(1) - readout.offset
            found.append(torch.stack([torch.zeros_like(s), GAIN * s], 1))
        return found

    return two_columns
