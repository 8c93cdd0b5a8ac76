"""Transfer between related networks: mean losses over pairs with the same relation.

Two uncertainties are kept apart.  Other images: all pairs are scored on the same resamples of the images, and the mean
over the pairs is taken in each.  Other networks: lineages are drawn with replacement, with all pairs within and
between those that are drawn, because pairs that share a network are not independent (the bootstrap of Owen, "The
pigeonhole bootstrap", Annals of Applied Statistics 2007, for one set of units in both roles).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dag.networks.likeness import Likeness
from dag.workflow.names import parse
from dag.workflow.seeds import generator

# Relations of source and victim; "lineage" includes all pairs of one lineage.  Matched pairs differ in the arguments
# in which children differ from their parents (e.g. the resolution), which may matter by themselves.
OWN, TO_CHILD, TO_PARENT, LINEAGE = "white box", "parent to child", "child to parent", "same lineage"
ARCHITECTURE, OTHER = "same architecture, other lineage", "other architecture"
MATCHED = "same architecture, matched"
RELATIONS = (OWN, TO_CHILD, TO_PARENT, LINEAGE, MATCHED, ARCHITECTURE, OTHER)
# Differences of means that are reported.
DIFFERENCES = ((LINEAGE, MATCHED), (LINEAGE, ARCHITECTURE), (ARCHITECTURE, OTHER), (TO_CHILD, TO_PARENT))
# Covariates of a pair: correlation of weights, agreement of clean label maps in percent, perceptibility.
LIKENESS = ("correlation", "pixels_agree", "objects_agree", "perceptibility")


def relations(source: str, victim: str, kin: Mapping[str, Mapping]) -> set[str]:
    """Relations of a source to a victim.

    Parameters
    ----------
    source, victim : str
        Networks.
    kin : mapping
        family, lineage, parent (a network or None) and arguments of every network.
    """
    if source == victim:
        return {OWN}
    if kin[source]["lineage"] == kin[victim]["lineage"]:
        child = {TO_CHILD} if kin[victim]["parent"] == source else set()
        return {LINEAGE} | child | ({TO_PARENT} if kin[source]["parent"] == victim else set())
    if kin[source]["family"] != kin[victim]["family"]:
        return {OTHER}
    changed, (one, two) = _changed(kin), (kin[name]["arguments"] for name in (source, victim))
    # an argument that neither gives has the same default
    return {ARCHITECTURE} | ({MATCHED} if changed and all(one.get(key) != two.get(key) for key in changed) else set())


def _changed(kin: Mapping[str, Mapping]) -> set[str]:
    """Arguments of the architecture in which a network of `kin` differs from its parent."""
    pairs = [
        (entry["arguments"], kin[entry["parent"]]["arguments"]) for entry in kin.values() if entry["parent"] in kin
    ]
    return {key for child, parent in pairs for key in child | parent if child.get(key) != parent.get(key)}


def in_common(first: Mapping, second: Mapping) -> list[str]:
    """Shared properties of two networks: family, lineage, arguments of the architecture (width, size)."""
    shared = [key for key in ("family", "lineage") if first[key] == second[key]]
    arguments = first["arguments"], second["arguments"]
    return shared + [key for key in arguments[0] if arguments[0][key] == arguments[1].get(key)]


def attack_of(perturbation: str) -> str:
    """Attack of a perturbation, without the network: "dag", "cospgd-8", "dag.p-4"."""
    recipe = parse(perturbation)
    variant = recipe.sources[0].partition("@")[2] or "dag"
    return variant + (f".p-{recipe.scale}" if recipe.scale else "")


def agreement(first: Iterable[NDArray], second: Iterable[NDArray], ground: int | None) -> dict[str, float | None]:
    """Agreement of the label maps of two networks in percent, mean over the images.

    Parameters
    ----------
    first, second : iterable of ndarray, uint8 (H, W)
        Label maps of the two, in ids of the image set's classes.
    ground : int or None
        Id of the background; None: every pixel is one of an object.

    Returns
    -------
    dict
        pixels_agree: share of the pixels with the same label in both maps; objects_agree: the same among the pixels
        that at least one map labels as an object, over the images with such pixels (None if there are none).
    """
    pixels, objects = [], []
    for a, b in zip(first, second, strict=True):
        same, either = a == b, (a != ground) | (b != ground)
        pixels.append(100 * same.mean())
        if either.any():
            objects.append(100 * same[either].mean())
    return {
        "pixels_agree": float(np.mean(pixels)),
        "objects_agree": float(np.mean(objects)) if objects else None,
    }


def pairs(
    scores: Mapping[tuple[str, str, str], tuple[NDArray, Mapping]],
    kin: Mapping[str, Mapping],
    weights: Mapping[frozenset, Likeness],
    labels: Mapping[frozenset, Mapping],
) -> list[dict]:
    """All pairs of a perturbation of one source and a victim.

    Parameters
    ----------
    scores : mapping of (victim, perturbation, pixels)
        Of `dag.evaluate.score.resampled_scores`, with `none`.
    kin : mapping
        family, lineage, parent and arguments of every network.
    weights, labels : mapping of frozenset of two networks
        Of `dag.networks.likeness.likeness`, and of `agreement`; pairs may lack.

    Returns
    -------
    list of dict
        perturbation, source, attack, victim, pixels, relations, in_common, lineages (of source and victim); drop
        (points) and lost (percent of the clean score), ndarrays (1 + R,); clean (percent), layers and of (how many
        were compared), and `LIKENESS`, None if unknown.
    """
    found = []
    for (victim, name, pixels), (score, known) in scores.items():
        if name == "none":
            continue
        source = parse(name).sources[0].partition("@")[0]
        clean, both = scores[victim, "none", pixels][0], frozenset((source, victim))
        alike = weights.get(both, Likeness(None, None, None))
        agree = labels.get(both, {"pixels_agree": None, "objects_agree": None})
        found.append(
            {
                "perturbation": name,
                "source": source,
                "attack": attack_of(name),
                "victim": victim,
                "pixels": pixels,
                "relations": [relation for relation in RELATIONS if relation in relations(source, victim, kin)],
                "in_common": in_common(kin[source], kin[victim]),
                "lineages": [kin[source]["lineage"], kin[victim]["lineage"]],
                "clean": float(clean[0]),
                "drop": clean - score,
                "lost": 100 * np.divide(clean - score, clean, out=np.full(clean.shape, np.nan), where=clean > 0),
                **alike._asdict(),
                **agree,
                "perceptibility": known["perceptibility"],
            }
        )
    return found


def summary(pair: Mapping) -> dict:
    """A pair in numbers and text: its arrays as value and 95 % interval over the images."""
    numbers = {}
    for name in ("drop", "lost"):
        low, high = interval(pair[name][1:])
        value = float(pair[name][0]) if np.isfinite(pair[name][0]) else None
        numbers |= {name: value, f"{name}_low": low, f"{name}_high": high}
    words = {name: "; ".join(pair[name]) for name in ("relations", "in_common")}
    left = {key: value for key, value in pair.items() if key not in ("lineages", *numbers, *words)}
    return left | words | numbers


def groups(related_pairs: Sequence[Mapping], resamples: int, seed: int) -> list[dict]:
    """Mean loss of every attack over the pairs of every relation, and the differences of these means.

    Parameters
    ----------
    related_pairs : sequence of mapping
        Of `pairs`; the resamples of the images are the same for all of them.
    resamples, seed : int
        Of the networks.

    Returns
    -------
    list of dict
        attack, pixels ("8-bit - float" for what rounding changes), relation ("a - b" for a difference), pairs (their
        number; None for a difference), lost (the mean), images_low and images_high (95 %, other images), networks_low
        and networks_high (95 %, other networks; None for fewer than three lineages), and the means of `LIKENESS` over
        the pairs that have them.
    """
    units = sorted({lineage for pair in related_pairs for lineage in pair["lineages"]})
    drawn = generator("lineages", seed).multinomial(len(units), np.full(len(units), 1 / len(units)), resamples)
    members: dict[tuple[str, str], dict[str, list]] = {}
    for relation in RELATIONS:
        for pair in related_pairs:
            if relation in pair["relations"] and np.isfinite(pair["lost"][0]):  # a victim with a score to lose
                members.setdefault((pair["attack"], pair["pixels"]), {}).setdefault(relation, []).append(pair)
    found = []
    means = {
        key: {relation: _means(rows, units, drawn) for relation, rows in related.items()}
        for key, related in members.items()
    }
    for (attack, pixels), related in means.items():
        for relation, values in related.items():
            rows = members[attack, pixels][relation]
            alike = {name: _mean_of_known([pair[name] for pair in rows]) for name in LIKENESS}
            found.append(_row(attack, pixels, relation, values) | {"pairs": len(rows)} | alike)
        for first, second in DIFFERENCES:
            if first in related and second in related:
                found.append(_row(attack, pixels, f"{first} - {second}", _minus(related[first], related[second])))
        for relation in related if pixels != "float" else ():
            exact = means.get((attack, "float"), {}).get(relation)
            if exact:
                found.append(_row(attack, f"{pixels} - float", relation, _minus(related[relation], exact)))
    return found


def _means(pairs: Sequence[Mapping], units: list[str], drawn: NDArray) -> tuple[NDArray, NDArray]:
    """Mean over pairs in all resamples of the images (the plain one first), and in all of the lineages."""
    lost = np.stack([pair["lost"] for pair in pairs])
    source, victim = np.array([[units.index(lineage) for lineage in pair["lineages"]] for pair in pairs]).T
    weights = np.where(source == victim, drawn[:, source], drawn[:, source] * drawn[:, victim]).astype(float)
    whole = weights.sum(1)
    networks = np.divide(weights @ lost[:, 0], whole, out=np.full(len(drawn), np.nan), where=whole > 0)
    few = len({*source, *victim}) < 3
    return lost.mean(0), np.full(len(drawn), np.nan) if few else networks


def _minus(first: tuple[NDArray, NDArray], second: tuple[NDArray, NDArray]) -> tuple[NDArray, NDArray]:
    return first[0] - second[0], first[1] - second[1]


def _row(attack: str, pixels: str, relation: str, values: tuple[NDArray, NDArray]) -> dict:
    images, networks = values
    ends = [*interval(images[1:]), *interval(networks)]
    names = ("images_low", "images_high", "networks_low", "networks_high")
    lost = float(images[0]) if np.isfinite(images[0]) else None
    return {
        "attack": attack,
        "pixels": pixels,
        "relation": relation,
        "pairs": None,
        "lost": lost,
        **dict(zip(names, ends, strict=True)),
    }


def interval(values: NDArray) -> tuple[float | None, float | None]:
    """Percentile interval that holds 95 % of the resamples in which the value exists."""
    values = values[np.isfinite(values)]
    return tuple(np.quantile(values, (0.025, 0.975)).tolist()) if len(values) > 1 else (None, None)


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
