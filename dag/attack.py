"""Dense Adversary Generation: Algorithm 1 of the paper, the same for pixels and proposals.

The paper's text and the authors' code differ; `Rules` names every point of difference, and
`PRESETS` holds the two combinations that have names.  Both are offered, never mixed silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dag.networks.operators import nms

CONVERGED = "converged"
ITERATION_LIMIT = "iteration limit"
NO_TARGETS = "no targets"
NO_GRADIENT = "no gradient"
STATUSES = (CONVERGED, ITERATION_LIMIT, NO_TARGETS, NO_GRADIENT)


@dataclass(frozen=True)
class Rules:
    """Where implementations of the attack differ.

    Attributes
    ----------
    labels : str
        Adversarial labels: "derangement" of all classes, or "absent" foreground classes.
    active : str
        Targets that are pushed: "correct" (prediction is the true label, the paper's T_m),
        "unmoved" (neither the adversarial label nor background; all targets in the first step;
        the attack ends when no prediction is the true label), or "unreached" (prediction is not
        the adversarial label).
    suppress : str
        Score that is pushed down: of the true "label" or of the current "prediction".
    background : bool
        Segmentation: background pixels are targets too, to be kept background.
    strength : tuple of float or None
        (IoU, score): of the targets that reached their adversarial label, those that survive
        suppression at this IoU with a probability below this score count as not yet moved.
    stop : float
        The attack ends when at most this share of the foreground targets is left.
    """

    labels: str = "derangement"
    active: str = "correct"
    suppress: str = "label"
    background: bool = False
    strength: tuple[float, float] | None = None
    stop: float = 0.0


PRESETS = {
    ("algorithm-1", "segmentation"): Rules(),
    ("algorithm-1", "detection"): Rules(),
    ("authors", "segmentation"): Rules(
        labels="absent", active="unreached", suppress="prediction", background=True, stop=0.01
    ),
    ("authors", "detection"): Rules(labels="absent", active="unmoved", strength=(0.35, 0.8)),
}


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


def dense_adversary(
    image: Tensor,
    scores: Callable[[Tensor], Tensor],
    labels: Tensor,
    adversarial: Tensor,
    *,
    rules: Rules,
    iterations: int,
    step: float = 0.5,
    background: int | None = None,
    boxes: Tensor | None = None,
    probabilities: Callable[[Tensor], Tensor] | None = None,
) -> Attack:
    """Algorithm 1.

    Parameters
    ----------
    image : Tensor (1, 3, H, W)
        X, in [0, 255].
    scores : callable
        f: perturbed images (1, 3, H, W) to score vectors (N, C) before softmax.
    labels, adversarial : Tensor, int64 (N,)
        l_n and l'_n as columns; -1 where there is no target.
    rules : Rules
    iterations : int
        M_0, the greatest number of steps.
    step : float
        gamma, the largest change of a value in one step, in grey levels.
    background : int, optional
        Column of the background class, if the network has one.
    boxes : Tensor (N, 4), optional
        Boxes of the targets, and
    probabilities : callable, optional
        class probabilities of scores; both are needed by the strength rule only.

    Raises
    ------
    ValueError
        If the scores do not have one row per target, the scores or their gradient are not finite, or the strength
        rule lacks boxes.
    """
    if rules.strength is not None and (boxes is None or probabilities is None):
        raise ValueError("the strength rule needs the boxes of proposals; leave it to detection")
    target = labels >= 0
    r = torch.zeros_like(image)
    if not target.any():
        return Attack(r, NO_TARGETS, [])
    foreground = target if background is None else target & (labels != background)
    enough = rules.stop * int(foreground.sum())

    active: list[int] = []
    while True:
        x = (image + r).requires_grad_()
        f = scores(x)
        _check(f, labels)
        prediction = f.detach().argmax(1)
        pushed, left = _active(rules, f.detach(), prediction, target, labels, adversarial, background, boxes,
                               probabilities, first=not active)  # fmt: skip
        active.append(int(left.sum()))
        if active[-1] <= enough:
            return Attack(r, CONVERGED, active)
        if len(active) > iterations:
            return Attack(r, ITERATION_LIMIT, active)

        # r_m = sum over T_m of grad f_l' - grad f_l: the gradient is linear in its output weights.
        rows = pushed.nonzero().squeeze(1)
        suppressed = labels if rules.suppress == "label" else prediction
        weights = torch.zeros_like(f)
        weights[rows, adversarial[rows]] = 1
        weights[rows, suppressed[rows]] -= 1
        (gradient,) = torch.autograd.grad(_Weighted.apply(f, weights), x)
        largest = gradient.abs().max()
        if not torch.isfinite(largest):
            raise ValueError(
                "the gradient of the network's scores is not finite; check its weights and the input image"
            )
        if largest == 0:
            return Attack(r, NO_GRADIENT, active)
        r = r + step * (gradient / largest)


class _Weighted(torch.autograd.Function):
    """A scalar whose gradient with respect to the scores is `weights`; its value, 0, is not used.

    Like `grad(f, x, weights)`, which however makes torch import its symbolic shapes: 1.8 CPU-seconds
    in every process.  And unlike (f * weights).sum() it computes nothing of the size of f.
    """

    @staticmethod
    def forward(ctx, f: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        return f.new_zeros(())

    @staticmethod
    def backward(ctx, _: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def _active(rules, f, prediction, target, labels, adversarial, background, boxes, probabilities, first):
    """Targets to push in this step, and targets that keep the attack going; bool (N,) each."""
    if rules.strength is not None:
        weak = _weak(rules.strength, f, target & (prediction == adversarial), adversarial, boxes, probabilities)
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


def _check(f: Tensor, labels: Tensor) -> None:
    if f.ndim != 2 or len(f) != len(labels):
        raise ValueError(f"scores of shape {tuple(f.shape)} do not have one row for each of the {len(labels)} targets")
    if not torch.isfinite(f).all():
        raise ValueError("the network's scores are not finite; check its weights and the input image")
