"""Shaped examples of one network; see rule shape."""

from pathlib import Path

from dag.data import image_sets
from dag.data.readers import reader_of
from dag.workflow.startup import device, progress, start

start(snakemake.log[0], snakemake.threads)

from dag.attack import shapes
from dag.networks.building import build_told
from dag.workflow import contents, files

params = snakemake.params
network, settings, entry = params.network, params.image_set, params.entry
reader = reader_of(settings)
images = image_sets.chosen(
    image_sets.without_shards(reader.images(), params.given_up, settings["shard_size"]), entry["images"]
)
starts = {image_id: reader.image((root, image_id)) for root, image_id in images}
if "noise" in entry:
    starts["noise"] = shapes.noise(*entry["noise"], params.seed)
shapes.shape(
    build_told(network),
    starts,
    entry["shapes"],
    Path(snakemake.output[0]),
    settings=entry["attack"] | {key: entry[key] for key in ("size", "ground") if key in entry},
    header={
        "network": {name: value for name, value in network.items() if name != "files"},
        "weights": {role: files.file_digest(path) for role, path in network["files"].items()},
        "image_set": settings,
        "images": [image_id for _, image_id in images],
        "contents": contents.digests(images, "image", reader=reader),
        "settings": entry,
        "seed": params.seed,
        "code": params.code,
    },
    device=device(),
    progress=lambda examples: progress(examples, snakemake.wildcards.product),
)
