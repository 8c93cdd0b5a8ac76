"""Score every cell of a table; see rule score."""

from pathlib import Path

from dag.data import image_sets
from dag.workflow.startup import progress, start

start(snakemake.log[0])

from dag.evaluate.cells import recomputed
from dag.evaluate.score import score
from dag.workflow.store import write_json

params = snakemake.params
scores = {}
for name, settings in params.image_sets.items():
    images = image_sets.read_image_set(settings["parts"], settings["size"], settings["sha256"], name=name)
    given_up, size = settings["given_up"], settings["shard_size"]
    with recomputed(*snakemake.input.manifests):
        found = score(
            [Path(manifest) for manifest in snakemake.input.manifests if f"/{name}/" in manifest],
            image_sets.without_shards(images, given_up, size),
            {victim: params.networks[victim] for victim in settings["victims"]},
            resamples=params.bootstrap,
            seed=params.seed,
            missing=[image_id for shard in given_up for _, image_id in image_sets.shard_of(images, shard, size)],
            progress=lambda items: progress(items, snakemake.wildcards.product),
        )
    scores |= {entry["victim"]: entry | {"image_set": name} for entry in found}
write_json(snakemake.output[0], [scores[victim] for victim in params.networks])
