"""Train a network from its pretrained body; see rule train."""

from dag.data import image_sets
from dag.workflow.startup import start

start(snakemake.log[0], snakemake.threads)

from pathlib import Path

from dag.data import voc
from dag.networks import state_files
from dag.networks.mini import training
from dag.networks.training_common import save
from dag.workflow.seeds import generator

network, settings = snakemake.params.network, snakemake.params.settings
root = Path(snakemake.input.images).parents[2]
seed = int(generator("train", snakemake.params.seed, network["name"]).integers(2**31))
body = state_files.read(snakemake.input.body)
trained = training.initial(network["architecture"], network["arguments"], seed=seed, pretrained=body)

ids = image_sets.read_ids(snakemake.input.images)
images = [voc.read_image(root, image_id) for image_id in ids]
if network["task"] == "segmentation":
    fit, truth = training.train_segmentation, [voc.read_label_map(root, image_id) for image_id in ids]
else:
    fit, truth = training.train_detection, [voc.read_objects(root, image_id) for image_id in ids]
fit(trained, images, truth, iterations=settings["iterations"], seed=seed, title=network["name"])
save(trained.state_dict(), snakemake.output[0])
