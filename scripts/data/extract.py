"""Take a published file out of its archive; see rule extract."""

from dag.workflow.startup import start

start(snakemake.log[0])

from dag.data.download import extract_unchanged

archive, file, path, params = snakemake.input.archive, snakemake.wildcards.file, snakemake.output[0], snakemake.params
extract_unchanged(archive, params.member, path, params.pins, file, **params.checks)
