"""Description of an experiment, derived from its configuration alone: the front page of a report.

Nothing is stated by hand: an experiment is a miniature if its images are made on this machine, and the origin of a
network's weights follows from its entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dag.report.wording import UNANNOTATED
from dag.workflow import plan
from dag.workflow.names import CONTROLS, DEFENCES, parse

# Badge, and what may be compared with the paper.
KINDS = {
    "miniature": (
        "Miniature",
        "Images and networks were made and trained on this machine, in minutes. Phenomena of the paper can be seen; no "
        "number here may be compared with a number of the paper.",
    ),
    "pocket": (
        "Pocket",
        "Small networks trained by others, on a sample of PASCAL VOC. They are not the networks of the paper; "
        "phenomena may be compared, numbers may not.",
    ),
    "paper": (
        "Paper",
        "The paper's networks (substitutes are marked with a dagger) on the paper's images. Values that the paper "
        "gives are shown beside ours.",
    ),
    "substitutes": (
        "Substitutes",
        "Other networks than the paper's, on the paper's images. Phenomena may be compared, numbers may not.",
    ),
    "own": (
        "Own experiment",
        "Networks and images of a configuration of its own. Numbers may be compared with those of the paper only where "
        "networks, images and attack are the same.",
    ),
}

RULES = {
    ("algorithm-1", "segmentation"): (
        "Algorithm 1 as the paper prints it: every foreground pixel that is still labelled correctly is pushed from "
        "its true class towards a wrong one (classes are shuffled once per image); it ends when no pixel is left."
    ),
    ("algorithm-1", "detection"): (
        "Algorithm 1 as the paper prints it: every proposal whose most probable class is still the true one is pushed "
        "from it towards a wrong one (classes are shuffled once per image); it ends when no proposal is left, though "
        "the true class may well be second."
    ),
    ("authors", "segmentation"): (
        "The rules of the authors' code: every pixel that has not reached its wrong class, one that is absent from the "
        "image, is pushed towards it, and background is pushed to stay background; it ends when at most 1 % of the "
        "foreground pixels are left."
    ),
    ("authors", "detection"): (
        "The rules of the authors' code: every proposal is pushed towards a class that is absent from the image, and "
        "one that got there counts as moved only if that class scores at least 0.8 after suppression of overlaps (IoU "
        "0.35); so the attack goes on after the label has flipped, and average precision falls further."
    ),
}


# Source of the ground truth, if not VOC's own files.
FORMATS = {
    "voc": "",
    "coco": ", annotated in COCO's form",
    "masks": ", with label maps",
    "images": ", without annotations: " + UNANNOTATED.partition("; ")[2],
}

# What each objective other than Dense Adversary Generation maximises, at all targets at once.
OBJECTIVES = {
    "ce": "the cross-entropy (PGD)",
    "segpgd": "the cross-entropy, first of correct and then more and more of wrong pixels (SegPGD)",
    "cospgd": "the cross-entropy, weighted with the cosine of softmax and label (CosPGD)",
    "mce": "the cross-entropy of the targets that are still correct",
    "mce-bal": "the cross-entropy of the targets that are still correct, every class weighted by its inverse frequency",
    "js": "the Jensen-Shannon divergence of softmax and label",
    "tsallis": "the Tsallis cross-entropy, q from -2 to 1",
    "margin": "the margin of the best wrong class over the true one",
    "targeted": "the log-probability of the adversarial label",
    "vanishing": "the log-probability that no proposal is an object (TOG)",
    "fabrication": "the log-probability that every proposal is an object (TOG)",
}

_CHECKSUMS = ("sha256", "sha256_prefix", "sha1", "md5")

_SETTINGS = {
    "eps": "{budget} norm at most {eps}",
    "ensemble": "sum of the losses with {ensemble}",
    "targets": "targets: {targets}",
    "steps": "update rule {steps}",
    "step": "step size {step}",
    "iterations": "at most {iterations} iterations",
    "start": "{start} start",
    "stop": "stop: {stop}",
    "keep": "{keep} iterate kept",
    "smooth": "gradients smoothed over {smooth} pixels",
    "diversity": "gradients of images resized and padded at random with probability {diversity}",
    "scales": "gradients of {scales} scales",
    "stages": "stages (multiple of eps, share of the iterations) {stages}",
    "nms": "proposals suppressed above IoU {nms}",
    "limit": "at most {limit} proposals",
    "overlap": "targets overlap an object by IoU > {overlap}",
    "confidence": "and give its class a score > {confidence}",
    "precision": "gradients in {precision}",
}


def with_kind(config: dict) -> dict:
    """The configuration with the kind of the experiment filled in.

    The default is "miniature" if all images are made on this machine, else "own".

    Raises
    ------
    ValueError
        If an experiment on images made here calls itself anything but a miniature, or the reverse.
    """
    made = {name: config["image_sets"][name].get("made_by") == "mini" for name in image_sets(config)}
    kind = config["kind"] or ("miniature" if all(made.values()) else "own")
    for name, is_made in made.items():
        if is_made != (kind == "miniature"):
            raise ValueError(
                f"configuration, kind: {kind!r}, but the images of {name} are {'' if is_made else 'not '}made on this "
                "machine; a miniature is what has such images alone; take `kind` out or the image set"
            )
    return {**config, "kind": kind}


def image_sets(config: dict) -> list[str]:
    """Image sets that `all` attacks or evaluates, in order of first appearance."""
    evaluated = [name for entry in plan.products(config).values() for name in plan.image_sets(entry)]
    return list(dict.fromkeys([*evaluated, *(name for _, name in plan.all_source_sets(config))]))


def badge(config: dict) -> str:
    """Badge of an experiment, e.g. "Miniature"."""
    return KINDS[config["kind"]][0]


def titled(config: dict, entry: dict) -> str:
    """Title of a table with the badge of the experiment, so that a miniature's is not taken for the paper's."""
    return f"{entry['title']} ({badge(config)})"


def notice(config: dict, image_set: str) -> str:
    """Badge and description of the experiment, with missing images and image sets without ground truth."""
    missing = ", ".join(config["given_up"])
    text = f"{badge(config)}. {config['description']}"
    text += f"\n\nWithout the images of the shards {missing}, given up." if missing else ""
    unannotated = config["image_sets"][image_set].get("format") == "images"
    return text + (f"\n\n{UNANNOTATED.capitalize()}." if unannotated else "")


def caption(config: dict, product: str, folder: Path) -> str:
    """Caption of a figure in Snakemake's own report, by its name or else its kind; "" if there is none."""
    kind = plan.product(config, product).get("kind")
    files = [folder / f"{stem}.rst" for stem in (product, kind) if kind]
    return next((file.read_text() for file in files if file.is_file()), "")


