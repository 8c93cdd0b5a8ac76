"""Dense Adversary Generation: Algorithm 1 of the paper, the same for pixels and proposals, on batches of images.

`dag.attack.rules` says where implementations differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from dag.attack.rules import CONVERGED, ITERATION_LIMIT, NO_GRADIENT, NO_TARGETS, Rules
from dag.networks.layers.operators import nms


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
        |T_m| at every forward pass; the last entry belongs to the returned r.
    """

    perturbation: Tensor
    status: str
    active: list[int]

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
        What errors call the image.
    start : Attack, optional
        An attack to go on with; its last |T_m| is counted again.
    """

    image: Tensor
    labels: Tensor
    adversarial: Tensor
    boxes: Tensor | None = None
    where: object = None
    name: str = "the image"
    start: Attack | None = None


def dense_adversaries(
    problems: Iterable[Problem],
    scores: Callable[[Tensor, list[Problem]], list[Tensor]],
    *,
    rules: Rules,
    iterations: int,
    step: float = 0.5,
    background: int | None = None,
    probabilities: Callable[[Tensor], Tensor] | None = None,
    batch: int = 1,
    late: bool = False,
    arithmetic: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[tuple[Problem, Attack]]:
    """Algorithm 1 on many images of one shape, some of them at the same time.

    A pass through the network serves up to `batch` images.  An image whose attack has ended leaves
    and the next one enters; up to rounding, what comes out for an image depends on nothing but itself.
    When a GPU's memory does not suffice, half as many images share a pass and take turns.

    What an iteration decides (is the image done, which way, how far) is decided where the network is; the host
    only has to learn of it.  If it does so `late`, a GPU never waits for it.

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
        gamma, the largest change of a value in one step, in grey levels.
    background : int, optional
        Column of the background class, if the network has one.
    probabilities : callable, optional
        Class probabilities of scores; needed by the strength rule only.
    batch : int
        Images in one pass, at most.
    late : bool
        The host reads what an iteration has yielded when the next one is under way, and an image that has ended
        takes part in that one without being changed by it.  Nothing but the time differs: it saves what a GPU
        waits for the host, and costs one pass per image, so it is nothing for a CPU.
    arithmetic : callable
        Makes the context in which every iteration is computed.

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
    while True:
        while len(running) < batch and (problem := next(queue, None)) is not None:
            run = _begin(problem, rules, background, probabilities)
            if (problem.labels >= 0).any():
                running.append(run)
            else:
                yield problem, Attack(run.r[None], NO_TARGETS, [])
        if not running:
            return
        todo, latest = running, []
        while todo:
            try:
                with arithmetic():
                    latest.append(
                        _iterate(todo[:batch], scores, rules, iterations, step, background, probabilities, late)
                    )
                todo = todo[batch:]
            except torch.OutOfMemoryError as error:
                batch = _half(todo[:batch], error)
        due, reports = (reports, latest) if late else (latest, [])
        for report in due:
            for run in report.read(iterations):
                yield run.problem, Attack(run.r[None], run.status, run.active)
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
    status : str, optional
        How it ended, once the host knows.
    """

    problem: Problem
    r: Tensor
    active: list[int]
    enough: int
    passes: int
    going: Tensor
    status: str | None = None


def _begin(problem: Problem, rules: Rules, background, probabilities) -> _Run:
    if rules.strength is not None and (problem.boxes is None or probabilities is None):
        raise ValueError("the strength rule needs the boxes of proposals; leave it to detection")
    target = problem.labels >= 0
    foreground = target if background is None else target & (problem.labels != background)
    r, active = torch.zeros_like(problem.image), []
    if problem.start is not None:
        r, active = problem.start.perturbation[0].to(problem.image), problem.start.active[:-1]
    enough = math.floor(rules.stop * int(foreground.sum()))
    return _Run(problem, r, active, enough, len(active), torch.ones((), dtype=torch.bool, device=r.device))


def _half(tried: list[_Run], error: torch.OutOfMemoryError) -> int:
    """How many images are to share a pass when these do not fit into the memory of the GPU."""
    height, width = tried[0].r.shape[-2:]
    if len(tried) == 1:
        raise AttackError(
            f"{tried[0].problem.name} ({height} x {width} pixels) does not fit into the memory of the GPU; "
            "use one with more memory or fewer proposals"
        ) from error
    half = len(tried) // 2
    print(f"out of memory with {len(tried)} images of {height} x {width}: going on with {half}", flush=True)
    return half


def _iterate(running, scores, rules, iterations, step, background, probabilities, late) -> _Report:
    """One iteration of all runs: line 3 to line 9 of Algorithm 1.

    The host reads nothing here, lest it wait for a GPU.  Nothing is changed before both passes have succeeded, so that
    the iteration can be tried again.
    """
    shapes = {tuple(run.r.shape) for run in running}
    if len(shapes) > 1:
        raise ValueError(f"images of the shapes {sorted(shapes)} cannot be attacked together; group them by shape")
    x = torch.stack([run.problem.image + run.r for run in running]).requires_grad_()
    outputs = scores(x, [run.problem for run in running])
    going, pushes, measured = [], [], []
    for run, f in zip(running, outputs, strict=True):
        _check(f, run.problem)
        scored = f.detach()
        prediction = scored.argmax(1)
        pushed, left = _active(rules, scored, prediction, run.problem, background, probabilities, run.passes == 0)
        count = left.sum()
        goes = run.going & (count > run.enough) & (run.passes < iterations)
        suppressed = run.problem.labels if rules.suppress == "label" else prediction
        going.append(goes)
        pushes.append(_Push.apply(f, run.problem.adversarial, suppressed, pushed & goes))
        lowest, highest = torch.aminmax(scored)  # 16 times as fast as to ask of every score whether it is finite
        measured.append(torch.stack([count.double(), lowest.double(), highest.double()]))
    going = torch.stack(going)
    del outputs, f, scored  # as large as score maps
    # A host that does not wait does not know, and the last pass back of an image is for nothing.
    gradients = torch.autograd.grad(sum(pushes), x)[0] if late or going.any() else torch.zeros_like(x)
    largest = gradients.abs().amax((1, 2, 3))
    going &= (largest > 0) & largest.isfinite()
    moved = [
        torch.where(goes, run.r + step * (gradient / most), run.r)
        for run, goes, gradient, most in zip(running, going, gradients, largest, strict=True)
    ]
    report = _Report(running, torch.cat([torch.stack(measured), largest.double()[:, None]], 1))
    for run, goes, r in zip(running, going, moved, strict=True):
        run.going, run.r, run.passes = goes, r, run.passes + 1
    return report


class _Report:
    """What the host has to know of an iteration, on the way to it.

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
        """Take note, and return the runs that ended."""
        if self.arrived is not None:
            self.arrived.synchronize()
        # A run whose end was known before has only been along.
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
            elif largest == 0:
                run.status = NO_GRADIENT
        return [run for run, _ in rows if run.status is not None]


