"""Make one folder of the miniature; see rules make_mini_train and make_mini_test."""

import shutil

from dag.job import start

start(snakemake.log[0])

from dag import mini

params = snakemake.params
shutil.rmtree(params.root, ignore_errors=True)  # the folders that Snakemake made, or an older miniature
mini.make_voc(params.root, params.settings["lists"], params.settings["seed"])