def labels(config: dict, entry: dict) -> dict[str, str]:
    """Display names of the networks in a table or figure."""
    return {name: plan.printed(config, name) for name in plan.mentioned(entry)}


def notes(config: dict, entry: dict) -> dict[str, str]:
    """Footnotes on networks in a table or figure, by display name: see `note`."""
    found = {plan.printed(config, name): note(config, name) for name in plan.mentioned(entry)}
    for source, _ in plan.source_sets(entry):
        if len(networks := plan.attacked(config, source)) > 1:
            names = " and ".join(plan.printed(config, name) for name in networks)
            found[source.partition("@")[2]] = f"made from {names} at once, on the sum of their losses."
    return {name: text for name, text in found.items() if text}


def note(config: dict, network: str) -> str:
    """What a network substitutes, and its defences in the order of application; "" without either."""
    *defended, base = plan.layered(config, network)
    parts = [config["networks"][network].get("substitute", "")]
    if defended:
        words = [_defence(config["networks"][name]) for name in defended]
        parts.append(f"{plan.printed(config, base)}, which sees images {', then '.join(words)}.")
    return " ".join(part for part in parts if part)


def _defence(entry: Mapping) -> str:
    arguments = entry.get("arguments", {})
    if entry["defence"] in DEFENCES:
        return DEFENCES[entry["defence"]].format(**arguments)
    told = ", ".join(f"{key} {value}" for key, value in arguments.items())
    return f"through {entry['defence']}" + (f" ({told})" if told else "")


