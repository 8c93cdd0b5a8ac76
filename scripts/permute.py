"""Permute the perturbations of a shard, several draws; see rule permute."""

from pathlib import Path

from dag.job import start

start(snakemake.log[0])

from dag.derive import permuted

for draw, path in enumerate(snakemake.output, 1):
    permuted(
        Path(snakemake.input[0]),
        Path(path),
        name=snakemake.wildcards.perturbation,
        draw=draw,
        seed=snakemake.params.seed,
        code=snakemake.params.code,
    )
