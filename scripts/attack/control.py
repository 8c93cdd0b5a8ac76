"""Draws of a control of the perturbations of a shard; see rule control."""

from pathlib import Path

from dag.workflow.startup import start

start(snakemake.log[0])

from dag.attack.combinations import control

for draw, path in enumerate(snakemake.output, 1):
    control(
        Path(snakemake.input[0]),
        Path(path),
        kind=snakemake.wildcards.control,
        name=snakemake.wildcards.perturbation,
        draw=draw,
        seed=snakemake.params.seed,
        code=snakemake.params.code,
    )
