"""Derived from a checked configuration: the perturbations that each victim sees, shards, sources, products.

Pure functions; nothing here reads an image, a weight or a result.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from dag.workflow.names import DRAWN, parse

# End of the message of a job that fails because of one image, see `advice`; followed by the shard if it is another one.
OF_ONE_IMAGE = "This concerns one image: the shard can be given up."
# Tables that are always made.
ABOUT = ("claims", "perceptibility", "self_tests", "statuses")


def product(config: dict, name: str) -> dict:
    """Table or figure by name."""
    return (config["tables"] | config["figures"])[name]


def of_kind(config: dict, *kinds: str) -> list[str]:
    """Names of all figures of these kinds."""
    return [name for name, entry in config["figures"].items() if entry["kind"] in kinds]


def one_of(names: Iterable[str]) -> str:
    """Pattern that matches these names and nothing else; of no names, one that never matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End of a sentence on an unknown name, "; did you mean 'table1'?", or "" if none is similar."""
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {similar[0]!r}?" if similar else ""


def unknown_target(config: dict, name: str) -> str:
    """Message about an unknown target of Snakemake."""
    targets = ["all", *config["tables"], *config["figures"]]
    return f"{name!r} is no table or figure; there are {', '.join(targets)}{did_you_mean(name, targets)}"


def pixels(config: dict, entry: dict) -> list[str]:
    """How perturbed images reach the victims of a table or figure."""
    return entry.get("pixels", config["pixels"])


def victims(entry: dict) -> list[str]:
    """Networks that a table or figure evaluates, in order."""
    if "victims" in entry:
        return entry["victims"]
    if "panels" in entry:
        return list(dict.fromkeys(victim for panel in entry["panels"] for victim in panel["victims"]))
    if "networks" in entry or entry.get("layout") == "white-box":
        return list(dict.fromkeys(network_of(source) for source in named(entry)))
    return []


def rows(entry: dict) -> list[str]:
    """Perturbations that a table or figure shows, in order: those named and those that it derives from them."""
    perturbations = named(entry)
    if "networks" in entry:
        return ["none", *perturbations]
    if entry.get("layout") == "white-box":
        return ["none", *(row for source in perturbations for row in (source, f"{source}.permuted"))]
    scaled = [scaled_to(row, p) for row in perturbations for p in entry.get("perceptibilities", [])]
    controls = [f"{row}.{control}" for row in perturbations for control in entry.get("controls", [])]
    return [*perturbations, *scaled, *controls]


def named(entry: dict) -> list[str]:
    """Perturbations that the entry of a table or figure names, in order."""
    if "panels" in entry:
        return list(dict.fromkeys(panel["perturbation"] for panel in entry["panels"]))
    if "networks" in entry:
        return [f"{network}@{variant}" for network in entry["networks"] for variant in entry["variants"]]
    return entry.get("perturbations", entry.get("sources", []))


def scaled_to(row: str, perceptibility: int) -> str:
    """Name of a perturbation, or of its control, scaled to a perceptibility in 10⁻³."""
    return str(replace(parse(row), scale=perceptibility))


def pairs(entry: dict) -> Iterator[tuple[str, str]]:
    """(perturbation as written, victim) pairs that a table or figure needs."""
    if "panels" in entry:
        for panel in entry["panels"]:
            for victim in panel["victims"]:
                yield "none", victim
                yield panel["perturbation"], victim
    elif "networks" in entry or entry.get("layout") == "white-box":
        controls = ["permuted"] if entry.get("layout") == "white-box" else []
        for source in named(entry):
            for row in ("none", *drawn(entry, source), *(f"{source}.{control}" for control in controls)):
                yield row, network_of(source)
    else:
        for row in rows(entry):
            for victim in victims(entry):
                yield row, victim


def drawn(entry: dict, source: str) -> list[str]:
    """A source and the repetitions of its attack, if a table asks for `draws`."""
    return [source, *(f"{source}.{DRAWN}-{draw}" for draw in range(2, entry.get("draws", 1) + 1))]


def repeated(entry: dict) -> dict[str, dict[str, list[str]]]:
    """{network: {source: draws}} of a table that asks for several draws of every attack."""
    found: dict[str, dict[str, list[str]]] = {}
    for source in named(entry) if "draws" in entry else []:
        found.setdefault(network_of(source), {})[source] = drawn(entry, source)
    return found


def shown_pairs(entry: dict) -> list[tuple[str, str]]:
    """(perturbation as written, victim) pairs that a figure shows: without the clean images and added controls."""
    added = {f"{row}.{control}" for row in named(entry) for control in entry.get("controls", [])}
    return [(row, victim) for row, victim in dict.fromkeys(pairs(entry)) if row != "none" and row not in added]


def bases(entry: dict) -> dict[str, str]:
    """{perturbation: the one that it was scaled from, or itself} of a figure with `perceptibilities`."""
    scaled = {scaled_to(row, p): row for row in named(entry) for p in entry.get("perceptibilities", [])}
    return {row: row for row in named(entry)} | scaled


def products(config: dict) -> dict[str, dict]:
    """The tables and figures that `all` makes, by name."""
    return {name: product(config, name) for name in config["products"]}


def draws(row: str, permutations: int) -> list[str]:
    """Perturbations behind a row: the draws of a control, or just itself."""
    if parse(row).is_mean:
        return [f"{row}-{draw}" for draw in range(1, permutations + 1)]
    return [row]


def image_set_of(entry: dict, network: str) -> str:
    """Image set on which a table or figure shows a network: one for all, or one of its own."""
    return entry.get("other_image_sets", {}).get(network, entry["image_set"])


def image_sets(entry: dict) -> list[str]:
    """Image sets on which the victims of a table or figure are evaluated, in order of first appearance."""
    return list(dict.fromkeys(image_set_of(entry, victim) for victim in victims(entry)))


def shown(entry: dict) -> dict[str, list[str]]:
    """Victims that see each perturbation of a figure, in order."""
    seen: dict[str, list[str]] = {}
    for row, victim in shown_pairs(entry):
        seen.setdefault(row, []).append(victim)
    return seen


def cells(entry: dict, image_set: str, permutations: int) -> dict[str, list[str]]:
    """Perturbations that each victim on an image set has to see, in order of first appearance.

    `none` is always first: every score is reported with its drop from the clean image.
    """
    needed: dict[str, dict] = {}
    for row, victim in pairs(entry):
        if image_set_of(entry, victim) == image_set:
            needed.setdefault(victim, {"none": None}).update(dict.fromkeys(draws(row, permutations)))
    return {victim: list(names) for victim, names in needed.items()}


def source_sets(entry: dict) -> list[tuple[str, str]]:
    """(source, image set) pairs that a table or figure is made of, in order of first appearance."""
    if not victims(entry):
        return [(source, image_set_of(entry, network_of(source))) for source in rows(entry)]
    found = {}
    for row, victim in pairs(entry):
        for source in parse(row).sources:
            found[source, image_set_of(entry, victim)] = None
    return list(found)


def all_source_sets(config: dict) -> list[tuple[str, str]]:
    """(source, image set) pairs that `all` needs."""
    return list(dict.fromkeys(pair for entry in products(config).values() for pair in source_sets(entry)))


def planted_sources(config: dict) -> dict[tuple[str, str], list[str]]:
    """Sources of `all` that are tested with planted examples, by network and image set; see `dag.attack.planted`.

    They run on the engine, on one network, within a budget, and without diversity, which moves the pixels that a
    readout belongs to.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for source, image_set in all_source_sets(config):
        settings = attack(config, source)
        each = settings.get("worst_of", [settings])
        outside = any(one.get(key) for one in each for key in ("function", "perturbation", "ensemble", "diversity"))
        if each[0].get("budget") and not outside and "ensemble" not in settings and shards(config, image_set):
            found.setdefault((network_of(source), image_set), []).append(source)
    return found


