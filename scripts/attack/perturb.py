"""Perturb one shard with one source; see rule perturb."""

from pathlib import Path

from dag.workflow.startup import device, identity, progress, start

start(snakemake.log[0], snakemake.threads)

from dag.attack import perturb
from dag.data import image_sets, voc
from dag.networks.building import build_told
from dag.workflow import contents, plan

params, source = snakemake.params, snakemake.wildcards.source
network, settings = params.network, params.settings
kinds = ("image", network["task"])
images, header = identity(network, params.image_set, snakemake.wildcards.shard, params.code, kinds)
built = build_told(network)
voc.check(images, network["task"], built.labels)  # before the first image is attacked
for folder in plan.imported(settings):
    files = [(folder, image_id) for _, image_id in images]
    header["contents"] |= {folder: contents.digests(files, "perturbation")["perturbation"]}
pixels = None
if plan.counts_pixels(settings):
    everything = params.image_set["parts"], params.image_set["size"], params.image_set["sha256"]
    pixels = voc.count_pixels(image_sets.read_image_set(*everything, name=params.image_set["name"]))
    header["pixels"] = pixels
perturb.perturb(
    built,
    images,
    Path(snakemake.output[0]),
    settings=settings,
    seed=params.seed,
    name=network["name"],
    header=header | {"source": source, "settings": settings, "seed": params.seed},
    device=device(),
    pixels=pixels,
    progress=lambda items, total: progress(items, source, total),
)
