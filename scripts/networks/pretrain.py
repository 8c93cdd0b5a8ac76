"""Pretrain a body; see rule pretrain."""

from dag.workflow.startup import start

start(snakemake.log[0], snakemake.threads)

import numpy as np

from dag.networks.mini import training
from dag.networks.training_common import save
from dag.workflow.seeds import generator

settings = dict(snakemake.params.settings)
with np.load(snakemake.input.objects) as objects:
    images, labels = objects["images"].transpose(0, 3, 1, 2), objects["labels"]
seed = int(generator("pretrain", snakemake.params.seed, snakemake.wildcards.body).integers(2**31))
save(training.pretrain(settings.pop("architecture"), images, labels, seed=seed, **settings), snakemake.output[0])
