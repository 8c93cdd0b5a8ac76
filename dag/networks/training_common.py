"""Functions shared by the trainings of the miniature and at full size: seeds, progress, samples, saving."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dag.networks import state_files


def save(weights: dict[str, Tensor], path: str | Path) -> None:
    """Write a state dict and its digest atomically: to a temporary file that is renamed to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w+b") as file:
        state_files.write(weights, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def pick(first: Tensor, second: Tensor, most: int, total: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random rows of each image: up to `most` of those marked in `first`, then some marked in `second`.

    `first` and `second` are bool (B, N), never both true.  Returns rows, int64 (B, total), and whether each is
    marked at all, bool (B, total).
    """
    keys = torch.rand(first.shape, generator=generator)
    leading = torch.where(first, keys, -1).topk(min(most, first.shape[1])).indices
    leading = torch.zeros_like(first).scatter(1, leading, True) & first
    keys, rows = (keys + 2.0 * leading + second).topk(min(total, first.shape[1]))
    return rows, keys >= 1


def progress(total: int, title: str, every: int = 50) -> Callable[[int, float], None]:
    """Function to call after each iteration: shows a bar on a terminal, otherwise a line every `every` iterations."""
    if sys.stderr.isatty():
        bar = tqdm(total=total, desc=title)

        def show(iteration: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
            if iteration == total:
                bar.close()
    else:

        def show(iteration: int, loss: float) -> None:
            if iteration % every == 0 or iteration == total:
                print(f"{title}: iteration {iteration} of {total}, loss {loss:.3f}", file=sys.stderr, flush=True)

    return show


@contextmanager
def seeded(seed: int):
    """Seed torch's global generator in the context; its state is restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def column_map(labels: Sequence[int]) -> Tensor:
    """Score column of each VOC id, int64 (256,); -1 where the network has none."""
    columns = torch.full((256,), -1)
    columns[list(labels)] = torch.arange(len(labels))
    return columns


def check_labels(ids: Tensor, columns: Tensor, title: str) -> None:
    unknown = ids[columns < 0].unique().tolist()
    if unknown:
        raise ValueError(f"{title}: class ids {unknown} occur in the training set, but the network has no such labels")
