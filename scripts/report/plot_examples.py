"""Example panels; see rule plot_examples."""

from pathlib import Path

from dag.data import image_sets
from dag.report.figures import examples, style
from dag.workflow.startup import start

start(snakemake.log[0])

from dag.evaluate.cells import recomputed
from dag.evaluate.score import clean_scores
from dag.report.collect import best, choice, example_blocks
from dag.workflow import plan


def paths(files, part):
    return [Path(file) for file in files if part in file]


params, settings = snakemake.params, snakemake.params.image_set
images = image_sets.read_image_set(settings["parts"], settings["size"], settings["sha256"], name=settings["name"])
images = image_sets.without_shards(images, params.given_up, settings["shard_size"])
manifests = [Path(path) for path in snakemake.input.manifests]
with recomputed(*manifests):
    if params.entry.get("choose") == "clean":
        victims = {victim: params.networks[victim] for victim in plan.victims(params.entry)}
        chosen = best(images, clean_scores(manifests, images, victims), params.entry["images"])
    else:
        chosen = image_sets.chosen(images, params.entry["images"])
    blocks = example_blocks(
        chosen,
        params.entry["panels"],
        {row: paths(snakemake.input.perturbations, f"/{row}/") for row in plan.rows(params.entry)},
        manifests,
        params.networks,
        params.symbols,
    )
note = choice(params.entry, len(images))
if params.entry["arrangement"] == "rows":
    figure = examples.examples([block["victims"][0] | block for block in blocks], note=note)
elif params.entry["arrangement"] == "columns":
    figure = examples.transfer_examples(blocks, note=note)
else:
    figure = examples.paired_examples(blocks, note=note)
style.save(figure, snakemake.output.svg)
style.save(figure, snakemake.output.png)
