"""The configuration, checked, and every function that the rules use.  No rule."""

import re
import shlex
import sys
from pathlib import Path

HERE = Path(workflow.basedir)

# The rules and the scripts of the jobs import the package from the checkout.
sys.path.insert(0, str(HERE))
shell.prefix("export PYTHONPATH=" + shlex.quote(str(HERE)) + '"${{PYTHONPATH:+:$PYTHONPATH}}"; ')

from snakemake.logging import logger

from dag.workflow import configuration
from dag.workflow import digests
from dag.report import description
from dag.workflow import budget, configuration, digests, plan
from dag.workflow.names import CONTROLS, SCALED_PATTERN, SOURCE_PATTERN, SUM_PATTERN

config = configuration.without_nulls(config)
try:
    configuration.check(config, HERE / "config/schemas/config.schema.yaml")
    config = description.with_kind(configuration.with_local_voc(config))
except ValueError as error:
    raise WorkflowError(str(error))

# What a run on GPUs will cost is said before it is started.
if workflow.is_main_process and budget.gpus(config, plan.networks(config)):
    logger.info(budget.summary(config))


def forget_second_names():
    """At the end of a run, when Snakemake has noted which shards are finished."""
    from dag.workflow import store  # not in every job: it imports h5py

    for folder in Path(RESULTS).glob("*/perturbations/*"):
        store.forget(folder)


onsuccess:
    forget_second_names()


onerror:
    forget_second_names()
    logger.error(plan.advice("".join(Path(file).read_text() for file in log), config))


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
    milli="[1-9][0-9]*",
    control="|".join(CONTROLS),
    shard=r"\d{4,6}",
    file="|".join(map(re.escape, config["downloads"])) or "(?!)",


def code(*modules):
    """Digest of the code behind a job, a parameter: Snakemake itself does not look at imported modules."""
    return digests.code_digest(HERE, *modules)


def is_extracted(file):
    """Whether a file of `downloads` is taken out of an archive.

    A member that the user has by itself, in the folder `weights` or in resources/downloads/, is treated
    like a download.  A member that is extracted already stays as it is.
    """
    if "archive" not in config["downloads"][file]:
        return False
    checked = Path("resources/checked", file)
    if checked.is_file() and not checked.is_symlink():
        return True
    own = [Path(config["weights"]).expanduser()] if config["weights"] else []
    return not any((folder / file).is_file() for folder in [*own, Path("resources/downloads")])


def files_that_are(extracted):
    """Pattern of the files of `downloads` that are, or are not, taken out of archives."""
    files = [re.escape(file) for file in config["downloads"] if is_extracted(file) == extracted]
    return "|".join(files) or "(?!)"


def archive(wildcards):
    return f"resources/checked/{config['downloads'][wildcards.file]['archive']}"


def checks(wildcards):
    """Published size and checksums of a file of `downloads`."""
    entry = config["downloads"][wildcards.file]
    return {key: value for key, value in entry.items() if key not in ("urls", "archive", "member")}


def mirrors(wildcards, output):
    """Where a file of `downloads` can come from, the user's own folder first.

    Snakemake takes no notice of a change in parameters that follow from `output`: another mirror is no
    reason to run anything again.
    """
    own = [config["weights"]] if config["weights"] else []
    return own + config["downloads"][wildcards.file].get("urls", [])


def voc_members(year):
    """The part of the VOC archives that is unpacked."""
    folders = ["JPEGImages", "Annotations", "SegmentationClass", "ImageSets"]
    return [f"VOCdevkit/{year}/{folder}" for folder in folders]


def ids_of(*lists):
    """Lists of the ImageSets folders of VOC."""
    return [f"{VOC}/{year}/ImageSets/{name}.txt" for year, name in lists]


def expected(name):
    """Size and digest that a derived list must have."""
    return {key: config["image_sets"][name].get(key) for key in ("size", "sha256")}