def further_draws(config: dict) -> list[tuple[str, str]]:
    """(draw of a source, image set) pairs that `all` needs beside these."""
    found = {}
    for entry in products(config).values():
        for source, draws in (item for of in repeated(entry).values() for item in of.items()):
            found |= dict.fromkeys((draw, image_set_of(entry, network_of(source))) for draw in draws[1:])
    return list(found)


def used_image_sets(config: dict) -> set[str]:
    """Image sets that `all` attacks, evaluates on, or starts shaped examples from."""
    entries = products(config).values()
    used = {image_set for _, image_set in all_source_sets(config)}
    used |= {image_set for entry in entries for image_set in image_sets(entry)}
    return used | {entry["image_set"] for entry in entries if entry.get("kind") == "shapes"}


def networks(config: dict) -> list[str]:
    """Networks that `all` runs, in order of first appearance."""
    sources = [network_of(source) for source, _ in all_source_sets(config)]
    entries = products(config).values()
    shaped = [entry["network"] for entry in entries if entry.get("kind") == "shapes"]
    return list(dict.fromkeys([*sources, *(name for entry in entries for name in victims(entry)), *shaped]))


def trained_by(config: dict, key: str) -> list[str]:
    """Networks whose training names a `body` (those of the miniature) or a `recipe`."""
    return [name for name, entry in config["networks"].items() if key in entry.get("training", {})]


