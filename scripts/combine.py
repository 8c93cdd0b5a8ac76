"""Add up the perturbations of several sources; see rule combine."""

from pathlib import Path

from dag.job import start

start(snakemake.log[0])

from dag.derive import combine

combine([Path(shard) for shard in snakemake.input], Path(snakemake.output[0]), snakemake.params.code)
