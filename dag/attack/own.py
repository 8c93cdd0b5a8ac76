"""Custom attacks: a function that perturbs one image, or files; checked and counted like every other attack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from dag.attack.engine import Attack, AttackError, Problem
from dag.attack.methods import Method, within
from dag.attack.rules import CONVERGED, ITERATION_LIMIT, NO_TARGETS
from dag.data.image_sets import ImageError
from dag.data.pictures import read_perturbation
from dag.networks.building import function_of
from dag.networks.chance import seeded
from dag.networks.interface import Network

# Tolerated excess of r over its budget in grey levels, which is clipped: rounding of tools that compute in 0..1.
SLACK = 1e-3


def own_attacks(
    network: Network,
    problems: Iterable[Problem],
    scores: Callable[[Tensor, list[Problem]], list[Tensor]],
    settings: dict,
    method: Method,
    exact: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[tuple[Problem, Attack]]:
    """Perturb every image by the function that `settings` name, or by the files of a folder.

    The function is called as ``function(network, image, scores, labels, **arguments)`` with the image (1, 3, H, W) in
    0..255, a callable from images (1, 3, H, W) to the scores (N, C) of the targets, differentiable in the image, and
    the true columns (N,); torch's random numbers are seeded by the image.  It returns the perturbation r (1, 3, H, W)
    in grey levels.  The recorded |T_m| are counted here, before and after.  A folder, `perturbation`, holds what
    `dag.data.pictures.read_perturbation` reads.

    Raises
    ------
    AttackError
        If a file cannot be used, or r has another shape, is not finite or leaves the budget.
    ValueError
        If the function fails.
    """
    name = settings.get("function") or settings["perturbation"]
    function = function_of(name) if "function" in settings else None
    for problem in problems:
        image, targets = problem.image[None], bool((problem.labels >= 0).any())
        if not targets and function:
            yield problem, Attack(torch.zeros_like(image), NO_TARGETS, [])
            continue

        def of_targets(x: Tensor, problem: Problem = problem) -> Tensor:
            return scores(x, [problem])[0]

        def correct(x: Tensor, problem: Problem = problem) -> int:
            with torch.no_grad(), exact():
                return int((of_targets(x).argmax(1) == problem.labels).sum())

        try:
            if function:
                with seeded(problem.seed), exact():
                    r = function(network, image, of_targets, problem.labels, **settings.get("arguments", {}))
            else:
                clean = problem.image.cpu().numpy()
                r = torch.from_numpy(read_perturbation(name, problem.name, clean, settings.get("unclipped", False)))[
                    None
                ]
        except ImageError as error:
            raise AttackError(f"{problem.name}: {error}") from error
        except Exception as error:  # a fault of the function, not of this image
            raise ValueError(f"{name} failed on {problem.name}: {type(error).__name__}: {error}") from error
        _check(r, problem, method, name)
        r = within(r.detach().to(problem.image), method)
        if not targets:
            yield problem, Attack(r, NO_TARGETS, [])
            continue
        active = [correct(image), correct(image + r)]
        yield problem, Attack(r, CONVERGED if not active[1] else ITERATION_LIMIT, active)


def _check(r: Tensor, problem: Problem, method: Method, name: str) -> None:
    shape = (1, *problem.image.shape)
    if not isinstance(r, Tensor) or tuple(r.shape) != shape:
        found = tuple(r.shape) if isinstance(r, Tensor) else type(r).__name__
        raise AttackError(f"{problem.name}: {name} returned {found}; return a tensor r of the shape {shape}")
    if not torch.isfinite(r).all():
        raise AttackError(f"{problem.name}: {name} returned values that are not finite")
    if method.budget is not None:
        size = r.abs().max() if method.budget == "linf" else r.cpu().double().norm()
        if size > method.eps + SLACK:
            raise AttackError(
                f"{problem.name}: {name} returned a perturbation of {method.budget} norm {size:.4g}, above the budget "
                f"eps = {method.eps}; project it, or leave budget and eps out"
            )
