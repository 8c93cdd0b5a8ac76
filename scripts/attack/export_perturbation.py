"""Write the perturbations and perturbed images of an image set as files; see rule export_perturbation."""

from pathlib import Path

from dag.workflow.startup import start

start(snakemake.log[0])

from dag.attack.export import export
from dag.data.readers import reader_of

shards = [Path(shard) for shard in snakemake.input.shards]
export(shards, reader_of(snakemake.params.image_set), Path(snakemake.output[0]))
