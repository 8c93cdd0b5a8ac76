"""Layers of the configuration: the files of config/, then those of --configfile in order, then --config."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

# Files of config/ that make the default configuration, in order.
DEFAULTS = ("networks", "recipes", "classes", "image_sets", "downloads", "attacks", "config")
# Mappings to which a layer may add entries without changing the experiment.
BY_NAME = ("variants", "networks", "bodies", "recipes", "classes", "image_sets")
# Keys that decide numbers.  The others select what is shown, locate files, or are labels.
DECISIVE = ("seed", "permutations", "bootstrap", "mini", "attacks", *BY_NAME)
WORDS = ("label", "family", "lineage", "parent", "licence", "substitute", "cost")


def defaults(folder: Path) -> dict:
    """The default configuration, from the files of a folder."""
    config: dict = {}
    for name in DEFAULTS:
        config = merged(config, yaml.safe_load((folder / f"{name}.yaml").read_text()))
    return config


def merged(below: Mapping, layer: Mapping) -> dict:
    """A layer over those below it, as Snakemake merges them: mappings are merged, everything else is replaced."""
    return {**below, **{key: _merged(below.get(key), value) for key, value in layer.items()}}


def _merged(old: object, new: object) -> object:
    return merged(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new


def check_experiment(*layers: Mapping) -> None:
    """Refuse a layer that changes the experiment below it without a new name: it would replace its results.

    Parameters
    ----------
    *layers : mapping
        From the default configuration upwards.  A layer that changes what decides numbers has to name its
        `experiment`; it may be the same name, if the results are to be replaced.

    Raises
    ------
    ValueError
        One sentence with the first key that is changed.
    """
    below: Mapping = {}
    for layer in layers:
        for key in DECISIVE if "experiment" not in layer else ():
            if key in below and key in layer:
                for place, old, new in _changes(below[key], layer[key], key, by_name=key in BY_NAME):
                    name = below["experiment"]
                    raise ValueError(
                        f"configuration, {place}: {reprlib.repr(new)} in place of {reprlib.repr(old)} makes another "
                        f"experiment, whose results would replace those of {name!r}; give it a name "
                        f"beside {key}, experiment={name}-2 (or experiment={name} to replace them)"
                    )
        below = merged(below, layer)


def _changes(old: object, new: object, place: str, by_name: bool = False) -> Iterator[tuple[str, object, object]]:
    """(place, old, new) of every value that a layer changes or, but for entries of their own, adds."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [key for key in new if key not in WORDS and not (by_name and key not in old)]:
            yield from _changes(old.get(key), new[key], f"{place}.{key}")
    elif new != old:
        yield place, old, new


def without_nulls(config: dict) -> dict:
    """The configuration without null values in `networks`, with which overlays remove `files` or an argument."""
    return {**config, "networks": _without_nulls(config.get("networks", {}))}


def _without_nulls(mapping: dict) -> dict:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in mapping.items()
        if value is not None
    }


# Keys that a defended network inherits, unless its entry overrides them.
INHERITED = ("task", "classes", "family", "lineage", "cost", "substitute", "licence")


def with_defended(config: dict) -> dict:
    """The configuration in which every network `of` another has inherited the keys of that network.

    Errors (an unknown network, a cycle) are left to `dag.workflow.configuration.check`.
    """
    networks = {name: entry for name, entry in config["networks"].items() if isinstance(entry, Mapping)}
    taken = {}
    for name, entry in networks.items():
        chain = [name]
        while (of := networks[chain[-1]].get("of")) in networks and of not in chain:
            chain.append(of)
        if of is None and len(chain) > 1:
            common = {"family": chain[-1]} | networks[chain[-1]]
            taken[name] = {key: common[key] for key in INHERITED if key in common} | entry
    return {**config, "networks": config["networks"] | taken}
