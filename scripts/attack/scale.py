"""Scale the perturbations of a shard to one perceptibility; see rule scale."""

from pathlib import Path

from dag.workflow.startup import start

start(snakemake.log[0])

from dag.attack.combinations import scaled

scaled(
    Path(snakemake.input[0]),
    Path(snakemake.output[0]),
    p=int(snakemake.wildcards.milli) / 1000,
    code=snakemake.params.code,
)