def training(config: dict, network: str) -> dict:
    """How a network is trained here."""
    return config["networks"][network]["training"]


def printed(config: dict, network: str) -> str:
    """Display name of a network, with a dagger if it substitutes another."""
    entry = config["networks"][network]
    return entry["label"] + ("†" if "substitute" in entry else "")


def printed_networks(config: dict, names: Iterable[str] | None = None) -> dict[str, dict]:
    """Display name and task of networks; default: of all."""
    return {
        name: {"label": printed(config, name), "task": config["networks"][name]["task"]}
        for name in (config["networks"] if names is None else names)
    }


def families(config: dict) -> dict[str, str]:
    """{network: family}; a network without `family` is a family of its own."""
    return {name: entry.get("family", name) for name, entry in config["networks"].items()}


def architectures(config: dict) -> dict[str, str]:
    """{network: function and arguments, with those of its defences}, whatever its weights."""
    return {
        name: " of ".join(
            f"{one.get('architecture') or one['defence']} {json.dumps(one.get('arguments', {}), sort_keys=True)}"
            for one in (config["networks"][part] for part in layered(config, name))
        )
        for name in config["networks"]
    }


def as_printed(config: dict) -> list[str]:
    """Variants that differ from the default attack by following Algorithm 1 as it is printed, and by nothing else."""
    return [name for name, changes in config["variants"].items() if changes == {"rules": "algorithm-1"}]


def layered(config: dict, network: str) -> list[str]:
    """A network followed by those that it is `of`, down to the one without a defence."""
    chain = [network]
    while "of" in (entry := config["networks"][chain[-1]]):
        chain.append(entry["of"])
    return chain


def defended(config: dict, names: Iterable[str] | None = None) -> list[str]:
    """Networks with a defence, among `names` or all."""
    return [name for name in (config["networks"] if names is None else names) if "of" in config["networks"][name]]


def defence(entry: dict) -> str:
    """Function of a network's defence; without a module it is one of `dag.networks.defences`."""
    return entry["defence"] if ":" in entry["defence"] else f"dag.networks.defences:{entry['defence']}"


def mentioned(entry: dict) -> list[str]:
    """Networks that a table or figure mentions, in order of their names."""
    return sorted({*victims(entry), *(network_of(source) for source, _ in source_sets(entry))})


def counts_pixels(settings: dict) -> bool:
    """Whether an attack weighs the classes by their pixels in the whole image set."""
    return any(each.get("objective") == "mce-bal" for each in settings.get("worst_of", [settings]))


def imported(settings: dict) -> list[str]:
    """Folders of the imported perturbations of an attack."""
    return [each["perturbation"] for each in settings.get("worst_of", [settings]) if "perturbation" in each]


def tasks(config: dict, networks: Iterable[str]) -> list[str]:
    """Tasks of networks, each once, in alphabetical order."""
    return sorted({config["networks"][network]["task"] for network in networks})


def network_of(source: str) -> str:
    """Network of a source "network" or "network@variant", or of a draw of it."""
    return re.split("[@.]", source)[0]


