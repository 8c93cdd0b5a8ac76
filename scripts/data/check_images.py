"""Read all images of an image set, or all their ground truth of one kind; see rule check_images."""

from dag.data import image_sets
from dag.workflow.startup import progress, start

start(snakemake.log[0])

from dag.data.readers import reader_of
from dag.workflow.files import write_text

settings, kind = snakemake.params.image_set, snakemake.wildcards.kind
reader = reader_of(settings)
images = reader.images()
given_up, size, read = snakemake.params.given_up, settings["shard_size"], 0
for number, image in enumerate(progress(images, kind)):
    shard = f"{number // size:04d}"
    if shard not in given_up:
        try:
            reader.image(image) if kind == "image" else reader.truth(kind, image)
        except image_sets.ImageError as error:
            error.add_note(f"{settings['name']}/{shard}")
            raise
        read += 1
write_text(snakemake.output[0], f"{read} images can be read\n")
