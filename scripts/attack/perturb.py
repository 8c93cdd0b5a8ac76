"""Perturb one shard with one source; see rule perturb."""

from pathlib import Path

from dag.workflow.startup import device, identity, progress, start

start(snakemake.log[0], snakemake.threads)

from dag.attack import perturb
from dag.data import image_sets, pictures, readers
from dag.data.classes import match
from dag.networks.building import build_told
from dag.workflow import contents, plan

params, source = snakemake.params, snakemake.wildcards.source
network, settings = params.network, params.settings
kinds = ("image", network["task"])
images, header = identity(network, params.image_set, snakemake.wildcards.shard, params.code, kinds)
built = build_told(network)
reader = readers.reader_of(params.image_set)
matched = match(built.classes, reader.classes)
readers.check(reader, images, network["task"], built.labels, matched)  # before the first image is attacked
others = [build_told(other) for other in params.others]
if others:
    known = [identity(other, params.image_set, snakemake.wildcards.shard, params.code)[1] for other in params.others]
    header["ensemble"] = [{key: one[key] for key in ("network", "weights")} for one in known]
for folder in plan.imported(settings):
    pictures.check_perturbations(folder, [image_id for _, image_id in images])
    files = [(folder, image_id) for _, image_id in images]
    header["contents"] |= {folder: contents.digests(files, "perturbation")["perturbation"]}
pixels = None
if plan.counts_pixels(settings):
    known = image_sets.without_shards(reader.images(), params.given_up, params.image_set["shard_size"])
    pixels = readers.count_pixels(reader, known, matched)
    header["pixels"] = pixels
perturb.perturb(
    built,
    images,
    Path(snakemake.output[0]),
    reader=reader,
    match=matched,
    settings=settings,
    seed=params.seed,
    name=network["name"],
    header=header | {"source": source, "settings": settings, "seed": params.seed},
    device=device(),
    others=others,
    pixels=pixels,
    progress=lambda items, total: progress(items, source, total),
)
