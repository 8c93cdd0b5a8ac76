"""How alike the weights of two networks are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Likeness(NamedTuple):
    """Mean over `layers` of the correlation of their weights, of the `of` layers of the larger network.

    The correlation is None if no layer can be compared, all of it if nothing was.
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
        In [-1, 1], by name: of every kernel (a tensor of two dimensions or more) that both have under one name, in one
        shape.  Networks that were trained from independent starts have 0 up to chance, and whatever their layers have
        learnt at corresponding places.  Kernels that are constant have no correlation and are left out, and so are
        biases and normalisations, which are alike in networks that have nothing to do with each other.
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
    """`correlations` of two networks, summarised: every layer counts alike, however many weights it has."""
    found = list(correlations(first, second).values())
    of = max(len(kernels(first)), len(kernels(second)))
    return Likeness(float(np.mean(found)) if found else None, len(found), of)


def kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of convolutions and matrices, by name."""
    return {name: tensor for name, tensor in state.items() if tensor.ndim > 1}
