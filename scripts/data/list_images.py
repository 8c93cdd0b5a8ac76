"""Derive the list of an image set from other lists; see rule list_images."""

from dag.data import image_sets
from dag.workflow.startup import start

start(snakemake.log[0])

from pathlib import Path

from dag.workflow.files import write_text

path, expected = Path(snakemake.output[0]), snakemake.params.expected
lists = {role: [i for file in files for i in image_sets.read_ids(file)] for role, files in snakemake.input.items()}
ids = image_sets.select(**lists, name=path.stem)
if snakemake.params.spaced:
    ids = image_sets.chosen(ids, expected["size"])
image_sets.check_ids(ids, **expected, name=path.stem, where="what follows from " + ", ".join(snakemake.input))
write_text(path, "".join(f"{image_id}\n" for image_id in ids))
