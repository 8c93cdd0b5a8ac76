"""Similarity of the weights of two networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Likeness(NamedTuple):
    """Mean correlation of the weights over `layers` of the `of` layers of the larger network.

    The correlation is None if no layers can be compared; all fields are None if the networks were not compared.
    """

    correlation: float | None
    layers: int | None
    of: int | None


def correlations(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Pearson's correlation of the weights of two networks, layer by layer.

    Parameters
    ----------
    first, second : mapping of str to Tensor
        State dicts, before batch normalisations are folded.

    Returns
    -------
    dict of str to float
        Correlation in [-1, 1] of every kernel (a tensor of two dimensions or more) with the same name and shape in both
        networks.  For networks trained from independent initialisations it deviates from 0 only by chance and by what
        corresponding layers have learnt in common.  Constant kernels, whose correlation is undefined, are left out, and
        so are biases and normalisation parameters, which are similar even in unrelated networks.
    """
    found = {}
    for name, kernel in kernels(first).items():
        other = second.get(name)
        if other is None or other.shape != kernel.shape:
            continue
        a, b = (tensor.detach().double().numpy().ravel() for tensor in (kernel, other))
        a, b = a - a.mean(), b - b.mean()
        size = np.sqrt((a @ a) * (b @ b))
        if size > 0:
            found[name] = float(np.clip(a @ b / size, -1, 1))
    return found


def likeness(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Likeness:
    """Mean of `correlations`: every layer has the same weight, whatever its number of parameters."""
    found = list(correlations(first, second).values())
    of = max(len(kernels(first)), len(kernels(second)))
    return Likeness(float(np.mean(found)) if found else None, len(found), of)


def kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of convolutions and matrices, by name."""
    return {name: tensor for name, tensor in state.items() if tensor.ndim > 1}