def image_lists(image_set):
    """Files that list the images of an image set."""
    return [part["list"].format(voc=VOC) for part in config["image_sets"][image_set]["parts"]]


def image_set(name):
    """What a job has to know of an image set."""
    entry = config["image_sets"][name]
    parts = [{key: path.format(voc=VOC) for key, path in part.items()} for part in entry["parts"]]
    made = {"made": made_by_mini()} if entry.get("made_by") == "mini" else {}
    fixed = {"size": entry["size"], "sha256": entry.get("sha256"), "shard_size": config["shard_size"]}
    return {"name": name, "parts": parts} | fixed | made


def made_by_mini():
    """Identity of the miniature's images."""
    return {"settings": config["mini"]["test"], "code": code("dag.data.mini")}


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
    return {role: weight_file(file) for role, file in entry["files"].items()}


def weight_file(file):
    """Path of an entry of `downloads`, or of a file of the user's own."""
    return f"resources/checked/{file}" if file in config["downloads"] else str(Path(file))


def source_weights(wildcards):
    return list(weights(plan.network_of(wildcards.source)).values())


def training(wildcards):
    return config["networks"][wildcards.network]["training"]


def networks_trained_by(key):
    """Pattern that matches the networks whose training names a `body` (the miniature) or a `recipe`."""
    return "|".join(name for name, entry in config["networks"].items() if key in entry.get("training", {})) or "(?!)"


def recipe_initial(wildcards):
    """Weights that a recipe starts from: a file, or another network that is trained here."""
    initial = training(wildcards)["initial"]
    return weight_file(initial) if isinstance(initial, str) else weights(initial["network"])["state_dict"]


def training_inputs(wildcards):
    entry = training(wildcards)
    return {
        "images": f"resources/mini/train/ImageSets/{entry['list']}.txt",
        "body": f"resources/weights/bodies/{entry['body']}.pt",
    }


def attack_minutes(wildcards):
    """Run time to ask a scheduler for."""
    seconds = budget.attack_seconds(config, wildcards.source, config["shard_size"])
    return budget.run_time_minutes(seconds, small=480)


def predict_minutes(wildcards):
    """Run time to ask a scheduler for."""
    entry = product(wildcards.product)
    seconds = budget.predict_seconds(config, entry, wildcards.image_set, config["shard_size"])
    return budget.run_time_minutes(seconds, small=240)


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
    return manifests_of(wildcards.product)


def manifests_of(name):
    return [
        f"{RESULTS}/cells/{name}/{image_set}/{shard}.json"
        for image_set in plan.image_sets(product(name))
        for shard in plan.shards(config, image_set)
    ]


def made_products():
    """What the tables and figures of `all` are made of, and their files."""
    made = {
        name: {"manifests": manifests_of(name), "files": files_of(name), "shapes": shapes_of(name)}
        for name in config["targets"]
    }
    return made | {"about": {"manifests": [], "files": about()}}


def made_files(wildcards):
    """Every file of the tables and figures of `all`, and the manifests of their cells."""
    return [file for entry in made_products().values() for files in entry.values() for file in files]


def shapes_of(name):
    """The shard of the shaped examples that a figure shows."""
    return [f"{RESULTS}/shapes/{name}.h5"] if product(name).get("kind") == "shapes" else []


def shape_minutes(wildcards):
    """Run time to ask a scheduler for."""
    return budget.run_time_minutes(budget.shape_seconds(config, product(wildcards.product)), small=120)


def about():
    """Tables that are always made."""
    return [f"{RESULTS}/tables/{name}.csv" for name in ("claims", "perceptibility", "statuses")]


def product_lists(wildcards):
    """Files that list the images of a table or figure."""
    return [file for image_set in plan.image_sets(product(wildcards.product)) for file in image_lists(image_set)]


