"""An attack on several networks at once: the sum of their losses, instead of the sum of their perturbations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dag.attack.engine import Problem
from dag.attack.targets import Targets
from dag.networks.interface import Network

Scores = Callable[[Tensor, list[Problem]], list[Tensor]]

# Offset in pixels between the boxes of different networks, so that suppression acts within one network.
APART = 2.0**14


def check_alike(networks: Sequence[Network]) -> None:
    """Refuse networks whose targets cannot be concatenated.

    Raises
    ------
    ValueError
        If they differ in task, in score columns, or in how scores become probabilities.
    """
    first = networks[0]
    for other in networks[1:]:
        if (other.task, tuple(other.labels), other.classes) != (first.task, tuple(first.labels), first.classes):
            raise ValueError(
                f"networks of an ensemble need the same task, classes and score columns, not {first.task} with "
                f"{tuple(first.labels)} and {other.task} with {tuple(other.labels)}; name others"
            )
        if first.task == "detection" and type(other).probabilities is not type(first).probabilities:
            raise ValueError(
                "detectors of an ensemble need probabilities of the same kind, softmax or sigmoids; name others"
            )


def together(parts: Sequence[tuple[Problem, Targets]]) -> tuple[Problem, Targets]:
    """One problem from those of several networks on one image, with their targets concatenated.

    `where` are the problems of the networks, see `ensemble_scores`.
    """
    problems, targets = zip(*parts, strict=True)
    labels, adversarial = (torch.cat([getattr(one, key) for one in problems]) for key in ("labels", "adversarial"))
    boxes = None
    if all(one.boxes is not None for one in problems):
        boxes = torch.cat([one.boxes + APART * number for number, one in enumerate(problems)])
    first = problems[0]
    return (
        Problem(first.image, labels, adversarial, boxes, where=problems, name=first.name),
        Targets(
            torch.cat([one.labels for one in targets]),
            torch.cat([one.adversarial for one in targets]),
            available=sum(one.available for one in targets),
        ),
    )


def ensemble_scores(functions: Sequence[Scores]) -> Scores:
    """f of an ensemble: the scores of every network at its own targets, in the order of `together`."""

    def scores(x: Tensor, problems: list[Problem]) -> list[Tensor]:
        found = [
            function(x, [problem.where[number] for problem in problems]) for number, function in enumerate(functions)
        ]
        return [torch.cat(rows) for rows in zip(*found, strict=True)]

    return scores
