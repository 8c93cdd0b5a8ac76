"""Read all images of an image set, or all their ground truth of one kind; see rule check_images."""

from dag.data import image_sets
from dag.workflow.startup import progress, start

start(snakemake.log[0])

from dag.data import voc
from dag.workflow.store import write_text

settings, kind = snakemake.params.image_set, snakemake.wildcards.kind
images = image_sets.read_image_set(settings["parts"], settings["size"], settings["sha256"], name=settings["name"])
images = image_sets.without_shards(images, snakemake.params.given_up, settings["shard_size"])
for root, image_id in progress(images, kind):
    voc.READERS[kind](root, image_id)
write_text(snakemake.output[0], f"{len(images)} images can be read\n")
