"""Write the image lists of the pocket experiment; see rule sample_voc."""

from dag.data import image_sets
from dag.workflow.startup import start

start(snakemake.log[0])

from dag.workflow.files import write_text

files = snakemake.output
both, only_2007 = image_sets.sample(image_sets.read_ids(snakemake.input.val), image_sets.read_ids(snakemake.input.test))
for path, ids in [(files.segmentation, both), (files.detection, both), (files.detection_2007, only_2007)]:
    write_text(path, "".join(f"{image_id}\n" for image_id in ids))
