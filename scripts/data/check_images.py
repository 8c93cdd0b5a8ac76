"""Read all images of an image set, or all their ground truth of one kind; see rule check_images."""

from dag.data import image_sets
from dag.workflow.startup import progress, start

start(snakemake.log[0])

from dag.data import voc
from dag.workflow.files import write_text

settings, kind = snakemake.params.image_set, snakemake.wildcards.kind
images = image_sets.read_image_set(settings["parts"], settings["size"], settings["sha256"], name=settings["name"])
given_up, size, read = snakemake.params.given_up, settings["shard_size"], 0
for number, (root, image_id) in enumerate(progress(images, kind)):
    shard = f"{number // size:04d}"
    if shard not in given_up:
        try:
            voc.READERS[kind](root, image_id)
        except image_sets.ImageError as error:
            error.add_note(f"{settings['name']}/{shard}")
            raise
        read += 1
write_text(snakemake.output[0], f"{read} images can be read\n")
