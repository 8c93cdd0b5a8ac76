"""Methods of attacks: objective, steps, budget, start and stop.

Dense Adversary Generation and later attacks are points of this space, and all run on one engine (`dag.attack.engine`).
This module has the pure functions of r and its gradient: steps and projections.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Method:
    """One attack, apart from its rules (`dag.attack.rules.Rules`), its step size and its number of iterations.

    Attributes
    ----------
    objective : str
        "dag" or one of `dag.attack.objectives.LOSSES`.
    targets : str
        Segmentation: "foreground" pixels, as Dense Adversary Generation, or "all" that are not void.
    steps : str
        With the gradient g and the step size a: "max", a g / max|g| (Dense Adversary Generation); "sign", a sign(g);
        "l2", a g / |g|_2; "momentum", a sign(m) with m = mu m + g / |g|_1 (Dong et al., CVPR 2018); "apgd" (Croce and
        Hein, ICML 2020), which chooses a itself.
    momentum : float
        mu of "momentum".
    budget : str, optional
        Norm of r that is bounded by `eps`: "linf" or "l2"; without one r is not bounded and not clipped.
    eps : float, optional
        In grey levels; for "l2" the norm over all values of r.
    start : str
        "zero", or "uniform" in the ball of radius `eps`.
    stop : str
        "converged" when no active target is left, or "iterations", never before all of them are done.
    keep : str
        The "last" iterate, or the "best": the first of those with the fewest correct targets.
    smooth : int
        Size of the Gaussian kernel that the gradient is convolved with, in pixels (Dong et al., CVPR 2019); 0: none.
    diversity : float
        Probability that the gradient is that of an image resized and padded at random, see `dag.attack.diversity`.
    scales : int
        The gradient is the sum over x / 2^k, k = 0 .. scales - 1 (Lin et al., ICLR 2020).
    """

    objective: str = "dag"
    targets: str = "foreground"
    steps: str = "max"
    momentum: float = 1.0
    budget: str | None = None
    eps: float | None = None
    start: str = "zero"
    stop: str = "converged"
    keep: str = "last"
    smooth: int = 0
    diversity: float = 0
    scales: int = 1

    @property
    def bound(self) -> float:
        """The largest float32 that does not exceed eps."""
        rounded = np.float32(self.eps)
        return float(rounded if float(rounded) <= self.eps else np.nextafter(rounded, np.float32(0)))

    @property
    def passes(self) -> int:
        """Forward passes of an iteration: those for gradients, and one to count targets if these do not."""
        return self.scales + bool(self.diversity)


def method_of(settings: dict) -> Method:
    """The method that the settings of an attack describe; defaults are those of Dense Adversary Generation."""
    return Method(**{field.name: settings[field.name] for field in fields(Method) if field.name in settings})


def within(r: Tensor, method: Method) -> Tensor:
    """r (3, H, W) projected onto the ball of the budget; unchanged without a budget.

    No stored float32 value exceeds eps.
    """
    if method.budget is None:
        return r
    if method.budget == "linf":
        return r.clamp(-method.bound, method.bound)
    norm = (r if r.device.type == "mps" else r.double()).norm()  # Apple's GPUs have no float64
    # a little below eps, since the product is rounded to float32
    return torch.where(norm > method.eps, r * (method.eps / norm * (1 - 2**-20)).to(r), r)


def project(r: Tensor, image: Tensor, method: Method) -> Tensor:
    """r (3, H, W) projected onto the budget, with the perturbed image clipped to 0..255; unchanged without a budget.

    The bounds are exact in float32 for images of whole grey levels, so the stored r never exceeds them.
    """
    return r if method.budget is None else torch.clamp(within(r, method), -image, 255 - image)


def start(image: Tensor, method: Method, rng) -> Tensor:
    """First r of an attack, uniform in the budget's ball if the method says so.

    Parameters
    ----------
    image : Tensor (3, H, W)
    rng : numpy.random.Generator
        Seeded per source and image.
    """
    if method.start == "zero":
        return torch.zeros_like(image)
    if method.budget == "linf":
        noise = rng.uniform(-method.eps, method.eps, image.shape)
    else:
        noise = rng.standard_normal(image.shape)
        noise *= method.eps * rng.uniform() ** (1 / noise.size) / max((noise**2).sum() ** 0.5, 1e-12)
    return project(torch.from_numpy(noise).to(image), image, method)


def stepped(method: Method, r: Tensor, gradient: Tensor, largest: Tensor, step: float, momentum: Tensor | None):
    """r after one step along a gradient (3, H, W) with the largest absolute value `largest`, and the new momentum.

    Not yet projected; for "apgd" see `Apgd`.
    """
    if method.steps == "max":
        return r + step * (gradient / largest), None
    if method.steps == "sign":
        return r + step * gradient.sign(), None
    if method.steps == "l2":
        return r + step * (gradient / gradient.norm()), None
    share = gradient / gradient.abs().sum()
    momentum = share if momentum is None else method.momentum * momentum + share
    return r + step * momentum.sign(), momentum


def smoothed(gradients: Tensor, size: int) -> Tensor:
    """Gradients (B, 3, H, W) convolved with a Gaussian kernel of `size` = 2k + 1 pixels and sigma = k / sqrt(3).

    Dong et al., "Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks", CVPR 2019,
    section 3.3.  Beyond the border the gradient is zero.
    """
    if not size:
        return gradients
    place = torch.arange(size, dtype=gradients.dtype, device=gradients.device) - (size - 1) / 2
    kernel = torch.exp(-(place**2) / (2 * ((size - 1) / 2) ** 2 / 3))
    kernel = (kernel / kernel.sum()).expand(gradients.shape[1], 1, -1)
    rows = torch.nn.functional.conv2d(gradients, kernel[..., None, :], padding=(0, size // 2), groups=len(kernel))
    return torch.nn.functional.conv2d(rows, kernel[..., :, None], padding=(size // 2, 0), groups=len(kernel))


@dataclass(frozen=True, eq=False)
class Apgd:
    """Auto-PGD: momentum 0.75, a step size that is halved on little progress, and restarts from the best iterate.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    ICML 2020, algorithm 1; the checkpoints are those of their code.  All decisions are computed on the
    device, so the host never waits.

    Attributes
    ----------
    previous, best, best_gradient : Tensor (3, H, W)
        r one step ago, r with the largest value of the objective so far, and the gradient there.
    best_value, judged_value : Tensor ()
        That value, now and at the last checkpoint.
    last_value : Tensor ()
        Value of the objective one step ago.
    size : Tensor ()
        The step, 2 eps at first.
    gains : Tensor ()
        Steps since the last checkpoint that raised the objective.
    halved : Tensor, bool ()
        Whether the last checkpoint halved the step.
    """

    previous: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    judged_value: Tensor
    last_value: Tensor
    size: Tensor
    gains: Tensor
    halved: Tensor

    @classmethod
    def begin(cls, r: Tensor, gradient: Tensor, value: Tensor, method: Method) -> Apgd:
        """State at the first gradient."""
        zero = value.new_zeros(())
        return cls(r, r, gradient, value, value, value, zero + 2 * method.eps, zero, zero.bool())

    def step(
        self, r: Tensor, gradient: Tensor, value: Tensor, image: Tensor, method: Method, number: int, judgements: dict
    ) -> tuple[Tensor, Apgd]:
        """The next r and state, given r after `number` steps, its gradient and the value of the objective there."""
        gains, best, best_gradient = self.gains, self.best, self.best_gradient
        best_value, judged_value, size, halved = self.best_value, self.judged_value, self.size, self.halved
        if number:
            gains = gains + (value > self.last_value)
            better = value > best_value
            best_value = torch.maximum(best_value, value)
            best, best_gradient = torch.where(better, r, best), torch.where(better, gradient, best_gradient)
        start = r
        if number in judgements:
            few, stuck = gains <= 0.75 * judgements[number], ~halved & (judged_value >= best_value)
            halved = few | stuck
            judged_value, gains = best_value, torch.zeros_like(gains)
            size = torch.where(halved, size / 2, size)
            start, gradient = torch.where(halved, best, r), torch.where(halved, best_gradient, gradient)
        direction = gradient.sign() if method.budget == "linf" else gradient / gradient.norm().clamp(min=1e-12)
        ahead = project(start + size.to(r) * direction, image, method)
        share = 0.75 if number else 1.0
        moved = project(start + share * (ahead - start) + (1 - share) * (start - self.previous), image, method)
        return moved, Apgd(start, best, best_gradient, best_value, judged_value, value, size, gains, halved)


def judgements(iterations: int) -> dict[int, int]:
    """{step of a checkpoint of Auto-PGD: steps since the checkpoint before}."""
    period, shortest, shorter = (max(int(share * iterations), 1) for share in (0.22, 0.06, 0.03))
    found, number = {}, period
    while number < iterations:
        found[number] = period
        period = max(period - shorter, shortest)
        number += period
    return found
