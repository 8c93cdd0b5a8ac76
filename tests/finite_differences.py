"""Gradients against central differences in float64, with a tolerance that follows from the step and the magnitudes.

D(h) = (f(x + h d) - f(x - h d)) / 2h differs from the derivative by truncation and by rounding.  Truncation, of order
h^2 where f is smooth, and what rectifiers add that switch within the step, is estimated by |D(2h) - D(h)|, times 3
since for a rectifier it can be too small.  A sum of terms t is rounded to n eps sum|t|; two of them over 2h make
n eps sum|t| / h.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Roundings that a term carries: those of its layers have random signs and grow with the root of their number.
ROUNDINGS = 30
EPSILON = torch.finfo(torch.float64).eps
# A tolerance above this share of the derivative could not tell a wrong gradient from a right one.
SHARPEST = 5e-3


def assert_derivative(terms: Callable[[Tensor], Tensor], x: Tensor, step: float, seed: int = 1) -> None:
    """The derivative of the sum of `terms` in a random direction is that of torch.

    Parameters
    ----------
    terms : callable
        From float64 inputs of the shape of `x` to a tensor of any shape, whose sum is differentiated.
    x : Tensor, float64
    step : float
        h, in units of `x`, small enough that few kinks lie within 2h.
    """
    assert x.dtype == torch.float64
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(terms(inputs).sum(), inputs)
    found, tolerance = difference(terms, x, direction, step)
    compare(torch.stack([(gradient * direction).sum()]), torch.stack([found]), torch.stack([tolerance]))


def assert_gradient(terms: Callable[[Tensor], Tensor], x: Tensor, step: float, gradient: Tensor | None = None) -> None:
    """Every value of the gradient of the sum of `terms` is that of torch, or the one given."""
    assert x.dtype == torch.float64
    if gradient is None:
        inputs = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(terms(inputs).sum(), inputs)
    units = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape)
    found, tolerances = zip(*(difference(terms, x, unit, step) for unit in units), strict=True)
    compare(gradient.flatten(), torch.stack(found), torch.stack(tolerances))


def difference(terms: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """D(h), and how far it may be from the derivative."""
    with torch.no_grad():
        size = terms(x).abs().sum()
        narrow, wide = (
            ((terms(x + h * direction) - terms(x - h * direction)).sum() / (2 * h)) for h in (step, 2 * step)
        )
    return narrow, 3 * (wide - narrow).abs() + ROUNDINGS * EPSILON * size / step


def compare(gradient: Tensor, found: Tensor, tolerance: Tensor) -> None:
    largest = found.abs().max()
    assert largest > 0, "nothing depends on the input here"
    assert tolerance.max() <= SHARPEST * largest, (
        f"the differences are right to {tolerance.max():.1e} of {largest:.1e} only: choose another step"
    )
    wrong = (gradient - found).abs() - tolerance
    assert wrong.max() <= 0, f"gradient {gradient[wrong.argmax()]:.9g}, central difference {found[wrong.argmax()]:.9g}"
