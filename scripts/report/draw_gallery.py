"""Pictures and data of one shard of a gallery; see rule draw_gallery."""

from pathlib import Path

from dag.data import image_sets
from dag.data.classes import ClassList
from dag.data.readers import reader_of
from dag.workflow.startup import progress, start

start(snakemake.log[0])

from dag.evaluate.cells import recomputed
from dag.report import gallery
from dag.workflow.files import write_json, write_text

params, shard, settings = snakemake.params, snakemake.wildcards.shard, snakemake.params.image_set
reader = reader_of(settings)
with recomputed(snakemake.input.manifest):
    records, details = gallery.draw_shard(
        Path(snakemake.output.pictures),
        image_sets.shard_of(reader.images(), shard, settings["shard_size"]),
        params.shown,
        dict(zip(params.shown, map(Path, snakemake.input.perturbations), strict=True)),
        Path(snakemake.input.manifest),
        {victim: entry["task"] for victim, entry in params.victims.items()},
        reader=reader,
        classes=ClassList.of(params.classes),
        progress=lambda items: progress(items, shard),
    )
write_text(snakemake.output.details, gallery.script("gallery.details", {"shard": shard} | details))
write_json(snakemake.output.records, records)