def kin(config: dict, entry: dict) -> dict[str, dict]:
    """Relations of the networks in a table or figure, with their display names and tasks.

    A network without a lineage forms one of its own.
    """
    families, networks = plan.families(config), config["networks"]
    return {
        name: printed
        | {
            "family": families[name],
            "lineage": networks[name].get("lineage", name),
            "parent": networks[name].get("parent"),
            "arguments": networks[plan.layered(config, name)[-1]].get("arguments", {}),  # not those of a defence
        }
        for name, printed in plan.printed_networks(config, plan.mentioned(entry)).items()
    }


def experiment(config: dict) -> dict:
    """The facts of an experiment, as text and numbers.

    Parameters
    ----------
    config : dict
        A checked configuration, see `with_kind`.

    Returns
    -------
    dict
        name, title, description (list of paragraphs), kind, badge, meaning, seed, permutations, bootstrap,
        images and networks (one dict each, by name), weights (where they come from -> labels of networks),
        attacks (one dict per task and per variant in use), pixels (names), controls and not_verified (sentences).
    """
    networks = {name: _network(config, name) for name in plan.networks(config)}
    weights: dict[str, list[str]] = {}
    for entry in networks.values():
        weights.setdefault(entry["weights"], []).append(entry["label"])
    products = plan.products(config).values()
    pixels = [name for entry in products for name in entry.get("pixels", config["pixels"])]
    controls = {parse(row).control for entry in products for row in plan.rows(entry)}
    return {
        "name": config["experiment"],
        "title": config["title"],
        "description": [text for text in config["description"].split("\n\n") if text],
        "kind": config["kind"],
        "badge": badge(config),
        "meaning": KINDS[config["kind"]][1],
        "seed": config["seed"],
        "permutations": config["permutations"],
        "bootstrap": config["bootstrap"],
        "images": {name: _image_set(config, name) for name in image_sets(config)},
        "networks": networks,
        "weights": weights,
        "attacks": _attacks(config),
        "pixels": list(dict.fromkeys(pixels)),
        "controls": [text for name, text in CONTROLS.items() if name in controls],
        "not_verified": [*config["not_verified"], *_unverified(config, networks)],
    }


def _image_set(config: dict, name: str) -> dict:
    """Number and origin of the images of an image set."""
    entry, size = config["image_sets"][name], config["shard_size"]
    lost = sum(min(size, entry["size"] - int(shard) * size) for shard in plan.given_up(config, name))
    if entry.get("made_by") == "mini":
        origin = f"made on this machine from seed {config['mini']['test']['seed']}"
    else:
        folders = dict.fromkeys(part["root"] for part in entry["parts"])
        years = [
            f"PASCAL {folder[6:]}" if folder.startswith("{voc}/VOC") else "images of one's own" for folder in folders
        ]
        origin = " and ".join(dict.fromkeys(years)) + FORMATS[entry.get("format", "voc")]
        if config["voc"] and all(part["root"].startswith("{voc}/") for part in entry["parts"]):
            origin += ", from a folder named by the user"
    return {"images": entry["size"] - lost, "given_up": lost, "origin": origin}


def _network(config: dict, name: str) -> dict:
    """Label, task, family, part and weights of a network."""
    entry = config["networks"][name]
    sources = {plan.network_of(source) for source, _ in plan.all_source_sets(config)}
    victims = {victim for product in plan.products(config).values() for victim in plan.victims(product)}
    parts = [part for part, names in (("source", sources), ("victim", victims)) if name in names]
    return {
        "label": plan.printed(config, name),
        "task": entry["task"],
        "family": plan.families(config)[name],
        "architecture": plan.architectures(config)[name],
        "part": " and ".join(parts),
        "weights": _weights(config, config["networks"][plan.layered(config, name)[-1]]),
        "substitute": entry.get("substitute", ""),
        "note": note(config, name),
    }


