"""Bring a published file here, or check the one that is here; see rule download."""

from dag.workflow.startup import start

start(snakemake.log[0])

import os

from dag.data.download import fetch_unchanged

params = snakemake.params
fetch_unchanged(params.urls, params.path, params.pins, snakemake.wildcards.file, **params.checks)
os.symlink(os.path.relpath(params.path, os.path.dirname(snakemake.output[0])), snakemake.output[0])
