"""Paths of the files of an experiment: images, weights, shards, scores, tables and figures.

Pure functions of the configuration; paths are relative to the working directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from dag.workflow import plan

SEED = 2017  # of config/config.yaml


def told(config: dict, path: str) -> str:
    """A path for the parameters of a job, with the prefix of a Snakemake module.

    Snakemake adds the prefix to inputs and outputs by itself.
    """
    for folder, place in config.get("folders", {}).items():
        if path.startswith(folder):
            return place + path.removeprefix(folder)
    return path


def voc(config: dict) -> str:
    """Folder that holds VOC2007/ and VOC2012/: the user's, or the one into which downloads are unpacked."""
    return config["voc"] or "resources/VOCdevkit"


def voc_lists(config: dict, *lists: tuple[str, str]) -> list[str]:
    """Lists of the ImageSets folders of VOC, from (folder, name) pairs."""
    return [f"{voc(config)}/{year}/ImageSets/{name}.txt" for year, name in lists]


def derived_lists(config: dict) -> dict[str, dict[str, list[str]]]:
    """Image sets whose list follows from other lists: all `ids` that are `within` and not `without` others.

    `without_2007` takes away the images of VOC2007 under the ids that VOC2012 gives them.
    """
    lists = partial(voc_lists, config)
    masks = [("VOC2012", "Segmentation/train"), ("VOC2012", "Segmentation/val")]
    boxes_2007 = lists(("VOC2007", "Main/trainval"))
    downloaded = "resources/VOCdevkit"  # what is derived from SBD and VOC2011 is never the user's own
    # what a user calls his sample, or else all segmented validation images
    own = not config["voc"] or Path(lists(("VOC2012", "Segmentation/sample"))[0]).is_file()
    return {
        # those that the zoo is shown, evenly spaced
        "zoo-segmentation": {"ids": lists(("VOC2012", f"Segmentation/{'sample' if own else 'val'}"))},
        # the published list of segmented validation images of VOC2011 that are not in SBD train
        "seg11valid": {"ids": ["resources/checked/seg11valid.txt"], "within": lists(masks[1])},
        # segmented training images of VOC2011, under the label maps of VOC2012
        "voc11-seg-train": {"ids": [f"{downloaded}/VOC2011/ImageSets/Segmentation/train.txt"], "within": lists(*masks)},
        # images of SBD that VOC2012 has no label map of
        "sbd-without-voc12": {
            "ids": [f"{downloaded}/SBD/ImageSets/Segmentation/{part}.txt" for part in ("train", "val")],
            "without": lists(*masks),
        },
        # images with masks and boxes that the first four networks of Table 4 have not been trained on
        "table4-687": {
            "ids": lists(masks[1]),
            "without": [f"{downloaded}/SBD/ImageSets/Segmentation/train.txt"],
            "without_2007": boxes_2007,
        },
        # and those that detectors trained on 07+12 trainval have not seen either
        "table4-110": {
            "ids": lists(masks[1]),
            "without": lists(("VOC2012", "Main/trainval")),
            "without_2007": boxes_2007,
        },
    }


def parts(config: dict, image_set: str) -> list[dict[str, str]]:
    """Folder and list of every part of an image set; without a list it is the folder itself."""
    entries = config["image_sets"][image_set]["parts"]
    parts = [{key: path.format(voc=voc(config)) for key, path in part.items()} for part in entries]
    return [part if "list" in part else part | {"list": part["root"]} for part in parts]


def image_lists(config: dict, *image_sets: str) -> list[str]:
    """Files that list the images of image sets."""
    return [part["list"] for image_set in image_sets for part in parts(config, image_set)]


def is_extracted(config: dict, file: str) -> bool:
    """Whether a file of `downloads` is taken out of an archive.

    A member that the user provides as a separate file, in the folder `weights` or in resources/downloads/, is treated
    like a download.  An already extracted member is kept.
    """
    if "archive" not in config["downloads"][file]:
        return False
    checked = Path(told(config, f"resources/checked/{file}"))
    if checked.is_file() and not checked.is_symlink():
        return True
    own = [Path(config["weights"]).expanduser()] if config["weights"] else []
    return not any((folder / file).is_file() for folder in [*own, Path(told(config, "resources/downloads"))])


def downloads(config: dict, extracted: bool) -> list[str]:
    """Files of `downloads` that are, or are not, taken out of archives."""
    return [file for file in config["downloads"] if is_extracted(config, file) == extracted]


def archive(config: dict, file: str) -> str:
    """Archive that a file of `downloads` is taken out of."""
    return f"resources/checked/{config['downloads'][file]['archive']}"


def weight_file(config: dict, file: str) -> str:
    """Path of an entry of `downloads`, or of a file of the user's own."""
    return f"resources/checked/{file}" if file in config["downloads"] else str(Path(file))


def trained(config: dict) -> str:
    """Folder of the networks trained here; those of a seed other than the default's have a folder of their own."""
    return "resources/weights" if config["seed"] == SEED else f"resources/weights/seed-{config['seed']}"