def _weights(config: dict, entry: Mapping) -> str:
    """Where the weights of a network come from."""
    if "recipe" in entry.get("training", {}):
        return "trained here by the published recipe"
    if "training" in entry:
        return "trained here, from seeds, on images made here"
    files = list(entry["files"].values())
    if not files:
        return "no file: as the function that makes the network leaves them"
    if any(file not in config["downloads"] for file in files):
        return "files of one's own"
    known = all(_has_checksum(config["downloads"], file) for file in files)
    return "published files, checksums verified" if known else "published files without a published checksum"


def _has_checksum(downloads: Mapping, file: str) -> bool:
    entry = downloads[file]
    return any(entry.get(key) for key in _CHECKSUMS) or (
        "archive" in entry and _has_checksum(downloads, entry["archive"])
    )


def _attacks(config: dict) -> list[dict]:
    """The attack of every task that has sources, then the variants that are used, once where tasks say the same."""
    found: dict[tuple[str, str], dict] = {}
    for source, _ in plan.all_source_sets(config):
        network, _, variant = source.partition("@")
        task = config["networks"][network]["task"]
        found.setdefault((variant, task), plan.attack(config, source))
    attacks = []
    for (variant, task), settings in sorted(
        found.items(), key=lambda item: (item[0][0] != "", item[0][1] != "segmentation")
    ):
        changes = config["variants"].get(variant, {}) if variant else settings
        objective, members = settings.get("objective", "dag"), config["variants"].get(variant, {}).get("worst_of", [])
        text = RULES[settings["rules"], task] if "rules" in changes and objective == "dag" else ""
        if objective != "dag":
            text = f"Maximises {OBJECTIVES[objective]}."
        elif members:
            text = f"On every image the one of {', '.join(members)} that leaves the fewest targets correct."
        elif "perturbation" in settings:
            text = f"Imported perturbations, read from {settings['perturbation']}."
        words = settings | {key: _grey_levels(settings[key]) for key in ("step", "eps") if key in settings}
        words["budget"] = {"linf": "L∞", "l2": "L2"}.get(settings.get("budget"))
        words["ensemble"] = ", ".join(plan.printed(config, name) for name in settings.get("ensemble", []))
        said = {
            "text": text,
            "settings": ", ".join(text.format(**words) for key, text in _SETTINGS.items() if key in changes),
            "options": ", ".join(f"{key}: {value}" for key, value in changes.get("options", {}).items()),
        }
        same = next((one for one in attacks if one["variant"] == variant != "" and one.items() >= said.items()), None)
        if same:
            same["task"] += f" and {task}"
            continue
        attacks.append(said | {"task": task, "variant": variant})
    return attacks


def _grey_levels(value: float) -> str:
    return f"{value:g} grey level{'s' * (value != 1)}"


def _is_dag(settings: Mapping) -> bool:
    """Whether an attack is Dense Adversary Generation, whatever its rules and its budget."""
    return settings.get("objective", "dag") == "dag" and not settings.keys() & {"worst_of", "function", "perturbation"}


def _unverified(config: dict, networks: Mapping[str, Mapping]) -> list[str]:
    """Statements that are unverified, as far as the configuration shows."""
    sentences = []
    unknown = [entry["label"] for entry in networks.values() if "without a published checksum" in entry["weights"]]
    if unknown:
        sentences.append(
            f"That the weight files of {', '.join(unknown)} are the published ones: no checksum of them is known."
        )
    substitutes = [entry["label"] for entry in networks.values() if entry["substitute"]]
    if substitutes:
        sentences.append(
            f"That substitutes behave as the networks that they stand for: {', '.join(substitutes)}, see the networks."
        )
    if any(_is_dag(plan.attack(config, source)) for source, _ in plan.all_source_sets(config)):
        repeated = [name for name, entry in plan.products(config).items() if "draws" in entry]
        but = f", several in {', '.join(repeated)}" if repeated else ""
        sentences.append(
            f"What other adversarial labels would give: each image has one draw of them{but}, and the standard errors "
            f"come from the images alone{' elsewhere' if repeated else ''}."
        )
    lost = [name for name in image_sets(config) if plan.given_up(config, name)]
    if lost:
        shards = ", ".join(f"{name}/{shard}" for name in lost for shard in plan.given_up(config, name))
        sentences.append(f"What the images of the shards {shards} would change: they were given up.")
    return sentences
