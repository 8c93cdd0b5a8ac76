"""Train a full-size network by a published recipe; see rule train_by_recipe."""

from pathlib import Path

from dag.job import device, start

start(snakemake.log[0], snakemake.threads)

from dag import recipes, train, voc
from dag.perturbation import generator

network, image_set, params = snakemake.params.network, snakemake.params.image_set, snakemake.params
output = Path(snakemake.output[0])
checkpoint = output.with_suffix(".checkpoint")
trained = recipes.fit(
    network,
    params.recipe,
    voc.read_image_set(
        image_set["parts"],
        image_set["size"],
        image_set["sha256"],
        name=image_set["name"],
        repeated=params.repeated,
    ),
    Path(snakemake.input.initial),
    checkpoint,
    seed=int(generator("train", params.seed, network["name"]).integers(2**31)),
    code=f"{params.code} {network['code']}",
    device=device(),
)
train.save({name: tensor.cpu() for name, tensor in trained.state_dict().items()}, output)
checkpoint.unlink(missing_ok=True)
