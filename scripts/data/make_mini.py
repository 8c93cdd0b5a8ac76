"""Make one folder of the miniature; see rules make_mini_train and make_mini_test."""

import shutil
from pathlib import Path

from dag.workflow.startup import start

start(snakemake.log[0])

from dag.data import mini

root, settings = Path(snakemake.output[0]).parents[2], snakemake.params.settings
shutil.rmtree(root, ignore_errors=True)  # the folders that Snakemake made, or an older miniature
mini.make_voc(root, settings["lists"], settings["seed"])
