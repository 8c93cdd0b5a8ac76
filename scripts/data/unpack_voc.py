"""Unpack one year of VOC; see rules unpack_voc_*."""

from dag.workflow.startup import start

start(snakemake.log[0])

import shutil
from pathlib import Path

from dag.data.archives import unpack

root = Path(snakemake.output[0]).parents[2]
shutil.rmtree(root, ignore_errors=True)  # the folders that Snakemake made, or an older attempt
unpack(snakemake.input, root, snakemake.params.members, strip=snakemake.params.strip)
