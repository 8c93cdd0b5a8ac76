"""Score every cell of a table; see rule score."""

from pathlib import Path

from dag.data import image_sets
from dag.data.readers import reader_of
from dag.workflow.startup import progress, start

start(snakemake.log[0])

from dag.evaluate.cells import check_images, recomputed
from dag.evaluate.score import score
from dag.workflow import contents
from dag.workflow.files import write_json

params = snakemake.params
scores = {}
for name, settings in params.image_sets.items():
    reader = reader_of(settings)
    images = reader.images()
    given_up, size = settings["given_up"], settings["shard_size"]
    manifests = [path for path in map(Path, snakemake.input.manifests) if path.parent.name == name]
    scored = image_sets.without_shards(images, given_up, size)
    with recomputed(*manifests):
        for manifest in manifests:
            shown = image_sets.shard_of(images, manifest.stem, size)
            check_images(manifest, contents.digests(shown, "image", reader=reader))
        found = score(
            manifests,
            scored,
            {victim: params.networks[victim] for victim in settings["victims"]},
            resamples=params.bootstrap,
            seed=params.seed,
            worst={victim: params.worst[victim] for victim in settings["victims"] if victim in params.worst},
            ensembles=params.ensembles,
            draws={victim: params.draws[victim] for victim in settings["victims"] if victim in params.draws},
            companion=settings["companion"],
            reader=reader,
            missing=[image_id for shard in given_up for _, image_id in image_sets.shard_of(images, shard, size)],
            progress=lambda items: progress(items, snakemake.wildcards.product),
        )
    for entry in found:
        truth = contents.digests(scored, entry["task"], reader=reader)
        scores[entry["victim"]] = entry | {"image_set": name, "contents": truth}
write_json(snakemake.output[0], [scores[victim] for victim in params.networks])
