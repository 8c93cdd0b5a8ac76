"""Pretrain a body; see rule pretrain."""

from dag.job import start

start(snakemake.log[0], snakemake.threads)

import numpy as np

from dag import train
from dag.perturbation import generator

settings = dict(snakemake.params.settings)
with np.load(snakemake.input.objects) as objects:
    images, labels = objects["images"].transpose(0, 3, 1, 2), objects["labels"]
seed = int(generator("pretrain", snakemake.params.seed, snakemake.wildcards.body).integers(2**31))
train.save(train.pretrain(settings.pop("architecture"), images, labels, seed=seed, **settings), snakemake.output[0])
