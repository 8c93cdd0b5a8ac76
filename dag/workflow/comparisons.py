"""Group the attacks of a table or figure that differ in one setting only."""

from __future__ import annotations

import json
from collections import Counter
from itertools import takewhile

from dag.workflow import plan


def series(config: dict, entry: dict) -> list[dict]:
    """Attacks of a table or figure with `networks` and `variants`, grouped along one setting; otherwise an empty list.

    Variants that agree in everything but `along` (eps or iterations) are one attack, and so are those whose step
    follows eps.  Names of variants decide only the display name.

    Returns
    -------
    list of dict
        network, attack (what the names of its variants have in common), sources {value of `along`: source}; network by
        network, in the order of the variants.

    Raises
    ------
    ValueError
        If a variant has no value of `along`, or two cannot be told apart by it.
    """
    if "along" not in entry:
        return []
    along = entry["along"]
    free = {"eps", "step"} if along == "eps" else {along}
    found: dict[tuple[str, str], dict] = {}
    for source in plan.named(entry):
        network, _, variant = source.partition("@")
        members = (settings := plan.attack(config, source)).get("worst_of", [settings])
        values = {one.get(along) for one in members}
        if len(values) > 1 or None in values:
            raise ValueError(f"variant {variant!r} has no {along} of its own; every variant here needs one")
        fixed = [{key: value for key, value in one.items() if key not in free} for one in members]
        same = found.setdefault((network, json.dumps(fixed, sort_keys=True)), {})
        if (value := values.pop()) in same:
            other = same[value].partition("@")[2]
            raise ValueError(f"variants {other!r} and {variant!r} are the same attack at {along} {value}; name one")
        same[value] = source
    named = [
        {"network": network, "attack": _common([one.partition("@")[2] for one in sources.values()]), "sources": sources}
        for (network, _), sources in found.items()
    ]
    count = Counter((one["network"], one["attack"]) for one in named)
    for one in named:
        if count[one["network"], one["attack"]] > 1:  # "pgd-8" and "pgd-8-t10" are two attacks, called pgd and pgd-t10
            value, source = next(iter(one["sources"].items()))
            one["attack"] = _without(source.partition("@")[2], f"{value:g}")
    count = Counter((one["network"], one["attack"]) for one in named)
    if same := next((name for (_, name), number in count.items() if number > 1), None):
        raise ValueError(
            f"two attacks would be called {same!r}; give their variants names that differ in more than {along}"
        )
    return named


def _common(names: list[str]) -> str:
    """Common parts of names: "pgd" of "pgd-2" and "pgd-4"."""
    parts = zip(*(name.split("-") for name in names), strict=False)
    return "-".join(same[0] for same in takewhile(lambda part: len(set(part)) == 1, parts)) or names[0]


def _without(name: str, value: str) -> str:
    """A name without the part that gives the value: "pgd-t10" of "pgd-8-t10" and 8."""
    return "-".join(part for part in name.split("-") if part.lstrip("t") != value) or name


def worst(config: dict, entry: dict) -> dict[str, dict[str, list[str]]]:
    """Sources of the worst case over attacks: {victim: {"worst of all@8": sources}} of a table of robustness."""
    if entry.get("layout") != "robustness":
        return {}
    found: dict[str, dict[str, list[str]]] = {}
    for one in series(config, entry):
        for value, source in one["sources"].items():
            found.setdefault(one["network"], {}).setdefault(f"worst of all@{value:g}", []).append(source)
    return {network: {name: names for name, names in of.items() if len(names) > 1} for network, of in found.items()}