def weights(config: dict, network: str) -> dict[str, str]:
    """Weight files of a network by role: trained here, or downloaded; roles of a defence begin with its network."""
    entry = config["networks"][network]
    if "of" in entry:
        own = {f"{network}:{role}": weight_file(config, file) for role, file in entry.get("files", {}).items()}
        return weights(config, entry["of"]) | own
    if "training" in entry:
        return {"state_dict": f"{trained(config)}/{network}.pt"}
    return {role: weight_file(config, file) for role, file in entry["files"].items()}


def initial_weights(config: dict, network: str) -> str:
    """Weights that a recipe starts from: a file, or another network that is trained here."""
    initial = config["networks"][network]["training"]["initial"]
    if isinstance(initial, str):
        return weight_file(config, initial)
    return weights(config, initial["network"])["state_dict"]


def results(config: dict) -> str:
    """Folder of the experiment."""
    return f"results/{config['experiment']}"


def perturbation(config: dict, image_set: str, name: str, shard: str) -> str:
    """Shard of a perturbation."""
    return f"{results(config)}/{image_set}/perturbations/{name}/{shard}.h5"


def source_shards(config: dict, sources: Iterable[tuple[str, str]]) -> list[str]:
    """Every shard of the perturbations of (source, image set) pairs."""
    return [
        perturbation(config, image_set, source, shard)
        for source, image_set in sources
        for shard in plan.shards(config, image_set)
    ]


def planted(config: dict) -> list[str]:
    """Results on the planted examples for the attacks of `all`."""
    return [
        f"{results(config)}/{image_set}/planted/{network}.json" for network, image_set in plan.planted_sources(config)
    ]


def exported(config: dict) -> list[str]:
    """Folders of perturbations that are written as files of their own."""
    return [
        f"{results(config)}/export/{image_set}/{name}"
        for image_set, names in config["export"].items()
        for name in names
    ]


def cells(config: dict, product: str, image_set: str, shard: str) -> str:
    """Manifest of the cells of one shard of a table or figure."""
    return f"{results(config)}/cells/{product}/{image_set}/{shard}.json"


def manifests(config: dict, product: str) -> list[str]:
    """Manifests of all cells of a table or figure."""
    return [
        cells(config, product, image_set, shard)
        for image_set in plan.image_sets(plan.product(config, product))
        for shard in plan.shards(config, image_set)
    ]


def gallery_parts(config: dict, product: str, pattern: str) -> list[str]:
    """Files of all shards of a gallery, by a pattern with {shard}."""
    folder = f"{results(config)}/galleries/{product}"
    shards = plan.shards(config, plan.product(config, product)["image_set"])
    return [f"{folder}/{pattern.format(shard=shard)}" for shard in shards]


def checks(config: dict, product: str) -> list[str]:
    """Records of the check that images and ground truth of a table or figure can be read."""
    entry, found = plan.product(config, product), []
    for image_set in plan.image_sets(entry):
        networks = [victim for victim in plan.victims(entry) if plan.image_set_of(entry, victim) == image_set]
        networks += [plan.network_of(source) for source, seen in plan.source_sets(entry) if seen == image_set]
        annotated = config["image_sets"][image_set].get("format") != "images"
        kinds = ["image", *(plan.tasks(config, networks) if annotated else [])]
        found += [f"{results(config)}/{image_set}/checked/{kind}.txt" for kind in kinds]
    return found


def product_files(config: dict, product: str) -> list[str]:
    """Files that make up a table or figure."""
    if product in config["tables"]:
        return _each(f"{results(config)}/tables/{product}", ".csv", ".md", ".tex", ".svg", ".png")
    kind = config["figures"][product]["kind"]
    if kind == "gallery":
        return _each(f"{results(config)}/galleries/{product}/", "index.html", "gallery.css", "gallery.js", "data.js")
    numbers = {"examples": [], "lineage": [".csv", "_pairs.csv"]}.get(kind, [".csv"])
    return _each(f"{results(config)}/figures/{product}", *numbers, ".svg", ".png")


def about(config: dict) -> list[str]:
    """CSV files of the tables that are always made."""
    return [f"{results(config)}/tables/{name}.csv" for name in plan.ABOUT]


def everything(config: dict) -> list[str]:
    """All that `all` makes."""
    files = [file for product in config["products"] for file in product_files(config, product)]
    return [*files, *about(config), f"{results(config)}/index.html", f"{results(config)}/provenance.json"]


def made(config: dict) -> dict[str, dict[str, list[str]]]:
    """Inputs and output files of each table and figure of `all`."""
    found = {
        product: {
            "manifests": manifests(config, product),
            "files": product_files(config, product),
            "shapes": _shapes(config, product),
        }
        for product in config["products"]
    }
    return found | {"about": {"manifests": [], "files": about(config)}}


def _shapes(config: dict, product: str) -> list[str]:
    """The shard of the shaped examples that a figure shows."""
    is_shapes = plan.product(config, product).get("kind") == "shapes"
    return [f"{results(config)}/shapes/{product}.h5"] if is_shapes else []


def _each(stem: str, *endings: str) -> list[str]:
    return [stem + ending for ending in endings]
