"""Make the single objects that bodies are pretrained on; see rule make_mini_objects."""

from dag.workflow.startup import start

start(snakemake.log[0])

from dag.data import mini

mini.write_objects(snakemake.output[0], **snakemake.params.settings)
