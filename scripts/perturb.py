"""Perturb one shard with one source; see rule perturb."""

from pathlib import Path

from dag.job import device, identity, progress, start, weight_files

start(snakemake.log[0], snakemake.threads)

from dag import generate
from dag.networks.interface import build

params, source = snakemake.params, snakemake.wildcards.source
files = weight_files(snakemake.input)
images, header = identity(params, files, snakemake.wildcards.shard)
generate.perturb(
    build(params.network["architecture"], params.network["arguments"], files),
    images,
    Path(snakemake.output[0]),
    settings=params.settings,
    seed=params.seed,
    name=params.network["name"],
    header=header | {"source": source, "settings": params.settings, "seed": params.seed},
    device=device(),
    progress=lambda items: progress(items, source),
)
