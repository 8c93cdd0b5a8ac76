"""Example panels; see rule plot_examples."""

from pathlib import Path

from dag.data import image_sets
from dag.data.classes import ClassList
from dag.data.readers import reader_of
from dag.report.figures import examples, style
from dag.workflow.startup import start

start(snakemake.log[0])

from dag.evaluate.cells import recomputed
from dag.evaluate.score import clean_scores
from dag.report.collect import best, choice, example_blocks
from dag.workflow import plan

params, settings = snakemake.params, snakemake.params.image_set
reader = reader_of(settings)
images = image_sets.without_shards(reader.images(), params.given_up, settings["shard_size"])
manifests, shards = (
    [Path(path) for path in files] for files in (snakemake.input.manifests, snakemake.input.perturbations)
)
with recomputed(*manifests):
    if params.entry.get("choose") == "clean":
        chosen = best(images, clean_scores(manifests, images, params.victims, reader=reader), params.entry["images"])
    else:
        chosen = image_sets.chosen(images, params.entry["images"])
    blocks = example_blocks(
        chosen,
        params.entry["panels"],
        {row: [path for path in shards if path.parent.name == row] for row in plan.rows(params.entry)},
        manifests,
        params.networks,
        params.symbols,
        reader,
    )
note, classes = choice(params.entry, len(images), reader), ClassList.of(params.classes)
title = "ground truth" if reader.annotated else "clean prediction"
if params.entry["arrangement"] == "rows":
    rows = [block["victims"][0] | block for block in blocks]
    figure = examples.examples(rows, truth_title=title, note=note, classes=classes)
elif params.entry["arrangement"] == "columns":
    figure = examples.transfer_examples(blocks, note=note, classes=classes)
else:
    figure = examples.paired_examples(blocks, note=note, classes=classes)
style.save(figure, snakemake.output.svg)
style.save(figure, snakemake.output.png)
