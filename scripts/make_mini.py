"""Make one folder of the miniature; see rule make_mini_train."""

from dag.job import start

start(snakemake.log[0])

from dag import mini

mini.make_voc(snakemake.params.root, snakemake.params.settings["lists"], snakemake.params.settings["seed"])