def product_image_sets(wildcards):
    """What a job has to know of the image sets of a table or figure, and who is evaluated on them."""
    entry = product(wildcards.product)
    return {
        name: image_set(name)
        | {"given_up": plan.given_up(config, name)}
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


def titled(name):
    """Title of a table wherever it goes, with the kind of the experiment: a miniature's is not the paper's."""
    return f"{product(name)['title']} ({description.badge(config)})"


def caption(name):
    """Caption of a figure for Snakemake's own report, by its name or else its kind; nothing if there is none."""
    kind = product(name).get("kind")
    files = [HERE / f"report/{stem}.rst" for stem in (name, kind) if kind]
    return next((file.read_text() for file in files if file.is_file()), "")


def described():
    """What the experiment is, and which images it does without."""
    missing = ", ".join(config["given_up"])
    text = f"{description.badge(config)}. {config['description']}"
    return text + (f"\n\nWithout the images of the shards {missing}, given up." if missing else "")


def printed(name):
    """What a network is called in print, with a dagger if it stands in for another."""
    entry = config["networks"][name]
    return entry["label"] + ("†" if "substitute" in entry else "")


def networks_by_name():
    """Printed name and task of every network."""
    return {name: {"label": printed(name), "task": entry["task"]} for name, entry in config["networks"].items()}


def families():
    """What counts as the architecture of every network; one without `family` is its own."""
    return {name: entry.get("family", name) for name, entry in config["networks"].items()}


def example_perturbations(wildcards):
    """Every shard of every perturbation of example panels."""
    entry = product(wildcards.product)
    shards = plan.shards(config, entry["image_set"])
    return [perturbation_path(entry["image_set"], row, shard) for row in plan.rows(entry) for shard in shards]


def gallery_perturbations(wildcards):
    """One shard of every perturbation of a gallery."""
    entry = product(wildcards.product)
    return [perturbation_path(entry["image_set"], row, wildcards.shard) for row in plan.rows(entry)]


def gallery_parts(pattern):
    """Files of all shards of a gallery, by a pattern with {shard}."""
    return lambda wildcards: [
        f"{RESULTS}/galleries/{wildcards.product}/{pattern.format(shard=shard)}"
        for shard in plan.shards(config, product(wildcards.product)["image_set"])
    ]


def pixels(entry):
    """How perturbed images reach the victims of a table or figure."""
    return entry.get("pixels", config["pixels"])


def mentioned(entry):
    """Networks that a table or figure mentions."""
    return sorted({*plan.victims(entry), *(plan.network_of(source) for source, _ in plan.source_sets(entry))})


def labels(entry):
    """Printed names of the networks that a table or figure mentions."""
    return {name: printed(name) for name in mentioned(entry)}


def substitutes(entry):
    """What stands in for what in a table or figure, by printed name."""
    networks = config["networks"]
    return {printed(name): networks[name]["substitute"] for name in mentioned(entry) if "substitute" in networks[name]}


def of_kind(key, *values):
    """Pattern that matches the names of all tables or figures whose `key` is one of the values."""
    entries = config["tables"] | config["figures"]
    return "|".join(name for name, entry in entries.items() if entry.get(key) in values) or "(?!)"


def files_of(name):
    """Files that make up a table or figure."""
    if name in config["tables"]:
        return multiext(f"{RESULTS}/tables/{name}", ".csv", ".md", ".tex", ".svg", ".png")
    if product(name)["kind"] == "gallery":
        return multiext(f"{RESULTS}/galleries/{name}/", "index.html", "gallery.css", "gallery.js", "data.js")
    numbers = [] if product(name)["kind"] == "examples" else [".csv"]
    return multiext(f"{RESULTS}/figures/{name}", *numbers, ".svg", ".png")


def products(wildcards):
    """Everything that `all` makes."""
    wanted = [file for name in config["targets"] for file in files_of(name)]
    return wanted + about() + [f"{RESULTS}/index.html", f"{RESULTS}/provenance.json"]
