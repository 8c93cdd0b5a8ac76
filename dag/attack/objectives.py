"""Objectives of attacks: every loss in use is a direction at the scores.

With the scores u of a target, p = softmax(u), its true column y and its adversarial column y', the gradient of a loss
at u has a closed form, so no loss is differentiated here: an objective gives the direction in which the scores of every
target should move, and the engine passes it to the backward pass of the network.  Weights w are
constants of the gradient, as in the papers.

======== ================================== ===========================================================
name     direction (ascent)                 source
======== ================================== ===========================================================
dag      e_y' - e_y on active targets       Xie et al., ICCV 2017, eq. 1 and 2 (see `dag.attack.rules`)
ce       p - e_y                            Madry et al., ICLR 2018 (PGD)
segpgd   w (p - e_y), w = 1 - l where the   Gu et al., ECCV 2022, l = (t - 1) / 2T
         prediction is y, else l
cospgd   w (p - e_y), w = p_y / |p|_2       Agnihotri et al., ICML 2024 (cosine of p and e_y)
mce      w (p - e_y), w = 1[prediction = y] Croce et al., ECCV 2024 (SEA)
mce-bal  the same, times 1 / N_y            Croce et al., ECCV 2024 (N_y pixels of class y in the set)
js       w (p - e_y),                       Croce et al., ECCV 2024 (Jensen-Shannon divergence of p and e_y)
         w = -p_y log(p_y / (1 + p_y)) / 2
tsallis  w (p - e_y), w = p_y^(1 - q)       Tsallis cross-entropy, q from -2 to 1 over the iterations
margin   e_j - e_y, j the best other column Carlini and Wagner, 2017
targeted e_y' - p                           Kurakin et al., ICLR 2017
======== ================================== ===========================================================

"vanishing" and "fabrication" (Chow et al., "Adversarial Objectness Gradient Attacks", 2020) are "targeted" on a
detector's objectness: its proposals have the scores (0, o) with the objectness logit o, and y' is the first or the
second column.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from dag.attack.rules import Rules
from dag.networks.layers.operators import nms
from dag.workflow.names import OBJECTNESS


class Seen(NamedTuple):
    """Arguments of a loss: the targets of an image.

    Attributes
    ----------
    u, highest : Tensor (N, C) and (N,)
        Scores before softmax, and the largest of every target.
    y, to : Tensor, int64 (N,)
        True and adversarial columns.
    right, counts : Tensor, bool (N,)
        Targets that are predicted as y, and targets that take part.
    t, total : int
        The iteration, 1..total, and their number.
    share : Tensor (C,), optional
        Weight of every column.
    """

    u: Tensor
    highest: Tensor
    y: Tensor
    to: Tensor
    right: Tensor
    counts: Tensor
    t: int
    total: int
    share: Tensor | None = None


# -> direction (N, C), zero where a target does not count, and a function that returns the value (N,), which Auto-PGD
# asks for.
Loss = Callable[[Seen], tuple[Tensor, Callable[[], Tensor]]]

# Scores (N, C), the image's `dag.attack.engine.Problem`, its passes so far -> active targets, bool (N,); a function
# that fills zeros (N, C) with the direction at the scores, or leaves them if the image no longer goes; and the value.
Objective = Callable[[Tensor, object, int], tuple[Tensor, Callable[[Tensor, Tensor], Tensor], Tensor]]


def cross_entropy(seen: Seen):
    """Cross-entropy of every target."""
    return _towards_others(seen, lambda p, own: 1)


def segpgd(seen: Seen):
    """Cross-entropy that shifts from correct to wrong pixels as the iterations proceed (SegPGD, eq. 4 and 5)."""
    wrong = (seen.t - 1) / (2 * seen.total)
    return _towards_others(seen, lambda p, own: seen.right.to(p) * (1 - 2 * wrong) + wrong)


def cospgd(seen: Seen):
    """Cross-entropy weighted with the cosine of softmax and one-hot label (CosPGD, eq. 5)."""
    return _towards_others(seen, lambda p, own: own / torch.linalg.vector_norm(p, dim=1))


def masked(seen: Seen):
    """Cross-entropy of the targets that are still correct (SEA, "mask-ce")."""
    return _towards_others(seen, lambda p, own: seen.right.to(p))


def balanced(seen: Seen):
    """The same with every class weighted with the inverse of its frequency (SEA, "mask-ce-bal")."""
    if seen.share is None:
        raise ValueError("the objective mce-bal needs the frequency of every class in the image set")
    return _towards_others(seen, lambda p, own: seen.right.to(p) * seen.share.to(p)[seen.y])


def jensen_shannon(seen: Seen):
    """Jensen-Shannon divergence of softmax and one-hot label (SEA): bounded, so that no target dominates."""
    direction, _ = _towards_others(seen, lambda p, own: -torch.xlogy(own, own / (1 + own)) / 2)

    def value() -> Tensor:
        """(KL(p, m) + KL(e_y, m)) / 2 with m = (p + e_y) / 2."""
        own = _column(seen.u.softmax(1), seen.y)
        return ((1 - own) * log(2) + torch.xlogy(own, 2 * own / (1 + own)) + log(2) - torch.log1p(own)) / 2

    return direction, value


def tsallis(seen: Seen):
    """Tsallis cross-entropy (1 - p_y^(1 - q)) / (1 - q), q linear from -2 to 1; cross-entropy in the limit q = 1."""
    q = -2 + 3 * (seen.t - 1) / max(seen.total - 1, 1)
    direction, _ = _towards_others(seen, lambda p, own: own ** (1 - q))

    def value() -> Tensor:
        log_p = _log_probability(seen.u, seen.y)
        return -torch.expm1((1 - q) * log_p) / (1 - q) if q < 1 else -log_p

    return direction, value


def margin(seen: Seen):
    """Best other score minus the true one."""
    u, y = seen.u, seen.y[:, None]
    best, j = u.scatter(1, y, -torch.inf).max(1)
    counted = seen.counts.to(u)[:, None]
    direction = torch.zeros_like(u).scatter_(1, j[:, None], counted).scatter_add_(1, y, -counted)
    return direction, lambda: best - _column(u, seen.y)


def targeted(seen: Seen):
    """Log-probability of the adversarial column."""
    return _towards_others(seen._replace(y=seen.to), lambda p, own: -1)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "segpgd": segpgd,
    "cospgd": cospgd,
    "mce": masked,
    "mce-bal": balanced,
    "js": jensen_shannon,
    "tsallis": tsallis,
    "margin": margin,
    "targeted": targeted,
    **dict.fromkeys(OBJECTNESS, targeted),
}


def by_rules(rules: Rules, background: int | None, probabilities: Callable[[Tensor], Tensor] | None) -> Objective:
    """The objective of the paper: every active target is pushed from its true label to its adversarial one."""

    def objective(f: Tensor, problem, passes: int):
        prediction = f.max(1).indices  # half the time of argmax
        pushed, left = _active(rules, f, prediction, problem, background, probabilities, passes == 0)
        suppressed = problem.labels if rules.suppress == "label" else prediction

        def weights(zeros: Tensor, goes: Tensor) -> Tensor:
            """e_l' - e_l of every pushed target: r_m of the paper is the sum of grad f_l' - grad f_l."""
            share = (pushed & goes).to(zeros)[:, None]
            # Columns of rows that are not pushed may be -1; they get 0.
            to, away = (columns.clamp(min=0)[:, None] for columns in (problem.adversarial, suppressed))
            return zeros.scatter_(1, to, share).scatter_add_(1, away, -share)

        return left, weights, f.new_zeros(())

    return objective


def by_loss(name: str, iterations: int, shares: Tensor | None, valued: bool = False) -> Objective:
    """A loss of `LOSSES` on all targets; its value is 0 unless `valued`."""

    def objective(f: Tensor, problem, passes: int):
        target = problem.labels >= 0
        y, to = problem.labels.clamp(min=0), problem.adversarial.clamp(min=0)
        highest, prediction = f.max(1)  # half the time of argmax
        right = prediction == y
        seen = Seen(f, highest, y, to, right, target, min(passes + 1, iterations), iterations, shares)
        value = torch.where(target, LOSSES[name](seen)[1](), 0).sum() if valued else f.new_zeros(())

        def weights(zeros: Tensor, goes: Tensor) -> Tensor:
            return LOSSES[name](seen._replace(counts=target & goes))[0]

        return target & right, weights, value

    return objective


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
    """Targets that reached their adversarial label and survive suppression, but with too low a score."""
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


def _column(values: Tensor, y: Tensor) -> Tensor:
    return values.gather(1, y[:, None])[:, 0]


def _log_probability(u: Tensor, y: Tensor) -> Tensor:
    return _column(u, y) - u.logsumexp(1)


def _towards_others(
    seen: Seen, weight: Callable[[Tensor, Tensor], Tensor | float]
) -> tuple[Tensor, Callable[[], Tensor]]:
    """w (p - e_y), the gradient of w times the cross-entropy with constant w = weight(p, p_y), and its value."""
    direction = (seen.u - seen.highest[:, None]).exp_()  # softmax in half the time, since the largest scores are known
    direction.div_(direction.sum(1, keepdim=True))
    w = weight(direction, _column(direction, seen.y))
    counted = w * seen.counts.to(direction)  # one product with the large array, not two
    direction.scatter_add_(1, seen.y[:, None], -torch.ones_like(counted)[:, None])
    return direction.mul_(counted[:, None]), lambda: -w * _log_probability(seen.u, seen.y)
