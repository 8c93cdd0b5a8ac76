"""Parameters of the jobs: networks, image sets, cells, run times.  A change of a parameter reruns the job.

Pure functions of the configuration; `dag.workflow.paths` has the locations of files.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from dag.data import image_sets as data
from dag.workflow import comparisons, contents, costs, digests, paths, plan
from dag.workflow.contents import Contents
from dag.workflow.names import PLANTED

ROOT = Path(__file__).parents[2]


def code(*modules: str) -> str:
    """Digest of the code behind a job; Snakemake itself ignores imported modules."""
    return digests.code_digest(ROOT, *modules)


def download(config: dict, file: str) -> dict:
    """Published size and checksums of a file of `downloads`."""
    return {key: value for key, value in config["downloads"][file].items() if key not in ("urls", "archive", "member")}


def mirrors(config: dict, file: str) -> list[str]:
    """Sources of a file of `downloads`, the user's own folder first."""
    own = [config["weights"]] if config["weights"] else []
    return own + config["downloads"][file].get("urls", [])


def voc_members(year: str) -> list[str]:
    """The part of the VOC archives that is unpacked."""
    return [f"VOCdevkit/{year}/{folder}" for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets")]


def derived_list(config: dict, image_set: str) -> dict:
    """Size and digest that a derived list must have."""
    return {key: config["image_sets"][image_set].get(key) for key in ("size", "sha256")}


def spaced(config: dict, image_set: str) -> bool:
    """Whether a derived list has only as many images as its size says, evenly spaced."""
    return config["image_sets"][image_set].get("spaced", False)


def image_set(config: dict, name: str) -> dict:
    """Name, format, classes, parts, size, digest and shards of an image set."""
    entry = config["image_sets"][name]
    return {
        "name": name,
        "format": entry.get("format", "voc"),
        "classes": classes(config, entry, coloured=entry.get("format") == "masks"),  # these are read by colour
        "parts": [{key: paths.told(config, path) for key, path in part.items()} for part in paths.parts(config, name)],
        "size": entry["size"],
        "sha256": entry.get("sha256"),
        "shard_size": config["shard_size"],
    }


def shard_contents(config: dict, name: str, shard: str, *kinds: str) -> Contents:
    """Digests of the images of a shard and of their ground truth, by kind: a changed file reruns its jobs."""
    return Contents(partial(_shard_contents, config, name, shard, *kinds))


def all_contents(config: dict, name: str, *kinds: str) -> Contents:
    """`shard_contents` of every shard of an image set that is not given up: a list by kind."""

    def look() -> dict[str, list]:
        found = [_shard_contents(config, name, shard, *kinds) for shard in plan.shards(config, name)]
        return {kind: [one[kind] for one in found] for kind in kinds}

    return Contents(look)


def attack_contents(config: dict, name: str, source: str, shard: str) -> Contents:
    """Digests of the inputs of `perturb`: images of a shard and their ground truth, or that of the whole image set.

    Imported perturbations are included, by their folder.
    """
    task, settings = config["networks"][plan.network_of(source)]["task"], plan.attack(config, source)

    def look() -> dict:
        found = _shard_contents(config, name, shard, "image", task)
        for folder in plan.imported(settings):
            found |= {folder: _shard_contents(config, name, shard, "perturbation", folder=folder)["perturbation"]}
        if plan.counts_pixels(settings):
            found |= {"all": all_contents(config, name, task)}
        return found

    return Contents(look)


def shape_contents(config: dict, product: str) -> Contents:
    """Digest of the images that shaped examples start from."""
    entry = plan.product(config, product)
    missing, size = plan.given_up(config, entry["image_set"]), config["shard_size"]

    def chosen(images: list) -> list:
        return data.chosen(data.without_shards(images, missing, size), entry["images"])

    images = image_set(config, entry["image_set"])
    return Contents(partial(contents.planned, images, chosen, "image", name=product, folder=_contents(config)))


def training_contents(config: dict, name: str) -> Contents:
    """Digests of the training images and ground truth of a network of the miniature."""
    place = paths.told(config, training_inputs(config, name)["images"])
    part = {"root": str(Path(place).parents[2]), "list": place}
    listed = config["networks"][name]["training"]["list"].replace("/", "-")
    images, kinds = {"name": "mini-train", "parts": [part]}, ("image", config["networks"][name]["task"])
    return Contents(partial(contents.planned, images, list, *kinds, name=listed, folder=_contents(config)))


def _shard_contents(
    config: dict, name: str, shard: str, *kinds: str, folder: str | None = None
) -> dict[str, str | None]:
    """Digests of files of the images of a shard, which are in the image set or in a folder of their own."""
    size, known = config["shard_size"], f"{shard}-of-{config['shard_size']}"

    def chosen(images: list) -> list:
        found = data.shard_of(images, shard, size)
        return found if folder is None else [(folder, image_id) for _, image_id in found]

    if folder is not None:
        known += f".{digests.text_digest(folder)}"
    return contents.planned(image_set(config, name), chosen, *kinds, name=known, folder=_contents(config))


def _contents(config: dict) -> Path:
    """Folder of the cache of digests of images."""
    return Path(paths.told(config, "resources/contents"))


def image_sets(config: dict, product: str) -> dict[str, dict]:
    """Image sets of a table or figure, with the victims evaluated on them and digests of their ground truth."""
    entry, found = plan.product(config, product), {}
    for name in plan.image_sets(entry):
        victims = [victim for victim in plan.victims(entry) if plan.image_set_of(entry, victim) == name]
        found[name] = image_set(config, name) | {
            "given_up": plan.given_up(config, name),
            "victims": victims,
            "companion": _companion(config["image_sets"][name]),
            "contents": all_contents(config, name, *plan.tasks(config, victims)),
        }
    return found


def classes(config: dict, entry: dict, coloured: bool = False) -> dict:
    """The list of classes of a network or an image set, without its colours unless they matter."""
    listed = config["classes"][entry.get("classes", "voc")]
    return {key: value for key, value in listed.items() if coloured or key != "colours"}


def _companion(entry: dict) -> str:
    """The second metric of detectors on an image set."""
    return entry.get("companion", "COCO AP" if entry.get("format") == "coco" else "area mAP")


def coloured_classes(config: dict, product: str) -> dict:
    """The list of classes for the colours of a figure: of its image set, or of the network in a figure of shapes."""
    entry = plan.product(config, product)
    shown = config["networks"][entry["network"]] if "network" in entry else config["image_sets"][entry["image_set"]]
    return classes(config, shown, coloured=True)


def victims(config: dict, product: str) -> dict[str, dict]:
    """Display name, task and classes of the networks that a table or figure evaluates."""
    printed = plan.printed_networks(config, plan.victims(plan.product(config, product)))
    return {name: entry | {"classes": classes(config, config["networks"][name])} for name, entry in printed.items()}


def network(config: dict, name: str) -> dict:
    """Name, task, classes, architecture, arguments, files by role, code and defences (innermost first) of a network."""
    *defended, base = plan.layered(config, name)
    entry = config["networks"][base]
    return {
        "name": name,
        "task": entry["task"],
        "classes": classes(config, entry),
        "architecture": entry["architecture"],
        "arguments": entry.get("arguments", {}),
        "files": {role: paths.told(config, path) for role, path in paths.weights(config, name).items()},
        "code": code(entry["architecture"]),
        "defences": [_defence(config["networks"][one], one) for one in reversed(defended)],
    }


def _defence(entry: dict, name: str) -> dict:
    function = plan.defence(entry)
    return {"name": name, "function": function, "arguments": entry.get("arguments", {}), "code": code(function)}


def attack(config: dict, source: str) -> dict:
    """Settings of a source's attack, and the code of a function of the user's own."""
    settings = plan.attack(config, source)
    if "worst_of" in settings:
        return settings | {"worst_of": [_with_code(each) for each in settings["worst_of"]]}
    return _with_code(settings)


def uncounted(config: dict, image_set: str, source: str) -> list[str]:
    """Given-up shards that are left out of an attack's pixel counts; empty if the attack needs no counts."""
    return plan.given_up(config, image_set) if plan.counts_pixels(plan.attack(config, source)) else []


def _with_code(settings: dict) -> dict:
    return settings | ({"code": code(settings["function"])} if "function" in settings else {})


def training_inputs(config: dict, name: str) -> dict[str, str]:
    """Input files of the training of a network of the miniature."""
    training = config["networks"][name]["training"]
    return {
        "images": f"resources/mini/train/ImageSets/{training['list']}.txt",
        "body": f"{paths.trained(config)}/bodies/{training['body']}.pt",
    }


def cells(config: dict, product: str, image_set: str) -> dict[str, list[str]]:
    """Perturbations that each victim of a table or figure on an image set has to see."""
    return plan.cells(plan.product(config, product), image_set, config["permutations"])


def cell_weights(config: dict, product: str, image_set: str) -> list[str]:
    """Weight files of these victims."""
    return weights(config, cells(config, product, image_set))


def weights(config: dict, networks: Iterable[str]) -> list[str]:
    """Weight files of networks."""
    return [file for name in networks for file in paths.weights(config, name).values()]


def cell_perturbations(config: dict, product: str, image_set: str, shard: str) -> list[str]:
    """One shard of each of these perturbations, `none` aside."""
    names = dict.fromkeys(name for seen in cells(config, product, image_set).values() for name in seen)
    return [paths.perturbation(config, image_set, name, shard) for name in names if name != "none"]


def shape_settings(config: dict, product: str) -> dict:
    """Settings of a figure that determine its shaped examples."""
    keys = ("images", "noise", "shapes", "ground", "size", "attack")
    return {key: value for key, value in plan.product(config, product).items() if key in keys}


def row_shards(config: dict, product: str, shard: str | None = None) -> list[str]:
    """Shards of every perturbation of example panels or of a gallery: one of each, or all."""
    entry = plan.product(config, product)
    shards = plan.shards(config, entry["image_set"]) if shard is None else [shard]
    return [paths.perturbation(config, entry["image_set"], row, name) for row in plan.rows(entry) for name in shards]


def made(config: dict) -> dict[str, dict[str, list[str]]]:
    """Inputs and output files of each table and figure of `all`, see `paths.made`."""
    return {
        name: {kind: [paths.told(config, file) for file in files] for kind, files in entry.items()}
        for name, entry in paths.made(config).items()
    }


def tables(config: dict, *layouts: str) -> dict[str, dict]:
    """The tables of `all` with one of the layouts by name, with their pixels."""
    return {
        name: entry | {"pixels": plan.pixels(config, entry)}
        for name, entry in plan.products(config).items()
        if entry.get("layout") in layouts
    }


def compared(config: dict) -> dict[str, dict]:
    """Grouped attacks of the tables and figures of `all` that compare attacks along a setting, with that setting."""
    entries = {name: entry for name, entry in plan.products(config).items() if "along" in entry}
    return {
        name: {"along": entry["along"], "series": comparisons.series(config, entry)} for name, entry in entries.items()
    }


def seen_in(config: dict) -> str:
    """Layout of the tables whose perturbations the table of perceptibility lists: white-box if there is no other."""
    return "transfer" if tables(config, "transfer") else "white-box"


def table_scores(config: dict, *layouts: str) -> list[str]:
    """Scores of these tables."""
    return [f"{paths.results(config)}/scores/{name}.json" for name in tables(config, *layouts)]


def attack_minutes(config: dict, source: str) -> int:
    """Requested run time of `perturb`."""
    return costs.run_time_minutes(costs.attack_seconds(config, source, config["shard_size"]), small=480)


def planted(config: dict, network: str, image_set: str) -> dict[str, dict]:
    """Settings of the attacks on a network that have to find a planted example, by source."""
    return {source: attack(config, source) for source in plan.planted_sources(config)[network, image_set]}


def plant_minutes(config: dict, network: str, image_set: str) -> int:
    """Requested run time of `plant`."""
    sources = plan.planted_sources(config)[network, image_set]
    seconds = sum(costs.attack_seconds(config, source, PLANTED) for source in sources)
    return costs.run_time_minutes(seconds, small=240)


def shape_minutes(config: dict, product: str) -> int:
    """Requested run time of `shape`."""
    return costs.run_time_minutes(costs.shape_seconds(config, plan.product(config, product)), small=120)


def predict_minutes(config: dict, product: str, image_set: str) -> int:
    """Requested run time of `predict`."""
    entry = plan.product(config, product)
    return costs.run_time_minutes(costs.predict_seconds(config, entry, image_set, config["shard_size"]), small=240)
