"""The configuration, checked, and every function that the rules use.  No rule."""

import re
import shlex
import sys
from pathlib import Path

HERE = Path(workflow.basedir)

# The rules and the scripts of the jobs import the package from the checkout.
sys.path.insert(0, str(HERE))
shell.prefix("export PYTHONPATH=" + shlex.quote(str(HERE)) + '"${{PYTHONPATH:+:$PYTHONPATH}}"; ')

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
    file="|".join(map(re.escape, config["downloads"])) or "(?!)",


def code(*modules):
    """Digest of the code behind a job, a parameter: Snakemake itself does not look at imported modules."""
    return plan.code_digest(HERE, *modules)


def checks(wildcards):
    """Published size and checksums of a file of `downloads`."""
    return {key: value for key, value in config["downloads"][wildcards.file].items() if key != "urls"}


def mirrors(wildcards, output):
    """Where a file of `downloads` can come from, the user's own folder first.

    Snakemake takes no notice of a change in parameters that follow from `output`: another mirror is no
    reason to run anything again.
    """
    own = [config["weights"]] if config["weights"] else []
    return own + config["downloads"][wildcards.file]["urls"]


def voc_members(year):
    """The part of the VOC archives that is unpacked."""
    folders = ["JPEGImages", "Annotations", "SegmentationClass", "ImageSets"]
    return [f"VOCdevkit/{year}/{folder}" for folder in folders]


def image_lists(image_set):
    """Files that list the images of an image set."""
    return [f"{part['root']}/{part['list']}".format(voc=VOC) for part in config["image_sets"][image_set]["parts"]]


def image_set(name):
    """What a job has to know of an image set."""
    entry = config["image_sets"][name]
    parts = [{"root": part["root"].format(voc=VOC), "list": part["list"]} for part in entry["parts"]]
    made = {"made": made_by_mini()} if entry.get("made_by") == "mini" else {}
    fixed = {"size": entry["size"], "sha256": entry.get("sha256"), "shard_size": config["shard_size"]}
    return {"parts": parts} | fixed | made


def made_by_mini():
    """Identity of the miniature's images."""
    return {"settings": config["mini"]["test"], "code": code("dag.mini")}


def network(name):
    """What a job has to know of a network."""
    entry = config["networks"][name]
    return {
        "name": name,
        "task": entry["task"],
        "architecture": entry["architecture"],
        "arguments": entry.get("arguments", {}),
        "files": weights(name),
        "code": code(entry["architecture"]),
    }


def weights(name):
    """Weight files of a network by role: trained here, or downloaded."""
    entry = config["networks"][name]
    if "training" in entry:
        return {"state_dict": f"resources/weights/{name}.pt"}
    return {role: f"resources/checked/{file}" for role, file in entry["files"].items()}


def source_weights(wildcards):
    return list(weights(plan.network_of(wildcards.source)).values())


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
    return [
        perturbation_path(wildcards.image_set, source, wildcards.shard) for source in wildcards.combination.split("+")
    ]


def product(name):
    """Table or figure by name."""
    return (config["tables"] | config["figures"])[name]


def victims(wildcards):
    """Printed name and task of the victims of a table or figure, in its order."""
    everything = networks_by_name()
    return {name: everything[name] for name in plan.victims(product(wildcards.product))}


def cells(wildcards):
    """Perturbations that each victim of a table or figure on an image set has to see."""
    return plan.cells(product(wildcards.product), wildcards.image_set, config["permutations"])


def cell_weights(wildcards):
    """Weight files of these victims."""
    return [file for victim in cells(wildcards) for file in weights(victim).values()]


def cell_perturbations(wildcards):
    """One shard of each of these perturbations, `none` aside."""
    names = dict.fromkeys(name for seen in cells(wildcards).values() for name in seen if name != "none")
    return [perturbation_path(wildcards.image_set, name, wildcards.shard) for name in names]


def cell_manifests(wildcards):
    """Manifests of the cells of a table or figure."""
    return [
        f"{RESULTS}/cells/{wildcards.product}/{image_set}/{shard}.json"
        for image_set in plan.image_sets(product(wildcards.product))
        for shard in plan.shards(config, image_set)
    ]


def product_lists(wildcards):
    """Files that list the images of a table or figure."""
    return [file for image_set in plan.image_sets(product(wildcards.product)) for file in image_lists(image_set)]


def product_image_sets(wildcards):
    """What a job has to know of the image sets of a table or figure, and who is evaluated on them."""
    entry = product(wildcards.product)
    return {
        name: image_set(name)
        | {"victims": [victim for victim in plan.victims(entry) if plan.image_set_of(entry, victim) == name]}
        for name in plan.image_sets(entry)
    }


def source_shards(wildcards):
    """Shards of the sources of a table or figure."""
    return shards_of(plan.source_sets(product(wildcards.product)))


def all_source_shards(wildcards):
    """Shards of every source of `all`."""
    return shards_of(plan.all_source_sets(config))


def shards_of(pairs):
    return [
        perturbation_path(image_set, source, shard)
        for source, image_set in pairs
        for shard in plan.shards(config, image_set)
    ]


def transfer_tables():
    """The transfer tables of `all` by name, with their pixels."""
    everything = plan.products(config).items()
    return {name: entry | {"pixels": pixels(entry)} for name, entry in everything if entry.get("layout") == "transfer"}


def transfer_scores(wildcards):
    return [f"{RESULTS}/scores/{name}.json" for name in transfer_tables()]


def networks_by_name():
    """Printed name and task of every network."""
    return {name: {"label": entry["label"], "task": entry["task"]} for name, entry in config["networks"].items()}


def families():
    """What counts as the architecture of every network; one without `family` is its own."""
    return {name: entry.get("family", name) for name, entry in config["networks"].items()}


def example_perturbations(wildcards):
    """Every shard of every perturbation of example panels."""
    entry = product(wildcards.product)
    shards = plan.shards(config, entry["image_set"])
    return [perturbation_path(entry["image_set"], row, shard) for row in plan.rows(entry) for shard in shards]


def pixels(entry):
    """How perturbed images reach the victims of a table or figure."""
    return entry.get("pixels", config["pixels"])


def labels(entry):
    """Printed names of the networks that a table or figure mentions."""
    names = {*plan.victims(entry), *(plan.network_of(source) for source, _ in plan.source_sets(entry))}
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
    about = [f"{RESULTS}/tables/{name}.csv" for name in ("claims", "perceptibility", "statuses")]
    return wanted + about + [f"{RESULTS}/index.html"]