class _Push(torch.autograd.Function):
    """A scalar whose gradient is r_m of the paper, the sum over `pushed` of grad f_l' - grad f_l; its value is unused.

    Like `grad(f, x, weights)`, which however makes torch import its symbolic shapes: 1.8 CPU-seconds
    in every process.  And unlike the sum of f_l' - f_l it computes nothing in the forward pass and keeps nothing for
    the backward pass.
    """

    @staticmethod
    def forward(ctx, f: Tensor, adversarial: Tensor, suppressed: Tensor, pushed: Tensor) -> Tensor:
        ctx.shape, ctx.columns, ctx.pushed = f.shape, (adversarial, suppressed), pushed
        return f.new_zeros(())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        share = ctx.pushed.to(gradient)[:, None]
        # Columns of rows that are not pushed may be -1; they get 0.
        adversarial, suppressed = (columns.clamp(min=0)[:, None] for columns in ctx.columns)
        weights = gradient.new_zeros(ctx.shape).scatter_(1, adversarial, share)
        return weights.scatter_add_(1, suppressed, -share), None, None, None


def _active(rules, f, prediction, problem, background, probabilities, first):
    """Targets to push in this step, and targets that keep the attack going; bool (N,) each."""
    labels, adversarial = problem.labels, problem.adversarial
    target = labels >= 0
    if rules.strength is not None:
        weak = _weak(rules.strength, f, target & (prediction == adversarial), adversarial, problem.boxes, probabilities)
        prediction = torch.where(weak, labels, prediction)
    if rules.active == "correct":
        pushed = target & (prediction == labels)
        return pushed, pushed
    if rules.active == "unreached":
        pushed = target & (prediction != adversarial)
        return pushed, pushed
    if rules.active == "unmoved":
        if first:
            return target, target
        moved = prediction == adversarial
        if background is not None:
            moved = moved | (prediction == background)
        return target & ~moved, target & (prediction == labels)
    raise ValueError(f"active set {rules.active!r} is unknown; choose correct, unmoved or unreached")


def _weak(strength, f, reached, adversarial, boxes, probabilities):
    """Targets that reached their adversarial label and win their neighbourhood, but not surely enough."""
    overlap, score = strength
    weak = torch.zeros_like(reached)
    rows = reached.nonzero().squeeze(1)
    if len(rows):
        sure = probabilities(f)[rows, adversarial[rows]]
        # nms measures x_max - x_min; the last pixel of a box belongs to it.
        windows = boxes[rows].float() + torch.tensor([0.0, 0.0, 1.0, 1.0], device=boxes.device)
        winners = nms(windows, sure.float(), overlap)
        weak[rows[winners[sure[winners] < score]]] = True
    return weak


def _check(f: Tensor, problem: Problem) -> None:
    if f.ndim != 2 or len(f) != len(problem.labels):
        raise AttackError(
            f"{problem.name}: scores of shape {tuple(f.shape)} do not have one row for each of the "
            f"{len(problem.labels)} targets"
        )
