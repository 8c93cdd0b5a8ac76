"""What every job of the workflow does first: write to its log, and fail with a sentence."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from dag import voc
from dag.store import file_digest


def start(log: str, threads: int = 1) -> None:
    """Send everything the job prints to its log, and limit its threads.

    Call it before importing torch: import errors belong into the log, and the number of OpenMP
    threads is read once.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout.reconfigure(line_buffering=True)
    sys.excepthook = _sentence


def _sentence(kind: type[BaseException], error: BaseException, trace) -> None:
    """Print what this project raises for its users, ValueError or OSError with a text of ours, as that text alone."""
    innermost = trace
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    ours = Path(innermost.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)
    # an OSError that comes from the system has a number
    if ours and (isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno is None)):
        print(f"Error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def progress(items: Iterable, what: str, total: int | None = None, seconds: float = 30) -> Iterator:
    """Yield the items; show a bar on a terminal, a line every `seconds` in a log.  `total`: if they have no length."""
    total = len(items) if total is None else total
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, total=total)
        return
    begin = last = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= seconds or number == total:
            last = now
            print(f"{what}: {number} of {total}, {now - begin:.0f} s", file=sys.stderr)


def identity(network: dict, image_set: dict, shard: str, code: str) -> tuple[list, dict]:
    """Images of a shard, and what determines a network's output on them: the start of a shard's header.

    Parameters
    ----------
    network : dict
        name, task, architecture, arguments, code, and files by role.
    image_set : dict
        name, parts, size, sha256, shard_size.
    """
    images = voc.read_image_set(image_set["parts"], image_set["size"], image_set["sha256"], name=image_set["name"])
    images = voc.shard_of(images, shard, image_set["shard_size"])
    header = {
        "network": {name: value for name, value in network.items() if name != "files"},
        "weights": {role: file_digest(path) for role, path in network["files"].items()},
        "image_set": image_set,
        "ids": voc.digest(image_id for _, image_id in images),
        "shard": shard,
        "code": code,
    }
    return images, header


def device() -> str:
    """ "cuda" where there is a GPU, "cpu" elsewhere."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
