"""Scores of single pixels without the score map of the whole image.

An attack needs the scores of its targets only.  Upsampling is linear, so they are a sparse matrix times the
low-resolution scores, and so is the gradient, transposed.  For bilinear interpolation a pixel has four entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dag.networks.interface import Segmenter

# Largest difference from the network's own upsampling, relative to the largest score, in units of rounding.
TOLERANCE = 100


def interpolation(network: Segmenter, scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """Matrices (H, h) and (W, w) with `upsample(s)` = rows @ s @ columns.T, found by asking the network.

    Parameters
    ----------
    network : Segmenter
    scores : Tensor (1, C, h, w)
        What `body` yields for an image; shape, type and device count.
    size : (H, W)

    Returns
    -------
    tuple of Tensor, or None
        None if the upsampling mixes columns of the scores or is not a product of the two directions; that
        is tried on random scores.
    """
    height, width = scores.shape[-2:]
    middle = (height // 2, width // 2)
    matrices = []
    with torch.no_grad():
        for axis, length in enumerate((height, width)):
            parts = []
            # an impulse in every channel, C at a time
            for places in torch.arange(length, device=scores.device).split(scores.shape[1]):
                impulses = torch.zeros_like(scores)
                channels = torch.arange(len(places), device=scores.device)
                if axis == 0:
                    impulses[0, channels, places, middle[1]] = 1
                else:
                    impulses[0, channels, middle[0], places] = 1
                parts.append(network.upsample(impulses, size)[0, : len(places)])
            responses = torch.cat(parts)  # (length, H, W)
            # the line through the strongest response to the impulse in the middle
            peak = responses[middle[axis]].flatten().abs().argmax()
            along = (slice(None), slice(None), peak % size[1]) if axis == 0 else (slice(None), peak // size[1])
            matrices.append(responses[along].T)
            strongest = responses[middle[axis]].flatten()[peak]
        if strongest == 0:
            return None
        rows, columns = matrices[0], matrices[1] / strongest
        trial = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0)).to(scores)
        wrong = (rows @ trial @ columns.T - network.upsample(trial, size)).abs().max()
    return (rows, columns) if wrong <= TOLERANCE * torch.finfo(scores.dtype).eps else None


def at_pixels(rows: Tensor, columns: Tensor, pixels: Tensor) -> Tensor:
    """Sparse matrix (N, h * w) that yields the scores of N pixels from low-resolution scores (h * w, C).

    Parameters
    ----------
    rows, columns : Tensor (H, h) and (W, w)
        Of `interpolation`.
    pixels : Tensor, int64 (N,)
        y * W + x.
    """
    across = len(columns)
    (down_at, down), (across_at, over) = _entries(rows), _entries(columns)
    y, x = pixels // across, pixels % across
    places = down_at[y][:, :, None] * columns.shape[1] + across_at[x][:, None, :]
    values = down[y][:, :, None] * over[x][:, None, :]
    numbers = torch.arange(len(pixels), device=pixels.device)[:, None].expand(-1, places[0].numel())
    indices = torch.stack([numbers.flatten(), places.flatten()])
    shape = (len(pixels), rows.shape[1] * columns.shape[1])
    return torch.sparse_coo_tensor(indices, values.flatten(), shape, check_invariants=False).coalesce()


def _entries(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Places and values of what is not zero in every row, both (H, k); rows with less than k are filled with zeros."""
    most = int((matrix != 0).sum(1).max())
    places = matrix.abs().topk(most, 1).indices
    return places, matrix.gather(1, places)
