"""Derive the list of an image set from other lists; see rules list_images_*."""

from dag.workflow.startup import start

start(snakemake.log[0])

from pathlib import Path

from dag.data import voc
from dag.workflow.store import write_text

path, expected = Path(snakemake.output[0]), snakemake.params.expected
lists = {role: [i for file in files for i in voc.read_ids(file)] for role, files in snakemake.input.items()}
ids = voc.select(**lists, name=path.stem)
voc.check_ids(ids, **expected, name=path.stem, where="what follows from " + ", ".join(snakemake.input))
write_text(path, "".join(f"{image_id}\n" for image_id in ids))
