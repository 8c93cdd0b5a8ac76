"""Add up the perturbations of several sources; see rule combine."""

from pathlib import Path

from dag.workflow.startup import start

start(snakemake.log[0])

from dag.attack.combinations import combine

combine([Path(shard) for shard in snakemake.input], Path(snakemake.output[0]), snakemake.params.code)
