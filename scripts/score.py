"""Score one victim under every perturbation; see rule score."""

from pathlib import Path

from dag.job import progress, start

start(snakemake.log[0])

from dag import voc
from dag.scores import score
from dag.store import write_json

params, settings = snakemake.params, snakemake.params.image_set
images = voc.read_image_set(settings["parts"], settings["size"], settings["sha256"])
about = {
    "victim": snakemake.wildcards.victim,
    "label": params.label,
    "task": params.network["task"],
    "image_set": snakemake.wildcards.image_set,
}
scores = score(
    [Path(manifest) for manifest in snakemake.input.manifests],
    images,
    params.network["task"],
    resamples=params.bootstrap,
    seed=params.seed,
    progress=lambda items: progress(items, snakemake.wildcards.victim),
)
write_json(snakemake.output[0], about | scores)
