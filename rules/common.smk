"""The configuration, checked, and every function that the rules use.  No rule."""

import os
import sys
from pathlib import Path

HERE = Path(workflow.basedir)

# The scripts of the jobs import the package from the checkout.
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

from dag import config as plan
from dag.perturbation import SOURCE_PATTERN

try:
    plan.check(config, HERE / "config/schemas/config.schema.yaml")
    config = plan.with_local_voc(config)
except ValueError as error:
    raise WorkflowError(str(error))

VOC = config["voc"] or "resources/VOCdevkit"
RESULTS = f"results/{config['experiment']}"


wildcard_constraints:
    experiment=config["experiment"],
    image_set="[a-z0-9-]+",
    network="[a-z0-9-]+",
    victim="[a-z0-9-]+",
    body="[a-z0-9-]+",
    source=SOURCE_PATTERN,
    combination=rf"{SOURCE_PATTERN}(\+{SOURCE_PATTERN})+",
    perturbation=rf"{SOURCE_PATTERN}(\+{SOURCE_PATTERN})*",
    shard=r"\d{4}",


def code(*modules):
    """Digest of the code behind a job, a parameter: Snakemake itself does not look at imported modules."""
    return plan.code_digest(HERE, *modules)


def image_lists(image_set):
    """Files that list the images of an image set."""
    return [f"{part['root']}/{part['list']}".format(voc=VOC) for part in config["image_sets"][image_set]["parts"]]


def image_set_of(name):
    """What a job has to know of an image set."""
    entry = config["image_sets"][name]
    parts = [{"root": part["root"].format(voc=VOC), "list": part["list"]} for part in entry["parts"]]
    made = {"made": made_by_mini()} if entry.get("made_by") == "mini" else {}
    fixed = {"size": entry["size"], "sha256": entry.get("sha256"), "shard_size": config["shard_size"]}
    return {"parts": parts} | fixed | made


def image_set(wildcards):
    return image_set_of(wildcards.image_set)


def made_by_mini():
    """Identity of the miniature's images."""
    return {"settings": config["mini"]["test"], "code": code("dag.mini")}


def network(name):
    """What a job has to know of a network."""
    entry = config["networks"][name]
    return {"name": name, "task": entry["task"], "architecture": entry["architecture"]} | {
        "arguments": entry.get("arguments", {}),
        "code": code(entry["architecture"]),
    }


def weights(name):
    """Weight files of a network by role: trained here, or downloaded."""
    entry = config["networks"][name]
    if "training" in entry:
        return {"state_dict": f"resources/weights/{name}.pt"}
    return {role: f"resources/downloads/{file}" for role, file in entry["files"].items()}


def source_weights(wildcards):
    return weights(plan.network_of(wildcards.source))


def victim_weights(wildcards):
    return weights(wildcards.victim)


def training(wildcards):
    return config["networks"][wildcards.network]["training"]


def training_inputs(wildcards):
    entry = training(wildcards)
    return {
        "images": f"resources/mini/train/ImageSets/{entry['list']}.txt",
        "body": f"resources/weights/bodies/{entry['body']}.pt",
    }


def perturbation_path(image_set, perturbation, shard):
    return f"{RESULTS}/{image_set}/perturbations/{perturbation}/{shard}.h5"


def summands(wildcards):
    return [perturbation_path(wildcards.image_set, source, wildcards.shard) for source in wildcards.combination.split("+")]


def perturbations_seen(wildcards):
    """Names of the perturbations that a victim has to see."""
    return plan.seen_by(config, wildcards.image_set, wildcards.victim)


def perturbation_shards(wildcards):
    """Their shards, `none` aside."""
    return [
        perturbation_path(wildcards.image_set, perturbation, wildcards.shard)
        for perturbation in perturbations_seen(wildcards)
        if perturbation != "none"
    ]


def prediction_manifests(wildcards):
    folder = f"{RESULTS}/{wildcards.image_set}/predictions/{wildcards.victim}"
    return [f"{folder}/{shard}.json" for shard in plan.shards(config, wildcards.image_set)]


def product(name):
    """Table or figure by name."""
    return (config["tables"] | config["figures"])[name]


def scores_of(wildcards):
    """Score files of the victims of a table or figure, in its order."""
    entry = product(wildcards.product)
    return [f"{RESULTS}/{entry['image_set']}/scores/{victim}.json" for victim in plan.victims(entry)]


def source_shards(wildcards):
    """Shards of the sources of a table or figure."""
    entry = product(wildcards.product)
    return [
        perturbation_path(entry["image_set"], source, shard)
        for source in plan.table_sources(entry)
        for shard in plan.shards(config, entry["image_set"])
    ]


def all_source_shards(wildcards):
    """Shards of every source of `all`."""
    return [
        perturbation_path(image_set, source, shard)
        for image_set, sources in plan.sources(config).items()
        for source in sources
        for shard in plan.shards(config, image_set)
    ]


def networks_by_name():
    """Printed name and task of every network."""
    return {name: {"label": entry["label"], "task": entry["task"]} for name, entry in config["networks"].items()}


def example_inputs(wildcards):
    """Lists, perturbations and predictions behind the example panels."""
    entry = product(wildcards.product)
    shards = plan.shards(config, entry["image_set"])
    return {
        "lists": image_lists(entry["image_set"]),
        "perturbations": [
            perturbation_path(entry["image_set"], row, shard) for row in plan.rows(entry) for shard in shards
        ],
        "predictions": [
            f"{RESULTS}/{entry['image_set']}/predictions/{victim}/{shard}.json"
            for victim in plan.victims(entry)
            for shard in shards
        ],
    }


def labels(entry):
    """Printed names of the networks that a table or figure mentions."""
    names = {*plan.victims(entry), *(plan.network_of(source) for source in plan.table_sources(entry))}
    return {name: config["networks"][name]["label"] for name in sorted(names)}


def of_kind(key, value):
    """Pattern that matches the names of all tables or figures whose `key` is `value`."""
    entries = config["tables"] | config["figures"]
    return "|".join(name for name, entry in entries.items() if entry.get(key) == value) or "(?!)"


def files_of(name):
    """Files that make up a table or figure."""
    if name in config["tables"]:
        return multiext(f"{RESULTS}/tables/{name}", ".csv", ".md", ".tex", ".svg", ".png")
    numbers = [] if product(name)["kind"] == "examples" else [".csv"]
    return multiext(f"{RESULTS}/figures/{name}", *numbers, ".svg", ".png")


def products(wildcards):
    """Everything that `all` makes."""
    wanted = [file for name in config["targets"] for file in files_of(name)]
    return wanted + [f"{RESULTS}/tables/statuses.csv", f"{RESULTS}/index.html"]
