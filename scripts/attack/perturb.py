"""Perturb one shard with one source; see rule perturb."""

from pathlib import Path

from dag.workflow.startup import device, identity, progress, start

start(snakemake.log[0], snakemake.threads)

from dag.attack import perturb
from dag.networks.building import build

params, source = snakemake.params, snakemake.wildcards.source
network = params.network
images, header = identity(network, params.image_set, snakemake.wildcards.shard, params.code)
perturb.perturb(
    build(network["architecture"], network["arguments"], network["files"], task=network["task"]),
    images,
    Path(snakemake.output[0]),
    settings=params.settings,
    seed=params.seed,
    name=network["name"],
    header=header | {"source": source, "settings": params.settings, "seed": params.seed},
    device=device(),
    progress=lambda items, total: progress(items, source, total),
)
