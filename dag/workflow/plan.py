"""Pure functions over the configuration: is it sound, and what follows from it.

The workflow asks these functions which perturbations each victim has to see; nothing here reads
an image, a weight or a result.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import jsonschema
import yaml

from dag.data import voc
from dag.workflow.names import PerturbationName, check_pixels, parse

RESERVED = ("all", "claims", "perceptibility", "statuses")


def check(config: dict, schema: Path) -> None:
    """Refuse a configuration that cannot be run.

    Raises
    ------
    ValueError
        One sentence: an unknown key, a wrong type, an unknown network, perturbation, image set, or a
        table that cannot be made.
    """
    validator = jsonschema.Draft202012Validator(yaml.safe_load(schema.read_text()))
    errors = sorted(validator.iter_errors(config), key=lambda error: len(error.absolute_path), reverse=True)
    if errors:
        error = jsonschema.exceptions.best_match(errors)
        place = ".".join(str(part) for part in error.absolute_path) or "top level"
        raise ValueError(f"configuration, {place}: {_plain(error)}")
    for name in config["targets"]:
        if name not in config["tables"] and name not in config["figures"]:
            raise ValueError(f"configuration, targets: {name!r} is neither a table nor a figure")
    for name, entry in config["networks"].items():
        for file in entry.get("files", {}).values():
            if file not in config["downloads"] and "/" not in file:
                raise ValueError(
                    f"configuration, networks.{name}: file {file!r} is not in downloads; "
                    f"a file of your own is given by its path, ./{file} for one in the working directory"
                )
        if "training" in entry:
            _check_training(config, name)
    for file, entry in config["downloads"].items():
        if "archive" in entry and "urls" not in config["downloads"].get(entry["archive"], {}):
            raise ValueError(
                f"configuration, downloads.{file}: archive {entry['archive']!r} is not an entry of downloads with urls"
            )
    if "none" in config["networks"]:
        raise ValueError("configuration, networks: 'none' means the clean image; give the network another name")
    for name in (*config["tables"], *config["figures"]):
        if name in RESERVED:
            raise ValueError(f"configuration, {name}: this name is taken by what is always made; choose another")
    for name in config["figures"]:
        if name in config["tables"]:
            raise ValueError(f"configuration, figures.{name}: a table has this name as well; rename one of them")
    _check_pixels("pixels", config)
    for kind in ("tables", "figures"):
        for name, entry in config[kind].items():
            _check_pixels(f"{kind}.{name}.pixels", entry)
            _check_product(config, f"{kind}.{name}", entry)
    for entry in config["given_up"]:
        image_set, _, shard = entry.partition("/")
        if image_set not in config["image_sets"] or shard not in _all_shards(config, image_set):
            raise ValueError(f"configuration, given_up: there is no shard {entry}; write image set/shard")
        if not shards(config, image_set):
            raise ValueError(f"configuration, given_up: no shard of {image_set} is left; take one out of the list")


def _check_pixels(place: str, entry: dict) -> None:
    """Refuse pixels that no job makes."""
    for pixels in entry.get("pixels", []):
        try:
            check_pixels(pixels)
        except ValueError as error:
            raise ValueError(f"configuration, {place}: {error}") from error


def _check_training(config: dict, name: str) -> None:
    """Refuse a training whose body, recipe, images or initial weights do not exist."""
    place, entry = f"configuration, networks.{name}", config["networks"][name]
    training = entry["training"]
    if "body" in training:
        if training["body"] not in config["bodies"]:
            raise ValueError(f"{place}: body {training['body']!r} is not in bodies")
        return
    if training["recipe"] not in config["recipes"]:
        raise ValueError(f"{place}: recipe {training['recipe']!r} is not in recipes")
    task = config["recipes"][training["recipe"]]["task"]
    if task != entry["task"]:
        raise ValueError(f"{place}: recipe {training['recipe']!r} is for {task}, the network for {entry['task']}")
    if training["image_set"] not in config["image_sets"]:
        raise ValueError(f"{place}: image set {training['image_set']!r} is not in image_sets")
    initial, stages = training["initial"], {name}
    if isinstance(initial, str) and initial not in config["downloads"] and "/" not in initial:
        raise ValueError(f"{place}: initial weights {initial!r} are not in downloads")
    while isinstance(initial, dict):
        stage = initial["network"]
        if "recipe" not in config["networks"].get(stage, {}).get("training", {}):
            raise ValueError(f"{place}: initial network {stage!r} is not a network that a recipe trains")
        if stage in stages:
            raise ValueError(f"{place}: it starts from {stage!r}, which starts from it; name a file for one of them")
        stages.add(stage)
        initial = config["networks"][stage]["training"]["initial"]


def _plain(error: jsonschema.ValidationError) -> str:
    """A jsonschema error in words that do not need the schema."""
    if error.validator == "additionalProperties":
        known = ", ".join(sorted(error.schema.get("properties", {}))) or "names of another form"
        unknown = sorted(set(error.instance) - set(error.schema.get("properties", {})))
        return f"unknown key {unknown[0]!r}; known keys are {known}"
    if error.validator == "oneOf" and all("required" in option for option in error.validator_value):
        return f"give exactly one of {' and '.join(option['required'][0] for option in error.validator_value)}"
    if error.validator == "contains":
        return f"{error.instance!r} must contain {error.validator_value['const']!r}"
    return error.message


def _check_product(config: dict, place: str, entry: dict) -> None:
    others = entry.get("other_image_sets", {})
    if others and entry.get("kind") == "gallery":
        raise ValueError(f"configuration, {place}: a gallery shows one image set; make one gallery for each")
    for image_set in (entry["image_set"], *others.values()):
        if image_set not in config["image_sets"]:
            raise ValueError(f"configuration, {place}: image set {image_set!r} is not in image_sets")
        if config["image_sets"][image_set].get("repeated"):
            raise ValueError(
                f"configuration, {place}: image set {image_set!r} may list an image twice; it is for training alone"
            )
    for network in others:
        if network not in config["networks"]:
            raise ValueError(f"configuration, {place}: network {network!r} is not in networks")
    for victim in victims(entry):
        if victim not in config["networks"]:
            raise ValueError(f"configuration, {place}: network {victim!r} is not in networks")
    _check_choice(place, entry)
    if entry.get("kind") == "shapes":
        network = entry["network"]
        if network not in config["networks"]:
            raise ValueError(f"configuration, {place}: network {network!r} is not in networks")
        if config["networks"][network]["task"] != "segmentation":
            raise ValueError(f"configuration, {place}: network {network!r} labels no pixels; name one for segmentation")
    for row in _named(entry):
        try:
            _check_row(config, entry.get("kind", entry.get("layout")), row)
        except ValueError as error:
            raise ValueError(f"configuration, {place}: perturbation {row!r}: {error}") from error
    _check_paper(place, entry)


def _check_choice(place: str, entry: dict) -> None:
    """Refuse a way to choose images, or an arrangement, that does not fit the rest of a figure."""
    if "choose" in entry and entry["kind"] != "examples":
        raise ValueError(
            f"configuration, {place}: choose is for examples, whose victims have clean scores; leave it out"
        )
    if entry.get("choose") == "clean" and not isinstance(entry.get("images"), int):
        raise ValueError(f"configuration, {place}: choose has no say in images that are named; give their number")
    if entry.get("arrangement") == "rows":
        for panel in entry.get("panels", []):
            if len(panel["victims"]) > 1:
                raise ValueError(
                    f"configuration, {place}: a panel of the arrangement rows has one victim, "
                    f"not {len(panel['victims'])}; make a panel for each, or choose another arrangement"
                )


def _check_paper(place: str, entry: dict) -> None:
    """Refuse values of the paper that no cell of a table would show."""
    white_box = entry.get("layout") == "white-box"
    known_rows = entry["sources"] if white_box else rows(entry)
    known_columns = ("ORIG", "ADVR", "PERM", "p") if white_box else (*victims(entry), "p")
    for row, columns in entry.get("paper", {}).items():
        if row not in known_rows:
            raise ValueError(f"configuration, {place}: paper names the row {row!r}, which the table does not have")
        for column in columns:
            if column not in known_columns:
                raise ValueError(
                    f"configuration, {place}: paper names the column {column!r} in row {row!r}; "
                    f"known are {', '.join(known_columns)}"
                )


def _check_row(config: dict, kind: str, row: str) -> None:
    """Refuse a perturbation that no rule makes, or that a figure of this kind cannot show."""
    recipe = parse(row)
    for source in recipe.sources:
        attack(config, source)
    if recipe.draw > config["permutations"]:
        raise ValueError(f"there are only {config['permutations']} draws, see permutations")
    if kind in ("examples", "gallery") and (recipe.is_mean or not recipe.sources):
        raise ValueError("a panel shows one perturbation; name a source, a sum, or one draw of a control")
    if kind in ("density", "convergence", "matrix", "white-box") and (
        recipe != PerturbationName(recipe.sources) or len(recipe.sources) != 1
    ):
        raise ValueError("only sources are shown here; name one, without a sum, a scale or a control")
    if kind == "strength" and (recipe.scale or not recipe.sources):
        raise ValueError("the figure scales a source, a sum, or a control of these; name one, without .p-")
    if kind == "intervals" and (recipe.control or not recipe.sources):
        raise ValueError("the figure adds the controls itself; name a source or a sum")


def victims(entry: dict) -> list[str]:
    """Networks that a table or figure evaluates, in order."""
    if "victims" in entry:
        return entry["victims"]
    if "panels" in entry:
        return list(dict.fromkeys(victim for panel in entry["panels"] for victim in panel["victims"]))
    if entry.get("layout") == "white-box":
        return list(dict.fromkeys(network_of(source) for source in entry["sources"]))
    return []


def rows(entry: dict) -> list[str]:
    """Perturbations that a table or figure shows, in order: as named, and what it makes of them."""
    named = _named(entry)
    if entry.get("layout") == "white-box":
        return ["none", *(row for source in named for row in (source, f"{source}.permuted"))]
    scaled = [scaled_to(row, strength) for row in named for strength in entry.get("strengths", [])]
    controls = [f"{row}.{control}" for row in named for control in entry.get("controls", [])]
    return [*named, *scaled, *controls]


def _named(entry: dict) -> list[str]:
    """Perturbations that the entry of a table or figure names, in order."""
    if "panels" in entry:
        return list(dict.fromkeys(panel["perturbation"] for panel in entry["panels"]))
    return entry.get("perturbations", entry.get("sources", []))


def scaled_to(row: str, strength: int) -> str:
    """Name of a perturbation, or of its control, scaled to a perceptibility in 10⁻³."""
    return str(replace(parse(row), scale=strength))


def pairs(entry: dict) -> Iterator[tuple[str, str]]:
    """(perturbation as written, victim) pairs that a table or figure needs."""
    if "panels" in entry:
        for panel in entry["panels"]:
            for victim in panel["victims"]:
                yield "none", victim
                yield panel["perturbation"], victim
    elif entry.get("layout") == "white-box":
        for source in entry["sources"]:
            for row in ("none", source, f"{source}.permuted"):
                yield row, network_of(source)
    else:
        for row in rows(entry):
            for victim in victims(entry):
                yield row, victim


def shown_pairs(entry: dict) -> list[tuple[str, str]]:
    """(perturbation as written, victim) pairs that a figure shows: without the clean images and added controls."""
    added = {f"{row}.{control}" for row in _named(entry) for control in entry.get("controls", [])}
    return [(row, victim) for row, victim in dict.fromkeys(pairs(entry)) if row != "none" and row not in added]


def bases(entry: dict) -> dict[str, str]:
    """What every perturbation of a figure with `strengths` was before it was scaled: the name itself if it was not."""
    scaled = {scaled_to(row, strength): row for row in _named(entry) for strength in entry.get("strengths", [])}
    return {row: row for row in _named(entry)} | scaled


def products(config: dict) -> dict[str, dict]:
    """The tables and figures that `all` makes, by name."""
    return {name: (config["tables"] | config["figures"])[name] for name in config["targets"]}


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


def without_nulls(config: dict) -> dict:
    """The configuration without what is null in `networks`: so an overlay takes away `files` or one of `arguments`."""
    return {**config, "networks": _without_nulls(config.get("networks", {}))}


def _without_nulls(mapping: dict) -> dict:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in mapping.items()
        if value is not None
    }


def networks(config: dict) -> list[str]:
    """Networks that `all` runs, in order of first appearance."""
    sources = [network_of(source) for source, _ in all_source_sets(config)]
    entries = products(config).values()
    shaped = [entry["network"] for entry in entries if entry.get("kind") == "shapes"]
    return list(dict.fromkeys([*sources, *(name for entry in entries for name in victims(entry)), *shaped]))


def with_local_voc(config: dict) -> dict:
    """The configuration with the image sets of a VOC folder that the user has named by `voc`.

    Such a folder is used as it is: its own lists say which images, and how many.  Image sets with a
    list that is derived by a rule keep their size and digest.

    Raises
    ------
    ValueError
        If the folder does not exist, or one of its lists that is needed.
    """
    if config["voc"] is None:
        return config
    if not Path(config["voc"]).is_dir():
        raise ValueError(
            f"configuration, voc: {config['voc']} is not a folder; name the one that holds VOC2007/ and VOC2012/"
        )
    sets = {}
    used = {image_set for _, image_set in all_source_sets(config)}
    used |= {image_set for entry in products(config).values() for image_set in image_sets(entry)}
    used |= {entry["image_set"] for entry in products(config).values() if entry.get("kind") == "shapes"}
    for name, entry in config["image_sets"].items():
        own = all(part["list"].startswith("{voc}/") for part in entry["parts"])
        lists = [Path(part["list"].format(voc=config["voc"])) for part in entry["parts"]]
        if own and (name in used or all(path.is_file() for path in lists)):
            entry = {**entry, "size": sum(len(voc.read_ids(path)) for path in lists), "sha256": None}
        sets[name] = entry
    return {**config, "image_sets": sets}


def network_of(source: str) -> str:
    """Network of a source "network" or "network@variant"."""
    return source.partition("@")[0]


def attack(config: dict, source: str) -> dict:
    """Settings of a source's attack: those of its task, changed by its variant.

    Raises
    ------
    ValueError
        If the network or the variant is unknown.
    """
    network, _, variant = source.partition("@")
    if network not in config["networks"]:
        raise ValueError(f"network {network!r} is not in networks")
    if variant and variant not in config["variants"]:
        raise ValueError(f"variant {variant!r} is not in variants")
    task = config["networks"][network]["task"]
    settings = config["attacks"][task] | config["variants"].get(variant, {})
    if task == "detection" and settings.get("precision") == "bf16":
        raise ValueError("precision bf16 is for segmentation, proposals need more digits; choose tf32 or fp32")
    return settings


def shards(config: dict, image_set: str) -> list[str]:
    """Names of the shards of an image set, without those that are given up."""
    return [shard for shard in _all_shards(config, image_set) if f"{image_set}/{shard}" not in config["given_up"]]


def given_up(config: dict, image_set: str) -> list[str]:
    """Names of the shards of an image set that are given up."""
    return [shard for shard in _all_shards(config, image_set) if f"{image_set}/{shard}" in config["given_up"]]


def advice(log: str, config: dict) -> str:
    """What to do after a run in which jobs failed, from what Snakemake logged."""
    text = (
        "Jobs have failed; each said why above and in its file below logs/. "
        "Mend that and start the same command again: what is finished is kept."
    )
    failed = re.findall(r"^Error in rule (?:perturb|predict):$.*?^    output: (\S+)$", log, re.MULTILINE | re.DOTALL)
    shards = {_shard_of(Path(output)): None for output in failed}
    if shards:
        text += (
            " Or give the shards up that failed; every table then says which images are missing: "
            f"--config 'given_up=[{', '.join([*config['given_up'], *shards])}]'"
        )
    return text


def _shard_of(output: Path) -> str:
    """Image set/shard of {image_set}/perturbations/{source}/{shard}.h5 or cells/{product}/{image_set}/{shard}.json."""
    image_set = output.parts[-4] if output.suffix == ".h5" else output.parts[-2]
    return f"{image_set}/{output.stem}"


def _all_shards(config: dict, image_set: str) -> list[str]:
    count = -(-config["image_sets"][image_set]["size"] // config["shard_size"])
    return [f"{shard:04d}" for shard in range(count)]


def code_digest(root: Path, *modules: str) -> str:
    """Digest of the given modules and of every module of the project that they import.

    Taken from the syntax trees without docstrings: a comment or a new layout does not rerun a job.

    Parameters
    ----------
    root : Path
        Folder that holds the package.
    modules : str
        "dag.attack.perturb" or "dag.networks.mini.fcn:fcn"; what is not in the package is read as a file, or
        ignored if it is an installed package (its version is recorded, not digested).
    """
    pending, found = list(modules), {}
    while pending:
        module = pending.pop().partition(":")[0]
        path = Path(module) if module.endswith(".py") else root / (module.replace(".", "/") + ".py")
        if module in found or not path.is_file():
            continue
        found[module], imported = _outline(path)
        pending += imported
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()[:16]


def package_digest(root: Path) -> str:
    """Digest of all modules of the package in `root`, see `code_digest`."""
    files = [path.relative_to(root).with_suffix("") for path in sorted((root / "dag").rglob("*.py"))]
    return code_digest(root, *(".".join(file.parts) for file in files))


@cache
def _outline(path: Path) -> tuple[str, tuple[str, ...]]:
    """Syntax tree of a file without docstrings, and the project's modules that it imports."""
    tree = ast.parse(path.read_text())
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dag":
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names if alias.name.split(".")[0] == "dag"]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree), tuple(imported)
