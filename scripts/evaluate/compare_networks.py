"""Compare the networks of a figure of lineages, pair by pair; see rule compare_networks."""

from itertools import combinations
from pathlib import Path

from dag.data import image_sets
from dag.data.readers import reader_of
from dag.workflow.startup import progress, start

start(snakemake.log[0])

from dag.evaluate import lineage
from dag.evaluate.cells import check_images, predictions, read_manifest, recomputed
from dag.evaluate.score import resampled_scores
from dag.networks.building import build_told
from dag.networks.likeness import likeness
from dag.workflow import contents
from dag.workflow.files import write_json

params, manifests = snakemake.params, [Path(manifest) for manifest in snakemake.input.manifests]
[(name, settings)] = params.image_sets.items()
reader = reader_of(settings)
images = reader.images()
scored = image_sets.without_shards(images, settings["given_up"], settings["shard_size"])
victims = {name: params.kin[name] | {"classes": params.networks[name]["classes"]} for name in settings["victims"]}
with recomputed(*manifests):
    for manifest in manifests:
        shown = image_sets.shard_of(images, manifest.stem, settings["shard_size"])
        check_images(manifest, contents.digests(shown, "image", reader=reader))
    scores = resampled_scores(
        manifests,
        scored,
        victims,
        resamples=params.bootstrap,
        seed=params.seed,
        reader=reader,
        progress=lambda items: progress(items, snakemake.wildcards.product),
    )
    shards = [read_manifest(manifest) for manifest in manifests]
    clean = {
        victim: predictions([shard[victim, "none", "float"] for shard in shards], scored)[0]
        for victim, entry in victims.items()
        if entry["task"] == "segmentation"
    }
states = {one: build_told(entry, fold=False, source=False).state_dict() for one, entry in params.networks.items()}
weights = {frozenset(two): likeness(*(states[one] for one in two)) for two in combinations(states, 2)}
ground = reader.classes.ground
labels = {frozenset(two): lineage.agreement(*(clean[one] for one in two), ground) for two in combinations(clean, 2)}
pairs = lineage.pairs(scores, params.kin, weights, labels)
write_json(
    snakemake.output[0],
    {
        "images": len(scored),
        "pairs": [lineage.summary(pair) for pair in pairs],
        "groups": lineage.groups(pairs, params.bootstrap, params.seed),
    },
)
