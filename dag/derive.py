"""Perturbations made from stored perturbations: sums and permuted controls of one shard."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from dag import store
from dag.perturbation import add, generator, perceptibility, permute


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


def permuted(shard: Path, path: Path, *, name: str, draw: int, seed: int, code: str) -> None:
    """Store one permuted draw of the perturbations of a shard.

    The permutations are drawn from (seed, name of the perturbation, image id, draw) alone.
    """
    header = store.read_header(shard, "perturbations")
    identity = {"permuted": header["key"], "name": name, "draw": draw, "seed": seed, "code": code}

    def shuffle(image_id, arrays):
        return permute(arrays[0], generator("permutation", seed, name, image_id, draw))

    _derive([shard], path, header["ids"], identity, shuffle)


def _derive(shards, path, ids, header, function) -> None:
    with ExitStack() as stack:
        files = [stack.enter_context(store.reading(shard, "perturbations")) for shard in shards]
        derived = stack.enter_context(store.writing(path, "perturbations", ids, header, every=1))
        for image_id in ids:
            if image_id in derived.done:
                continue
            r = function(image_id, [store.get(file, image_id)[0] for file in files])
            attributes = {"perceptibility": perceptibility(r), "largest": float(abs(r).max())}
            derived.put(image_id, r, attributes)
