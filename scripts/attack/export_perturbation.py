"""Write the perturbations and perturbed images of an image set as files; see rule export_perturbation."""

from pathlib import Path

from dag.data import image_sets
from dag.workflow.startup import start

start(snakemake.log[0])

from dag.attack.export import export

settings = snakemake.params.image_set
images = image_sets.read_image_set(settings["parts"], settings["size"], settings["sha256"], name=settings["name"])
export(
    [Path(shard) for shard in snakemake.input.shards],
    {image_id: root for root, image_id in images},
    Path(snakemake.output[0]),
)