def attacked(config: dict, source: str) -> list[str]:
    """Networks that a source's attack uses: its own and the others of an ensemble."""
    return list(dict.fromkeys([network_of(source), *attack(config, source).get("ensemble", [])]))


def ensembles(config: dict, entry: dict) -> dict[str, list[str]]:
    """{perturbation: networks that it was made from} of what a table or figure shows and an ensemble takes part in."""
    found = {}
    for row in dict.fromkeys(row for row, _ in pairs(entry) if not parse(row).control):
        sources = parse(row).sources
        if any(len(attacked(config, source)) > 1 for source in sources):
            found[row] = list(dict.fromkeys(name for source in sources for name in attacked(config, source)))
    return found


def attack(config: dict, source: str) -> dict:
    """Settings of a source's attack: those of its task, changed by its variant, and the number of a further draw.

    Raises
    ------
    ValueError
        If the network or the variant is unknown.
    """
    source, _, draw = source.partition(f".{DRAWN}-")
    network, _, variant = source.partition("@")
    if network not in config["networks"]:
        raise ValueError(f"network {network!r} is not in networks{did_you_mean(network, config['networks'])}")
    if variant and variant not in config["variants"]:
        raise ValueError(f"variant {variant!r} is not in variants{did_you_mean(variant, config['variants'])}")
    task = config["networks"][network]["task"]
    settings, changes = dict(config["attacks"][task]), config["variants"].get(variant, {})
    if changes.get("objective", "dag") != "dag":
        settings.pop("options", None)  # they change the rules of dag
    settings |= changes
    if "worst_of" in settings:
        if nested := [each for each in settings["worst_of"] if "worst_of" in config["variants"].get(each, {})]:
            raise ValueError(
                f"variant {variant!r} is the worst of {nested[0]!r}, which is itself one; name its members"
            )
        settings["worst_of"] = [attack(config, f"{network}@{each}") for each in settings["worst_of"]]
    return settings | ({"draw": int(draw)} if draw else {})


def shards(config: dict, image_set: str) -> list[str]:
    """Names of the shards of an image set, without those that are given up."""
    return [shard for shard in all_shards(config, image_set) if f"{image_set}/{shard}" not in config["given_up"]]


def given_up(config: dict, image_set: str) -> list[str]:
    """Names of the shards of an image set that are given up."""
    return [shard for shard in all_shards(config, image_set) if f"{image_set}/{shard}" in config["given_up"]]


def advice(log: str, config: dict, read: Callable[[str], str]) -> str:
    """What to do after a run in which jobs failed.

    Parameters
    ----------
    log : str
        What Snakemake logged.
    config : dict
    read : callable
        Text of the log file of a job.
    """
    text = (
        "Jobs have failed; each said why above and in its file below logs/. "
        "Mend that and start the same command again: what is finished is kept."
    )
    failed = dict.fromkeys(config["given_up"])
    for job in re.findall(r"^Error in rule (?:perturb|predict|check_images):$((?:\n +.*)*)", log, re.MULTILINE):
        said = dict(re.findall(r"^ +(output|log): (\S+)", job, re.MULTILINE))
        for shard in re.findall(f"^{OF_ONE_IMAGE} ?(\\S*)$", read(said["log"]), re.MULTILINE):
            failed[shard or _shard_of(Path(said["output"]))] = None
    # an image set must keep at least one image
    left = config | {"given_up": list(failed)}
    useful = [name for name in failed if shards(left, name.partition("/")[0])]
    if len(useful) > len(config["given_up"]):
        text += (
            " Or give up the shards whose images cannot be used; every table then says which images are missing: "
            f"--config 'given_up=[{', '.join(useful)}]'"
        )
    return text


def _shard_of(output: Path) -> str:
    """Image set/shard of {image_set}/perturbations/{source}/{shard}.h5 or cells/{product}/{image_set}/{shard}.json."""
    image_set = output.parts[-4] if output.suffix == ".h5" else output.parts[-2]
    return f"{image_set}/{output.stem}"


def all_shards(config: dict, image_set: str) -> list[str]:
    count = -(-config["image_sets"][image_set]["size"] // config["shard_size"])
    return [f"{shard:04d}" for shard in range(count)]
