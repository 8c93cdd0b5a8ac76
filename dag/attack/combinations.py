"""Perturbations made from stored perturbations: sums, multiples and controls of one shard."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from dag.attack import arithmetic
from dag.attack.arithmetic import add, largest, perceptibility
from dag.workflow import store
from dag.workflow.seeds import generator


def combine(shards: list[Path], path: Path, code: str) -> None:
    """Store the element-wise sum of the perturbations of several sources.

    Raises
    ------
    ValueError
        If the shards do not hold the same images.
    """
    headers = [store.read_header(shard, "perturbations") for shard in shards]
    ids = headers[0]["ids"]
    for shard, header in zip(shards, headers, strict=True):
        if header["ids"] != ids:
            raise ValueError(f"{shard}: holds other images than {shards[0]}; delete the older one and run again")
    header = {"sum": [header["key"] for header in headers], "code": code}
    _derive(shards, path, ids, header, lambda image_id, arrays: add(arrays))


def scaled(shard: Path, path: Path, *, p: float, code: str) -> None:
    """Store the perturbations of a shard, each multiplied so that its perceptibility is `p`."""
    header = store.read_header(shard, "perturbations")
    identity = {"scaled": header["key"], "p": p, "code": code}
    _derive([shard], path, header["ids"], identity, lambda image_id, arrays: arithmetic.scale(arrays[0], p))


def control(shard: Path, path: Path, *, kind: str, name: str, draw: int, seed: int, code: str) -> None:
    """Store one draw of a control of the perturbations of a shard.

    The seed of a draw depends on (kind, seed, name of the perturbation, image id, draw) alone.
    """
    purpose = "permutation" if kind == "permuted" else kind  # the seed of published numbers contains this word
    header = store.read_header(shard, "perturbations")
    identity = {kind: header["key"], "name": name, "draw": draw, "seed": seed, "code": code}

    def drawn(image_id, arrays):
        return arithmetic.control(arrays[0], kind, generator(purpose, seed, name, image_id, draw))

    _derive([shard], path, header["ids"], identity, drawn)


def _derive(shards, path, ids, header, function) -> None:
    with ExitStack() as stack:
        files = [stack.enter_context(store.reading(shard, "perturbations")) for shard in shards]
        derived = stack.enter_context(store.writing(path, "perturbations", ids, header, every=1, compress=False))
        for image_id in ids:
            if image_id in derived.done:
                continue
            arrays, known = zip(*(store.get(file, image_id, ("passes",)) for file in files), strict=True)
            r = function(image_id, list(arrays))
            attributes = {"perceptibility": perceptibility(r), "largest": largest(r)}
            if all("passes" in one for one in known):
                attributes["passes"] = sum(one["passes"] for one in known)
            derived.put(image_id, r, attributes)
