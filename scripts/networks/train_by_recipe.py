"""Train a full-size network by a published recipe; see rule train_by_recipe."""

from pathlib import Path

from dag.data import image_sets
from dag.workflow.startup import device, start

start(snakemake.log[0], snakemake.threads)

from dag.networks.caffe import training
from dag.networks.training_common import save
from dag.workflow import contents
from dag.workflow.seeds import generator

network, image_set, params = snakemake.params.network, snakemake.params.image_set, snakemake.params
output = Path(snakemake.output[0])
checkpoint = output.with_suffix(".checkpoint")
images = image_sets.read_image_set(
    image_set["parts"],
    image_set["size"],
    image_set["sha256"],
    name=image_set["name"],
    repeated=params.repeated,
)
read = contents.digests(images, "image", network["task"])
trained = training.fit(
    network,
    params.recipe,
    images,
    Path(snakemake.input.initial),
    checkpoint,
    seed=int(generator("train", params.seed, network["name"]).integers(2**31)),
    code=f"{params.code} {network['code']} {' '.join(read.values())}",
    device=device(),
)
save({name: tensor.cpu() for name, tensor in trained.state_dict().items()}, output)
checkpoint.unlink(missing_ok=True)
