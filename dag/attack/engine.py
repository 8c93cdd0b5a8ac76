"""Dense Adversary Generation: Algorithm 1 of the paper, the same for pixels and proposals, on batches of images.

`dag.attack.rules` says where implementations differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dag.attack.diversity import diversified
from dag.attack.methods import Apgd, Method, judgements, project, smoothed, stepped
from dag.attack.objectives import by_loss, by_rules
from dag.attack.rules import CONVERGED, ITERATION_LIMIT, NO_GRADIENT, NO_TARGETS, Rules
from dag.workflow.seeds import generator

DENSE_ADVERSARY_GENERATION = Method()


class AttackError(ValueError):
    """An image that cannot be attacked; the message begins with its name."""


@dataclass(frozen=True)
class Attack:
    """What one run of the algorithm yields.

    Attributes
    ----------
    perturbation : Tensor (1, 3, H, W)
        r, the sum of all steps, in grey levels; not clipped.
    status : str
        One of `STATUSES`.
    active : list of int
        |T_m| at every forward pass; the last entry belongs to the returned r, or, where the best iterate is kept, the
        smallest.
    passes : int, optional
        Forward passes of the network with this image; all but the last of a run are followed by a backward pass.  None
        if they are not counted.
    best : bool
        Whether r is the best iterate and not the last.
    """

    perturbation: Tensor
    status: str
    active: list[int]
    passes: int | None = None
    best: bool = False

    @property
    def left(self) -> int:
        """Targets that are left at the returned r."""
        return (min(self.active) if self.best else self.active[-1]) if self.active else 0

    @property
    def iterations(self) -> int:
        """Number of steps that were added up."""
        return max(len(self.active) - 1, 0)


@dataclass(frozen=True, eq=False)
class Problem:
    """One image to attack.

    Attributes
    ----------
    image : Tensor (3, H, W)
        X, in [0, 255].
    labels, adversarial : Tensor, int64 (N,)
        l_n and l'_n as columns; -1 where there is no target.
    boxes : Tensor (N, 4), optional
        Boxes of the targets, for the strength rule.
    where : object, optional
        What the scores function needs to find the targets: pixels or proposals.
    name : str
        Name of the image in messages.
    start : Attack, optional
        An attack to resume; its last |T_m| is counted again.
    first : Tensor (3, H, W), optional
        r to begin with; default: zero.
    spent : int
        Passes that were made before.
    seed : int
        Seed of the random numbers of an attack other than its start.
    """

    image: Tensor
    labels: Tensor
    adversarial: Tensor
    boxes: Tensor | None = None
    where: object = None
    name: str = "the image"
    start: Attack | None = None
    first: Tensor | None = None
    spent: int = 0
    seed: int = 0


def dense_adversaries(
    problems: Iterable[Problem],
    scores: Callable[[Tensor, list[Problem]], list[Tensor]],
    *,
    rules: Rules,
    iterations: int,
    step: float = 0.5,
    method: Method = DENSE_ADVERSARY_GENERATION,
    shares: Tensor | None = None,
    background: int | None = None,
    probabilities: Callable[[Tensor], Tensor] | None = None,
    batch: int = 1,
    late: bool = False,
    arithmetic: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[tuple[Problem, Attack]]:
    """Algorithm 1 on many images of one shape, some of them at the same time.

    A pass through the network serves up to `batch` images.  An image whose attack has ended leaves
    and the next one enters; up to rounding, the result of an image depends on nothing but the image.
    If a GPU runs out of memory, half as many images share a pass and take turns.

    All decisions of an iteration (end, direction, step) are computed on the device of the network; the host reads
    them afterwards.  If it reads them `late`, a GPU never waits for the host.

    Parameters
    ----------
    problems : iterable of Problem
        Drawn from when there is room.
    scores : callable
        f: perturbed images (B, 3, H, W) and their problems to one tensor of score vectors (N, C) before
        softmax for each, differentiable in the images.
    rules : Rules
    iterations : int
        M_0, the greatest number of steps.
    step : float
        gamma, the largest change of a value in one step, in grey levels; for the method "l2" the norm of a step.
    method : Method
        The attack; `rules` apply to Dense Adversary Generation only.
    shares : Tensor (C,), optional
        Weights of the classes, for the objective "mce-bal".
    background : int, optional
        Column of the background class, if the network has one.
    probabilities : callable, optional
        Class probabilities of scores; needed by the strength rule only.
    batch : int
        Images in one pass, at most.
    late : bool
        The host reads the result of an iteration while the next one runs; an image that has ended takes part
        unchanged.  Results are the same.  A GPU does not wait for the host, at the cost of one more pass per image,
        which does not pay on a CPU.
    arithmetic : callable
        Returns a context manager for the computation of every iteration.

    Yields
    ------
    Problem, Attack
        In the order in which the attacks end.

    Raises
    ------
    AttackError
        If the scores do not have one row per target, the scores or their gradient are not finite, or one image
        alone does not fit into memory.
    ValueError
        If images differ in shape, or the strength rule lacks boxes.
    """
    queue, running, reports = iter(problems), [], []
    iterate = partial(
        _iterate,
        scores=scores,
        objective=by_rules(rules, background, probabilities)
        if method.objective == "dag"
        else by_loss(method.objective, iterations, shares, valued=method.steps == "apgd"),
        method=method,
        iterations=iterations,
        step=step,
        late=late,
    )
    while True:
        while len(running) < batch and (problem := next(queue, None)) is not None:
            run = _begin(problem, rules, method, background, probabilities)
            if (problem.labels >= 0).any():
                running.append(run)
            else:  # without targets: the perturbation stays as it began
                yield problem, Attack(torch.zeros_like(problem.image)[None], NO_TARGETS, [], problem.spent)
        if not running:
            return
        todo, latest = running, []
        while todo:
            try:
                with arithmetic():
                    latest.append(iterate(todo[:batch]))
                todo = todo[batch:]
            except torch.OutOfMemoryError as error:
                batch = _half(todo[:batch], error)
        due, reports = (reports, latest) if late else (latest, [])
        for report in due:
            for run in report.read(iterations):
                passes = run.problem.spent + len(run.active) * method.passes
                r = run.r if run.best is None else run.best
                yield run.problem, Attack(r[None], run.status, run.active, passes, run.best is not None)
        running = [run for run in running if run.status is None]


@dataclass(eq=False)
class _Run:
    """An attack under way.

    Attributes
    ----------
    r : Tensor (3, H, W)
        The steps so far.
    active : list of int
        |T_m| of the forward passes that the host knows of.
    enough : int
        The attack ends at this |T_m|.
    passes : int
        Forward passes that have been started.
    going : Tensor, bool ()
        Whether it has not ended.
    momentum : Tensor (3, H, W) or Apgd, optional
        State of the steps.
    best : Tensor (3, H, W), optional
        Of the iterates so far the first with the fewest correct targets, `fewest`, where that is kept.
    status : str, optional
        How it ended, once the host knows.
    """

    problem: Problem
    r: Tensor
    active: list[int]
    enough: int
    passes: int
    going: Tensor
    momentum: Tensor | Apgd | None = None
    best: Tensor | None = None
    fewest: Tensor | None = None
    status: str | None = None


def _begin(problem: Problem, rules: Rules, method: Method, background, probabilities) -> _Run:
    if rules.strength is not None and (problem.boxes is None or probabilities is None):
        raise ValueError("the strength rule needs the boxes of proposals; leave it to detection")
    target = problem.labels >= 0
    foreground = target if background is None else target & (problem.labels != background)
    r, active = torch.zeros_like(problem.image) if problem.first is None else problem.first, []
    if problem.start is not None:
        r, active = problem.start.perturbation[0].to(problem.image), problem.start.active[:-1]
    enough = math.floor(rules.stop * int(foreground.sum())) if method.stop == "converged" else -1
    return _Run(problem, r, active, enough, len(active), torch.ones((), dtype=torch.bool, device=r.device))


def _half(tried: list[_Run], error: torch.OutOfMemoryError) -> int:
    """Number of images to share a pass after these did not fit into the memory of the GPU."""
    height, width = tried[0].r.shape[-2:]
    if len(tried) == 1:
        raise AttackError(
            f"{tried[0].problem.name} ({height} x {width} pixels) does not fit into the memory of the GPU; "
            "use one with more memory or fewer proposals"
        ) from error
    half = len(tried) // 2
    print(f"out of memory with {len(tried)} images of {height} x {width}: going on with {half}", flush=True)
    return half


def _iterate(running, scores, objective, method, iterations, step, late) -> _Report:
    """One iteration of all runs: line 3 to line 9 of Algorithm 1.

    The host reads no value here, so it does not wait for a GPU.  No state changes before both passes have succeeded, so
    the iteration can be retried.
    """
    shapes = {tuple(run.r.shape) for run in running}
    if len(shapes) > 1:
        raise ValueError(f"images of the shapes {sorted(shapes)} cannot be attacked together; group them by shape")
    problems = [run.problem for run in running]
    x = torch.stack([run.problem.image + run.r for run in running]).requires_grad_()
    with torch.set_grad_enabled(not method.diversity):
        outputs = scores(x, problems)
    # Apple's GPUs have no float64; counts of pixels are exact in float32 too.
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    going, pushes, measured, values, counts = [], [], [], [], []
    for run, f in zip(running, outputs, strict=True):
        _check(f, run.problem)
        scored = f.detach()
        left, weights, value = objective(scored, run.problem, run.passes)
        count = left.sum()
        goes = run.going & (count > run.enough) & (run.passes < iterations)
        going.append(goes)
        if not method.diversity:
            pushes.append(_Along.apply(f, weights, goes))
        lowest, highest = torch.aminmax(scored)  # 16 times as fast as isfinite on every score
        measured.append(torch.stack([number.to(exact) for number in (count, lowest, highest)]))
        values.append(value)
        counts.append(count)
    going = torch.stack(going)
    seen, placed = _diversified(x, running, method) if method.diversity else (x, problems)
    for power in range(0 if method.diversity else 1, method.scales):
        for run, f, goes in zip(running, scores(seen / 2**power, placed), going, strict=True):
            _, weights, _ = objective(f.detach(), run.problem, run.passes)
            pushes.append(_Along.apply(f, weights, goes))
    del outputs, f, scored, weights  # as large as score maps
    # With `late` the host does not know yet, and the last backward pass of an image is wasted.
    gradients = torch.autograd.grad(sum(pushes), x)[0] if late or going.any() else torch.zeros_like(x)
    gradients = smoothed(gradients, method.smooth)
    largest = gradients.abs().amax((1, 2, 3))
    going &= (largest > 0) & largest.isfinite()
    states = [
        _moved(run, goes, gradient, most, value, count, method, iterations, step)
        for run, goes, gradient, most, value, count in zip(
            running, going, gradients, largest, values, counts, strict=True
        )
    ]
    report = _Report(running, torch.cat([torch.stack(measured), largest.to(exact)[:, None]], 1))
    for run, goes, (r, momentum, best, fewest) in zip(running, going, states, strict=True):
        run.going, run.passes = goes, run.passes + 1
        run.r, run.momentum, run.best, run.fewest = r, momentum, best, fewest
    return report


def _diversified(x: Tensor, running: list[_Run], method: Method) -> tuple[Tensor, list[Problem]]:
    """Perturbed images resized and padded at random, and their problems; seeded by image and iteration."""
    found = []
    for image, run in zip(x, running, strict=True):
        rng = generator("diversity", run.problem.seed, run.problem.spent + run.passes)
        try:
            found.append(diversified(image, run.problem, method.diversity, rng))
        except ValueError as error:
            raise AttackError(f"{run.problem.name}: {error}; leave `diversity` out") from error
    images, problems = zip(*found, strict=True)
    return torch.stack(images), list(problems)


def _moved(run, goes, gradient, largest, value, count, method, iterations, step):
    """r of a run after one more step, within its budget, and the new state: momentum, best iterate, its count."""
    image, best, fewest = run.problem.image, run.best, run.fewest
    if method.keep == "best":
        better = run.going & (count < fewest) if best is not None else torch.ones_like(run.going)
        best = torch.where(better, run.r, run.r if best is None else best)
        fewest = torch.where(better, count, count if fewest is None else fewest)
    if method.steps == "apgd":
        state = run.momentum or Apgd.begin(run.r, gradient, value, method)
        r, momentum = state.step(run.r, gradient, value, image, method, run.passes, judgements(iterations))
    else:
        r, momentum = stepped(method, run.r, gradient, largest, step, run.momentum)
        r = project(r, image, method)
    return torch.where(goes, r, run.r), momentum, best, fewest


class _Report:
    """Results of an iteration, being copied to the host.

    Parameters
    ----------
    runs : list of _Run
    values : Tensor, float64 (B, 4)
        For each: |T_m|, the smallest and the largest score, the largest absolute value of the gradient.
    """

    def __init__(self, runs: list[_Run], values: Tensor):
        self.runs, self.arrived = runs, None
        self.values = values.to("cpu", non_blocking=True)
        if values.is_cuda:
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def read(self, iterations: int) -> list[_Run]:
        """Record the results, and return the runs that ended."""
        if self.arrived is not None:
            self.arrived.synchronize()
        # A run that had already ended took part unchanged.
        rows = [(run, row) for run, row in zip(self.runs, self.values.tolist(), strict=True) if run.status is None]
        for run, (_, lowest, highest, _) in rows:
            if not (math.isfinite(lowest) and math.isfinite(highest)):
                raise AttackError(
                    f"{run.problem.name}: the network's scores are not finite; check its weights and the input image"
                )
        for run, (count, _, _, largest) in rows:
            run.active.append(int(count))
            if count <= run.enough:
                run.status = CONVERGED
            elif len(run.active) > iterations:
                run.status = ITERATION_LIMIT
            elif not math.isfinite(largest):
                raise AttackError(
                    f"{run.problem.name}: the gradient of the network's scores is not finite; "
                    "check its weights and the input image"
                )
            elif largest == 0:  # a loss of the targets that are still correct ends with the last of them
                run.status = NO_GRADIENT if count else CONVERGED
        return [run for run, _ in rows if run.status is not None]


class _Along(torch.autograd.Function):
    """A scalar whose gradient at the scores f is `weights(zeros, goes)`; its value is unused.

    Equivalent to `grad(f, x, weights)`, which makes torch import its symbolic shapes (1.8 CPU-seconds per
    process).  Unlike a loss, it computes nothing in the forward pass and saves nothing for the backward pass.
    """

    @staticmethod
    def forward(ctx, f: Tensor, weights: Callable[[Tensor, Tensor], Tensor], goes: Tensor) -> Tensor:
        ctx.shape, ctx.weights, ctx.goes = f.shape, weights, goes
        return f.new_zeros(())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.weights(gradient.new_zeros(ctx.shape), ctx.goes), None, None


def _check(f: Tensor, problem: Problem) -> None:
    if f.ndim != 2 or len(f) != len(problem.labels):
        raise AttackError(
            f"{problem.name}: scores of shape {tuple(f.shape)} do not have one row for each of the "
            f"{len(problem.labels)} targets"
        )
