"""Checks of classes, formats and attacks against each other, at planning."""

from __future__ import annotations

from dag.data.classes import MOST, ClassList, listed, match
from dag.workflow import plan


def classes_of(config: dict, entry: dict) -> ClassList:
    """The list of classes of a network or an image set."""
    return ClassList.of(config["classes"][entry.get("classes", "voc")])


def check_classes(config: dict, entry: dict) -> None:
    """Refuse networks and image sets that share no class or lack one that the other requires."""
    seen = [(network, plan.image_set_of(entry, network)) for network in plan.victims(entry)]
    for source, image_set in plan.source_sets(entry):
        seen.append((plan.network_of(source), image_set))
        if config["image_sets"][image_set].get("format") == "images" and plan.counts_pixels(
            plan.attack(config, source)
        ):
            raise ValueError(
                f"source {source!r} weighs classes by their pixels in the truth, and image set {image_set!r} has none; "
                "choose another attack"
            )
    for network, image_set in dict.fromkeys(seen):
        one, other = config["networks"][network], config["image_sets"][image_set]
        known, there = classes_of(config, one), classes_of(config, other)
        try:
            match(known, there)
        except ValueError as error:
            raise ValueError(f"network {network!r} on image set {image_set!r}: {error}") from error
        if one["task"] == "detection" and other.get("format") == "masks":
            raise ValueError(
                f"network {network!r} detects objects, and image set {image_set!r} has label maps alone; give it one "
                "of another format by other_image_sets"
            )
        if one["task"] == "segmentation" and max(len(known.names), len(there.names)) > MOST:
            raise ValueError(f"network {network!r} on image set {image_set!r}: label maps hold at most {MOST} classes")


def check_shapes(config: dict, entry: dict) -> None:
    """Refuse shapes whose class, or whose surrounding class, the network does not have."""
    network = config["networks"][entry["network"]]
    if network["task"] != "segmentation":
        raise ValueError(f"network {entry['network']!r} labels no pixels; name one for segmentation")
    classes = classes_of(config, network)
    for name in [*entry["shapes"].values(), *([entry["ground"]] if "ground" in entry else [])]:
        if classes.find(name) is None:
            raise ValueError(f"{name!r} is none of the classes of network {entry['network']!r}: {listed(classes, 20)}")
    if "ground" not in entry and classes.ground is None:
        raise ValueError(f"network {entry['network']!r} has no background; name the class around the shapes by ground")
    around = entry.get("ground", classes.background)
    if classes.find(around) in map(classes.find, entry["shapes"].values()):
        raise ValueError(f"a shape cannot be {around!r}, which is around it; choose another class")


def check_format(entry: dict) -> None:
    """Refuse parts of an image set that do not fit its format."""
    kind = entry.get("format", "voc")
    for part in entry["parts"]:
        if kind in ("voc", "coco") and "list" not in part:
            wanted = "file with the ids of its images" if kind == "voc" else "JSON file with its annotations"
            raise ValueError(f"format {kind} needs a `list`, the {wanted}, in every part")
        if (kind == "masks") != ("masks" in part):
            raise ValueError("`masks` is the folder of label maps of every part of format masks, and of no other")


def check_labels(config: dict, network: str, settings: dict, attack: str) -> None:
    """Refuse absent classes as adversarial labels where there is only one class."""
    entry = config["networks"][network]
    classes, task = classes_of(config, entry), entry["task"]
    rule = settings.get("options", {}).get("labels", "absent" if settings["rules"] == "authors" else "derangement")
    if settings.get("objective", "dag") == "dag" and rule == "absent" and len(classes.foreground) < 2:
        raise ValueError(
            f"{attack}: adversarial labels are absent classes, and {network!r} knows "
            f"{' and '.join(classes.names[label] for label in classes.foreground)} alone; set attacks.{task}.rules: "
            f"algorithm-1, or attacks.{task}.options: {{labels: derangement}}"
        )
