"""Example panels; see rule plot_examples."""

from pathlib import Path

from dag.job import start

start(snakemake.log[0])

from dag import config as plan
from dag import figures, voc
from dag.results import example_blocks


def paths(files, part):
    return [Path(file) for file in files if part in file]


params, settings = snakemake.params, snakemake.params.image_set
images = voc.read_image_set(settings["parts"], settings["size"], settings["sha256"], name=settings["name"])
images = voc.without_shards(images, params.given_up, settings["shard_size"])
blocks = example_blocks(
    voc.chosen(images, params.entry["images"]),
    params.entry["panels"],
    {row: paths(snakemake.input.perturbations, f"/{row}/") for row in plan.rows(params.entry)},
    [Path(path) for path in snakemake.input.manifests],
    params.networks,
    params.symbols,
)
if all(len(block["victims"]) == 1 for block in blocks):
    figure = figures.examples([block | block["victims"][0] | {"label": block["label"]} for block in blocks])
else:
    figure = figures.transfer_examples(blocks)
figures.save(figure, snakemake.output.svg)
figures.save(figure, snakemake.output.png)
