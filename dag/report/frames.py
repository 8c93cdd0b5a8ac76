"""Scores and image records as tidy frames: one row for every number of a printed table.

A tidy frame is what the CSV file holds.  The printed forms (`dag.report.printing`) are made from it alone, so that a
reader of the CSV file has everything.

The score of one victim, as the job that computes it writes it, is a dict::

    {"victim": "fr-zf-07", "label": "FR-ZF-07", "task": "detection", "image_set": "voc2007-test",
     "images": 4952, "metric": "mAP", "companion_metric": "area mAP",
     "cells": [{"perturbation": "none", "pixels": "float", "score": 58.7, "score_se": 0.6,
                "companion": 60.1, "companion_se": 0.6, "drop": 0.0, "drop_se": 0.0, "drop_low": 0.0, "drop_high": 0.0,
                "perceptibility": 0.0, "linf": 0.0}, ...]}

Scores are in percent; `*_se` are standard errors of a bootstrap over images, that of `drop`
(score under `none` minus this score) paired, and so is its 95 % percentile interval, `drop_low` to
`drop_high`; `a.permuted` is the mean over the draws of `a.permuted-1`, `a.permuted-2`, ...;
`perceptibility` is the mean of p over the images and `linf` the largest |r| in grey levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from dag.report.wording import row_label, truth_words
from dag.workflow.names import check_pixels, parse

# 95 % of a normal distribution lies within this many standard errors of its mean.
RESOLVED = 1.96


_VICTIM = ("victim", "label", "task", "image_set", "images", "metric", "companion_metric", "cells")
_NUMBERS = (
    "score",
    "score_se",
    "companion",
    "companion_se",
    "drop",
    "drop_se",
    "drop_low",
    "drop_high",
    "perceptibility",
    "linf",
)


def transfer(
    scores: Sequence[Mapping],
    perturbations: Sequence[str],
    labels: Mapping[str, str],
    symbols: Mapping[str, str],
    pixels: str,
    paper: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """Every perturbation against every victim, in the manner of Tables 2 to 4.

    Parameters
    ----------
    scores : sequence of dict
        One per victim, in the order of the columns; the form is described at the top of the module.
    perturbations : sequence of str
        Names of the rows, in order.
    labels : dict of str to str
        How each source is called in print, e.g. {"fr-zf-07": "FR-ZF-07"}.
    symbols : dict of str to str
        What a source is called in a sum, e.g. {"fr-zf-07": "r1"}; it may lack sources.
    pixels : str
        "float", "8-bit" or "jpeg-75", see `dag.attack.arithmetic.apply`.
    paper : dict of str to dict, optional
        Printed values of the paper by perturbation: {victim: score in percent, "p": perceptibility}.
        It may lack any of them.

    Returns
    -------
    DataFrame
        One row per cell: perturbation, row_label, group ("none", "single", "sum", or the control),
        victim, column_label, task, image_set, images, missing (ids of the images that were given up,
        separated by blanks), metric, pixels, score, score_se, companion_metric, companion, companion_se,
        drop, drop_se, drop_low, drop_high, mark (see `mark`), perceptibility, linf, and white_box: whether the
        victim's own perturbation is a summand.  A control is never a white-box attack.  With `paper` also
        paper and paper_p, NaN where the value is not known.

    Raises
    ------
    ValueError
        If a cell is missing or twice there, a number is not a percentage, or a source has no label.
    """
    names = [victim["victim"] for victim in scores]
    if len(set(names)) < len(names) or len(set(perturbations)) < len(perturbations):
        raise ValueError(
            f"rows {', '.join(perturbations)} and columns {', '.join(names)}: a row or a column occurs twice; "
            "name each once"
        )
    return pairs(scores, [(row, name) for row in perturbations for name in names], labels, symbols, pixels, paper)


def pairs(
    scores: Sequence[Mapping],
    wanted: Sequence[tuple[str, str]],
    labels: Mapping[str, str],
    symbols: Mapping[str, str],
    pixels: str,
    paper: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """The cells of some (perturbation, victim) pairs, in their order, as of `transfer`.

    Raises
    ------
    ValueError
        If a cell is missing or twice there, a number is not a percentage, or a source has no label.
    """
    victims = {victim["victim"]: (victim, _cells(victim, pixels)) for victim in scores}
    return pd.DataFrame(
        _record(*victims[victim], name, row_label(name, labels, symbols), pixels) | _beside(paper, name, victim)
        for name, victim in wanted
    )


def differences(
    scores: Sequence[Mapping],
    wanted: Sequence[tuple[str, str]],
    labels: Mapping[str, str],
    symbols: Mapping[str, str],
    pixels: str,
) -> pd.DataFrame:
    """By how much perturbations lower scores: against the clean images, and against their own controls.

    Parameters
    ----------
    scores, labels, symbols, pixels
        As of `transfer`.
    wanted : sequence of (perturbation, victim)

    Returns
    -------
    DataFrame
        One row per difference, in the order of `wanted`: perturbation, row_label, group, victim, column_label, task,
        images, metric, pixels, white_box as of `transfer`; against ("clean", or a control whose mean over the draws was
        scored); difference in points, positive if the perturbation lowers the score; low, high, its 95 %
        interval (paired bootstrap over the images); resolved, whether that leaves out 0.
    """
    known = ["perturbation", "row_label", "group", "victim", "column_label", "task", "images", "metric", "pixels"]
    cells = {victim["victim"]: _cells(victim, pixels) for victim in scores}
    records = []
    perturbed = [pair for pair in wanted if pair[0] != "none"]
    for row in pairs(scores, perturbed, labels, symbols, pixels).to_dict("records"):
        clean = {"difference": row["drop"], "low": row["drop_low"], "high": row["drop_high"]}
        beyond = cells[row["victim"]][row["perturbation"]]["beyond"]
        records += [
            {key: row[key] for key in (*known, "white_box")} | {"against": against} | numbers
            for against, numbers in ({"clean": clean} | beyond).items()
        ]
    frame = pd.DataFrame(records).astype({"difference": float, "low": float, "high": float})
    return frame.assign(resolved=frame.apply(lambda row: mark(row.low, row.high) != "", axis=1))


def per_class(
    scores: Sequence[Mapping],
    wanted: Sequence[tuple[str, str]],
    labels: Mapping[str, str],
    symbols: Mapping[str, str],
    pixels: str,
) -> pd.DataFrame:
    """What perturbations take from single classes.

    Parameters
    ----------
    scores, labels, symbols, pixels
        As of `transfer`.
    wanted : sequence of (perturbation, victim)

    Returns
    -------
    DataFrame
        One row per cell and class that the images have: perturbation, row_label, victim, column_label, task, metric,
        pixels, class, clean and score (IoU or 11-point AP in percent), drop.
    """
    known = ["perturbation", "row_label", "victim", "column_label", "task", "metric", "pixels"]
    cells = {victim["victim"]: _cells(victim, pixels) for victim in scores}
    records = []
    for row in pairs(scores, wanted, labels, symbols, pixels).to_dict("records"):
        mine = cells[row["victim"]]
        clean, score = mine["none"]["per_class"], mine[row["perturbation"]]["per_class"]
        records += [
            {key: row[key] for key in known}
            | {"class": name, "clean": clean[name], "score": score[name], "drop": clean[name] - score[name]}
            for name in clean
            if clean[name] is not None and score[name] is not None
        ]
    return pd.DataFrame(records)


def white_box(
    scores: Sequence[Mapping],
    sources: Sequence[str],
    pixels: str,
    paper: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """Every source under its own perturbation, in the manner of Table 1.

    Parameters
    ----------
    scores : sequence of dict
        One per network.
    sources : sequence of str
        Rows in order: "network", or "network@variant" for another attack on the same network.
    pixels : str
        "float", "8-bit" or "jpeg-75", see `dag.attack.arithmetic.apply`.
    paper : dict of str to dict, optional
        Printed values of the paper by source: {"ORIG", "ADVR", "PERM": score in percent, "p":
        perceptibility}.  It may lack any of them.

    Returns
    -------
    DataFrame
        As of `transfer`, with the column `condition`: ORIG (clean), ADVR (perturbed) and PERM
        (perturbation permuted, mean over the draws), and `draws` if attacks were repeated, see
        `dag.evaluate.score.score`.

    Raises
    ------
    ValueError
        As `transfer`; also if a source's network has no scores.
    """
    victims = {victim["victim"]: victim for victim in scores}
    records = []
    for source in sources:
        network = source.partition("@")[0]
        if network not in victims:
            raise ValueError(f"row {source!r} needs scores of the network {network!r}, which are not there")
        victim = victims[network]
        cells = _cells(victim, pixels)
        for condition, name in {"ORIG": "none", "ADVR": source, "PERM": f"{source}.permuted"}.items():
            label = row_label(name, {network: victim["label"]}, {})
            record = _record(victim, cells, name, label, pixels)
            named = {"column_label": row_label(source, {network: victim["label"]}, {}), "source": source}
            drawn = {"draws": cells[name]["draws"]} if "draws" in cells[name] else {}
            records.append({"condition": condition} | record | named | drawn | _beside(paper, source, condition))
    return pd.DataFrame(records)


def robustness(scores: Sequence[Mapping], series: Sequence[Mapping], along: str, pixels: str) -> pd.DataFrame:
    """Every network under attacks on itself, along one of their settings, and under the worst of them on each image.

    Parameters
    ----------
    scores : sequence of dict
        One per network; with cells "worst of all@8" where there are several attacks at 8, see
        `dag.workflow.comparisons.worst`.
    series : sequence of dict
        The attacks, see `dag.workflow.comparisons.series`.
    along : str
        "eps" or "iterations".
    pixels : str
        "float", "8-bit" or "jpeg-75", see `dag.attack.arithmetic.apply`.

    Returns
    -------
    DataFrame
        As of `white_box`, with `condition` ("clean", "ε = 8", "20 iterations"), value (of the setting, 0 if clean),
        attack, passes (forward passes of the attack, NaN if not counted), chosen (for the worst of all: on how many
        images which perturbation was taken) and the further metrics of each task with their standard errors.

    Raises
    ------
    ValueError
        As `transfer`.
    """
    victims = {victim["victim"]: (victim, _cells(victim, pixels)) for victim in scores}
    records = []
    for network in dict.fromkeys(one["network"] for one in series):
        victim, cells = victims[network]
        rows = {one["attack"]: one["sources"] for one in series if one["network"] == network}
        values = sorted({value for names in rows.values() for value in names})
        worst = {value: f"worst of all@{value:g}" for value in values if f"worst of all@{value:g}" in cells}
        for attack, names in (rows | ({"worst of all": worst} if worst else {})).items():
            for value, name in [(0, "none"), *sorted(names.items())]:
                cell = _cell(victim, cells, name, pixels)
                records.append(
                    {
                        "source": f"{network}@{attack}",
                        "attack": attack,
                        "condition": _condition(along, value),
                        "value": value,
                        "perturbation": name,
                        "group": "single" if value else "none",
                        "victim": network,
                        "column_label": f"{victim['label']}, {attack}",
                        "label": victim["label"],
                        **_numbers(victim, cell, pixels),
                        "white_box": bool(value),
                        "passes": math.nan if cell["passes"] is None or not value else cell["passes"],
                        "chosen": " ".join(f"{key}: {count}" for key, count in cell.get("chosen", {}).items()),
                        **_also(cell),
                    }
                )
    return pd.DataFrame(records)


def _condition(along: str, value: float) -> str:
    if not value:
        return "clean"
    return f"ε = {value:g}" if along == "eps" else f"{value} iterations"


def _also(cell: Mapping) -> dict[str, float]:
    """Further metrics of a cell and their standard errors."""
    found = {}
    for metric, number in cell["also"].items():
        found |= {metric: _or_nan(number["value"]), f"{metric}_se": _or_nan(number["se"])}
    return found


def conditions(frame: pd.DataFrame) -> list[str]:
    """Columns of a frame with `condition`, in order: that of their values, if they have any."""
    return list((frame.sort_values("value", kind="stable") if "value" in frame else frame).condition.unique())


def mark(drop_low: float, drop_high: float) -> str:
    """Whether a difference from the clean score is more than chance.

    "↓" if the 95 % interval of the drop (paired bootstrap over the images) lies above 0; "↑" if it lies
    below; otherwise, and where no interval is known, "".  Each cell is judged on its own: about
    one in twenty cells without any effect is marked all the same.
    """
    if math.isnan(drop_low) or math.isnan(drop_high) or drop_low <= 0 <= drop_high:
        return ""
    return "↓" if drop_low > 0 else "↑"


def _cells(victim: Mapping, pixels: str) -> dict[str, Mapping]:
    """The cells of one victim by name of the perturbation, checked."""
    check_pixels(pixels)
    _require(victim, _VICTIM, f"the scores of victim {victim.get('victim', '?')!r}")
    cells = {}
    for cell in victim["cells"]:
        _require(cell, ("perturbation", "pixels", *_NUMBERS), f"a cell of victim {victim['victim']!r}")
        if cell["pixels"] != pixels:
            continue
        name = cell["perturbation"]
        where = f"victim {victim['victim']!r} under {name!r} with {pixels} pixels"
        if name in cells:
            raise ValueError(f"{where} has two scores; merge the score files so that each cell occurs once")
        for metric in ("score", "companion"):
            if cell[metric] is None or not -1e-9 <= cell[metric] <= 100 + 1e-9:
                advice = "nothing that counts is seen; leave it out" if cell[metric] is None else "compute it again"
                raise ValueError(f"{where} has {metric} {cell[metric]}, which is not a percentage: {advice}")
        if cell["drop"] is None or math.isnan(cell["drop"]):
            raise ValueError(f"{where} has no drop from the clean score; compute it again together with 'none'")
        cells[name] = cell
    return cells


def _require(mapping: Mapping, keys: Sequence[str], what: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(f"{what}: {', '.join(missing)} missing; compute it again with this version")


def _cell(victim: Mapping, cells: Mapping[str, Mapping], perturbation: str, pixels: str) -> Mapping:
    if perturbation not in cells:
        raise ValueError(
            f"row {perturbation!r}, column {victim['victim']!r}: no score with {pixels} pixels; "
            "compute it or take the row or the column out of the table"
        )
    return cells[perturbation]


def _record(victim: Mapping, cells: Mapping[str, Mapping], perturbation: str, label: str, pixels: str) -> dict:
    """One row of a tidy frame."""
    cell = _cell(victim, cells, perturbation, pixels)
    recipe = parse(perturbation)
    group = recipe.control or (("none", "single")[len(recipe.sources)] if len(recipe.sources) < 2 else "sum")
    return {
        "perturbation": perturbation,
        "row_label": label,
        "group": group,
        "victim": victim["victim"],
        "column_label": victim["label"],
        **_numbers(victim, cell, pixels),
        "white_box": not recipe.control
        and victim["victim"] in {*(source.split("@")[0] for source in recipe.sources), *cell.get("made_from", [])},
    }


def _numbers(victim: Mapping, cell: Mapping, pixels: str) -> dict:
    """The numbers of a cell, NaN where there is none, its mark, and what they are of."""
    number = {key: _or_nan(cell[key]) for key in _NUMBERS}
    return {
        "task": victim["task"],
        "image_set": victim["image_set"],
        "images": victim["images"],
        "missing": " ".join(victim.get("missing", [])),
        "metric": victim["metric"],
        "pixels": pixels,
        "score": number["score"],
        "score_se": number["score_se"],
        "companion_metric": victim["companion_metric"],
        "companion": number["companion"],
        "companion_se": number["companion_se"],
        "drop": number["drop"],
        "drop_se": number["drop_se"],
        "drop_low": number["drop_low"],
        "drop_high": number["drop_high"],
        "mark": mark(number["drop_low"], number["drop_high"]),
        "perceptibility": number["perceptibility"],
        "linf": number["linf"],
        **({"truth": text} if (text := truth_words(victim)) else {}),
    }


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else number


def _beside(paper: Mapping | None, row: str, column: str) -> dict:
    """What the paper prints for a cell and for the perceptibility of its row."""
    if paper is None:
        return {}
    known = paper.get(row, {})
    return {"paper": known.get(column, math.nan), "paper_p": known.get("p", math.nan)}


def groups(frame: pd.DataFrame, keys: list[str]):
    return frame.groupby(keys, sort=False)
