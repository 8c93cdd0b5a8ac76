"""Scores and image records as tables: tidy frames to compute with, Markdown and LaTeX to read.

A tidy frame has one row per number of the printed table and is what the CSV file holds.  The
printed forms are made from the tidy frame alone, so that a reader of the CSV file has everything.

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
import re
from collections.abc import Mapping, Sequence

import pandas as pd

from dag.workflow.names import CONTROLS, check_pixels, parse

STATUSES = ("converged", "iteration limit", "no targets", "no gradient")

# 95 % of a normal distribution lies within this many standard errors of its mean.
RESOLVED = 1.96

CONTROL_WORDS = {"permuted": "permuted", "signs": "random signs", "gaussian": "Gaussian noise"}

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
        (perturbation permuted, mean over the draws).

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
            records.append({"condition": condition} | record | named | _beside(paper, source, condition))
    return pd.DataFrame(records)


def perceptibility(frame: pd.DataFrame) -> pd.DataFrame:
    """How visible each perturbation of a `transfer` frame is (section 3.5.3).

    Returns
    -------
    DataFrame
        One row per perturbation and image set: row_label, image_set, images, missing (ids of the images that
        were given up), pixels, perceptibility (mean of p over the images), linf (largest |r|, grey levels), and
        paper_p if a frame has it.

    Raises
    ------
    ValueError
        If two victims report different values for the same perturbation of the same images.
    """
    records = []
    for (name, image_set), cells in _groups(frame[frame.group != "none"], ["perturbation", "image_set"]):
        values = cells.perceptibility
        if values.max() - values.min() > 1e-3 * values.max():
            raise ValueError(
                f"perturbation {name!r} has perceptibility {values.min():.3g} to {values.max():.3g} on {image_set}, "
                "depending on the victim; some scores are of an older perturbation: compute them again"
            )
        records.append(cells.iloc[0])
    columns = ["row_label", "image_set", "images", "missing", "pixels", "paper_p", "perceptibility", "linf"]
    known = [column for column in columns if column in frame]
    return pd.DataFrame(records, columns=known).reset_index(drop=True)


def statuses(sources: Sequence[Mapping], paper: Mapping[str, float] | None = None) -> pd.DataFrame:
    """How the attack ended on the images of every source (section 3.5.2).

    Parameters
    ----------
    sources : sequence of dict
        {"source": name, "label": text, "task": "segmentation" or "detection", "missing": ids of the images
        that were given up (optional), "records": one dict per image: {"status", "iterations", "targets",
        "perceptibility", "largest"}}.
    paper : dict of str to float, optional
        Mean iterations that the paper prints, by source.

    Returns
    -------
    DataFrame
        One row per source: source, label, task, images, missing; the number of images of every status;
        no_step, the images among the converged ones on which no target was recognised to begin
        with (r = 0); then over the images that have targets iterations_mean, iterations_max,
        targets_mean, perceptibility_mean, linf_max; with `paper` also iterations_paper.

    Raises
    ------
    ValueError
        If a source has no images or a status is unknown.
    """
    rows = []
    for source in sources:
        records = pd.DataFrame(source["records"])
        if records.empty:
            raise ValueError(f"source {source['source']!r} has no image records; compute its perturbations first")
        unknown = set(records.status) - set(STATUSES)
        if unknown:
            raise ValueError(
                f"source {source['source']!r} has images of status {sorted(unknown)}; known are {', '.join(STATUSES)}"
            )
        attacked = records[records.status != "no targets"]
        rows.append(
            {
                "source": source["source"],
                "label": source["label"],
                "task": source["task"],
                "images": len(records),
                "missing": " ".join(source.get("missing", [])),
                **{status.replace(" ", "_"): int((records.status == status).sum()) for status in STATUSES},
                "no_step": int(((records.status == "converged") & (records.iterations == 0)).sum()),
                **({"iterations_paper": paper.get(source["source"], math.nan)} if paper else {}),
                "iterations_mean": attacked.iterations.mean(),
                "iterations_max": attacked.iterations.max(),
                "targets_mean": attacked.targets.mean(),
                "perceptibility_mean": attacked.perceptibility.mean(),
                "linf_max": attacked.largest.max(),
            }
        )
    return pd.DataFrame(rows)


def row_label(perturbation: str, labels: Mapping[str, str], symbols: Mapping[str, str]) -> str:
    """What a perturbation is called in print: "none", "FR-ZF-07 (r1)", "r1 + r3 (permuted)".

    A source without a symbol is called by its label.  A variant of the attack stands in the
    brackets, or, where summands differ, behind each of them: "r1@algorithm-1 + r5".

    Raises
    ------
    ValueError
        If the name is malformed or a source has no label.
    """
    if perturbation == "none":
        return "none"
    recipe = parse(perturbation)
    networks, variants = zip(*(source.partition("@")[::2] for source in recipe.sources), strict=True)
    for network in networks:
        if network not in labels:
            raise ValueError(f"perturbation {perturbation!r} names network {network!r}, which has no label")
    changes = [
        f"p = {recipe.scale} · 10⁻³" if recipe.scale else "",
        f"{CONTROL_WORDS[recipe.control]} {recipe.draw or ''}".rstrip() if recipe.control else "",
    ]
    if len(networks) == 1:
        text, notes = labels[networks[0]], [symbols.get(networks[0], ""), variants[0], *changes]
    else:
        shared = variants[0] if len(set(variants)) == 1 else ""
        summands = [
            symbols.get(network, labels[network]) + (f"@{variant}" if variant and not shared else "")
            for network, variant in zip(networks, variants, strict=True)
        ]
        text, notes = " + ".join(summands), [shared, *changes]
    notes = ", ".join(note for note in notes if note)
    return f"{text} ({notes})" if notes else text


def pixel_words(pixels: str) -> str:
    """How perturbed images reached the victims, in words."""
    check_pixels(pixels)
    known = {"float": "float pixels, not rounded", "8-bit": "pixels rounded to 8 bits"}
    return known.get(pixels) or f"images saved as JPEG files of quality {pixels.removeprefix('jpeg-')}"


def mark(drop_low: float, drop_high: float) -> str:
    """Whether a difference from the clean score is more than chance.

    "↓" if the 95 % interval of the drop (paired bootstrap over the images) lies above 0; "↑" if it lies
    below; otherwise, and where no interval of some width is known, "".  Each cell is judged on its own: about
    one in twenty cells without any effect is marked all the same.
    """
    if not drop_high > drop_low or drop_low <= 0 <= drop_high:
        return ""
    return "↓" if drop_low > 0 else "↑"


def to_markdown(
    frame: pd.DataFrame, title: str = "", companion: str = "block", notes: Mapping[str, str] | None = None
) -> str:
    """A frame of this module as Markdown whose source is a readable plain-text table.

    Parameters
    ----------
    frame : DataFrame
        Of `transfer`, `white_box`, `perceptibility` or `statuses`.
    title : str, optional
        Becomes a heading.
    companion : str
        Where the companion metric goes: "block" (a second table), "brackets" (behind the score)
        or "none".
    notes : dict of str to str, optional
        What a reader has to know of a network, by its printed name: a substitute, for example.
    """
    blocks, caption = _layout(frame, companion, notes)
    parts = [f"### {_markdown_text(title)}"] if title else []
    for heading, header, rows in blocks:
        if heading:
            parts.append(f"{_markdown_text(heading)}:")
        parts.append(_markdown_table(header, rows))
    return "\n\n".join([*parts, _markdown_text(caption)]) + "\n"


def document(
    title: str,
    sections: Mapping[str, pd.DataFrame],
    companion: str = "block",
    notes: Mapping[str, str] | None = None,
) -> str:
    """Several frames in one Markdown document: heading -> frame."""
    tables = [to_markdown(frame, heading, companion, notes) for heading, frame in sections.items()]
    return "\n".join([f"## {_markdown_text(title)}\n", *tables])


def to_latex(
    frame: pd.DataFrame, title: str = "", companion: str = "block", notes: Mapping[str, str] | None = None
) -> str:
    """A frame of this module as a LaTeX table in the style of booktabs.

    The parameters are those of `to_markdown`; the title begins the caption.  The document needs
    the package booktabs, nothing else.
    """
    blocks, caption = _layout(frame, companion, notes)
    width = len(blocks[0][1])
    lines = []
    for heading, header, rows in blocks:
        lines.append(r"\midrule" if lines else r"\toprule")
        if heading and len(blocks) > 1:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{{_latex_text(heading)}}} \\")
        lines += [_latex_row((text, False) for text in header), r"\midrule"]
        lines += [_latex_row(cells) for cells in rows]
    caption = f"{title}. {caption}" if title else caption
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex_text(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


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
                raise ValueError(f"{where} has {metric} {cell[metric]}, which is not a percentage; compute it again")
        if cell["drop"] is None or math.isnan(cell["drop"]):
            raise ValueError(f"{where} has no drop from the clean score; compute it again together with 'none'")
        cells[name] = cell
    return cells


def _require(mapping: Mapping, keys: Sequence[str], what: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(f"{what}: {', '.join(missing)} missing; compute it again with this version")


def _record(victim: Mapping, cells: Mapping[str, Mapping], perturbation: str, label: str, pixels: str) -> dict:
    """One row of a tidy frame."""
    if perturbation not in cells:
        raise ValueError(
            f"row {perturbation!r}, column {victim['victim']!r}: no score with {pixels} pixels; "
            "compute it or take the row or the column out of the table"
        )
    number = {key: math.nan if cells[perturbation][key] is None else cells[perturbation][key] for key in _NUMBERS}
    recipe = parse(perturbation)
    group = recipe.control or (("none", "single")[len(recipe.sources)] if len(recipe.sources) < 2 else "sum")
    return {
        "perturbation": perturbation,
        "row_label": label,
        "group": group,
        "victim": victim["victim"],
        "column_label": victim["label"],
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
        "white_box": not recipe.control and victim["victim"] in {source.split("@")[0] for source in recipe.sources},
    }


def _beside(paper: Mapping | None, row: str, column: str) -> dict:
    """What the paper prints for a cell and for the perceptibility of its row."""
    if paper is None:
        return {}
    known = paper.get(row, {})
    return {"paper": known.get(column, math.nan), "paper_p": known.get("p", math.nan)}


def _groups(frame: pd.DataFrame, keys: list[str]):
    return frame.groupby(keys, sort=False)


# A printed table is a list of blocks (heading, header, rows); a cell of a row is (text, bold).
Grid = tuple[list[str], list[list[tuple[str, bool]]]]
Block = tuple[str, list[str], list[list[tuple[str, bool]]]]


def _layout(frame: pd.DataFrame, companion: str, notes: Mapping[str, str] | None) -> tuple[list[Block], str]:
    """Blocks and caption of any frame of this module."""
    blocks, caption = _blocks(frame, companion)
    return blocks, " ".join([caption, *(f"{name}: {note}" for name, note in (notes or {}).items())])


def _blocks(frame: pd.DataFrame, companion: str) -> tuple[list[Block], str]:
    if companion not in ("block", "brackets", "none"):
        raise ValueError(f"companion {companion!r} is unknown; choose from block, brackets, none")
    if "score" not in frame:
        return _layout_plain(frame)
    lines = _layout_white_box if "condition" in frame else _layout_transfer
    cells = [_number(row.score, row.score_se, row.mark) for row in frame.itertuples()]
    if "paper" in frame:
        cells = [_pair(paper, cell, "{:.2f}") for paper, cell in zip(frame.paper, cells, strict=True)]
    if companion == "brackets":
        cells = [
            f"{cell} ({_number(row.companion, row.companion_se)})"
            for cell, row in zip(cells, frame.itertuples(), strict=True)
        ]
        blocks = [("", *lines(frame, cells, "metric"))]
    else:
        blocks = [(_metrics(frame, "metric"), *lines(frame, cells, "metric"))]
    if companion == "block":
        cells = [_number(row.companion, row.companion_se) for row in frame.itertuples()]
        blocks.append((_metrics(frame, "companion_metric"), *lines(frame, cells, "companion_metric")))
    return blocks, _caption(frame, companion)


def _layout_transfer(frame: pd.DataFrame, texts: list[str], metric: str) -> Grid:
    cells = frame.assign(text=texts)
    columns = cells.drop_duplicates("victim")
    mixed = columns[metric].nunique() > 1
    image_sets = list(columns.image_set.unique())
    header = ["perturbation"]
    header += [f"{label}, {name}" if mixed else label for label, name in columns[["column_label", metric]].values]
    header += [f"p / 10⁻³, {name}" for name in image_sets] if len(image_sets) > 1 else ["p / 10⁻³"]
    clean_first = sorted(_groups(cells, ["perturbation"]), key=lambda item: item[1].group.iloc[0] != "none")
    rows = []
    for _, row in clean_first:
        row = row.set_index("victim").loc[columns.victim]
        visible = [_visible(row[row.image_set == name].iloc[0]) for name in image_sets]
        rows.append(
            [
                (row.row_label.iloc[0], False),
                *zip(row.text, row.white_box, strict=True),
                *((text if row.group.iloc[0] != "none" else "", False) for text in visible),
            ]
        )
    return header, rows


def _layout_white_box(frame: pd.DataFrame, texts: list[str], metric: str) -> Grid:
    cells = frame.assign(text=texts)
    mixed = cells[metric].nunique() > 1
    conditions = list(cells.condition.unique())
    rows = []
    for _, row in _groups(cells, ["source"]):
        row = row.set_index("condition").loc[conditions]
        rows.append(
            [
                (row.column_label.iloc[0], False),
                *([(row[metric].iloc[0], False)] if mixed else []),
                *zip(row.text, row.white_box, strict=True),
                (_visible(row.loc["ADVR"]), False),
            ]
        )
    return ["network", *(["metric"] if mixed else []), *conditions, "p / 10⁻³"], rows


_PLAIN = {
    "row_label": ("perturbation", str),
    "label": ("source", str),
    "image_set": ("image set", str),
    "paper_p": ("p / 10⁻³, paper", lambda p: _perceptibility(p)),
    "perceptibility": ("p / 10⁻³", lambda p: _perceptibility(p)),
    "linf": ("L∞ of r", "{:.1f}".format),
    "iteration_limit": ("limit", str),
    "no_targets": ("no targets", str),
    "no_gradient": ("no gradient", str),
    "no_step": ("no step", str),
    "iterations_paper": ("iterations, paper", "{:.1f}".format),
    "iterations_mean": ("iterations", "{:.1f}".format),
    "iterations_max": ("(max)", "{:.0f}".format),
    "targets_mean": ("targets", "{:.0f}".format),
    "perceptibility_mean": ("p / 10⁻³", lambda p: _perceptibility(p)),
    "linf_max": ("L∞ of r", "{:.1f}".format),
}


def _layout_plain(frame: pd.DataFrame) -> tuple[list[Block], str]:
    shown = [column for column in frame if column not in ("source", "missing")]
    header = [_PLAIN.get(column, (column, str))[0] for column in shown]
    rows = [
        [
            ("–" if pd.isna(row[column]) else _PLAIN.get(column, (column, str))[1](row[column]), False)
            for column in shown
        ]
        for row in frame.to_dict("records")
    ]
    caption = "p: perceptibility, mean over the images. L∞ of r: largest absolute value on any image, in grey levels."
    if "no_step" in frame:
        caption = (
            "Images by status of the attack; no step: converged without a step, because no target was recognised to "
            "begin with. Iterations, targets and p: means over the images that have targets; p: perceptibility. "
            "L∞ of r: largest absolute value on any image, in grey levels."
        )
    if (frame.missing != "").any():
        images = _image_sets(frame) if "image_set" in frame else _image_sets(frame.assign(image_set=""), "label")
        caption += f" Computed on {images}."
    return [("", header, rows)], caption


def _number(value: float, se: float, change: str = "") -> str:
    text = f"{value:.1f}" if pd.isna(se) else f"{value:.1f} ± {se:.1f}"
    return f"{text} {change}" if change else text


def _pair(paper: float, here: str, form: str) -> str:
    """ "paper / here"; a dash where the paper's value is not known."""
    return f"{'–' if pd.isna(paper) else form.format(paper)} / {here}"


def _perceptibility(p: float) -> str:
    return "–" if pd.isna(p) else f"{1000 * p:.1f}"


def _visible(row: pd.Series) -> str:
    """Perceptibility of a row of a frame in 10⁻³, beside that of the paper if there is any."""
    here = _perceptibility(row.perceptibility)
    return _pair(1000 * row.paper_p, here, "{:.1f}") if "paper_p" in row else here


def _metrics(frame: pd.DataFrame, column: str) -> str:
    return " / ".join(frame[column].unique()) + ", %"


def _caption(frame: pd.DataFrame, companion: str) -> str:
    """What a reader has to know: metric, pixels, images, and what the signs mean."""
    metrics = " / ".join(frame.metric.unique())
    if companion == "brackets":
        metrics += f" (in brackets {' / '.join(frame.companion_metric.unique())})"
    images = _image_sets(frame, "column_label")
    pixels = " / ".join(map(pixel_words, frame.pixels.unique()))
    sentences = [f"{metrics} in %; {pixels}; {images}."]
    if "paper" in frame:
        sentences.append("Paper / here; –: the paper's value is not known to this project.")
    if frame.score_se.notna().any():
        sentences.append("± is one standard error (bootstrap over the images).")
    if (frame["mark"] != "").any():
        sentences.append("↓ (↑): lower (higher) than clean, the 95 % interval of the difference (paired) without zero.")
    if frame.white_box.any():
        sentences.append("Bold: the victim's own perturbation takes part (white box).")
    for group in [name for name in CONTROLS if (frame.group == name).any()]:
        name = "PERM" if "condition" in frame else CONTROL_WORDS[group]
        sentences.append(f"{name}: {CONTROLS[group]}, mean over the draws.")
    sentences.append("p: perceptibility, mean over the images.")
    return " ".join(sentences)


def _image_sets(frame: pd.DataFrame, label: str = "") -> str:
    """How many images of which image sets a frame is of; where they differ, those of each `label`, if that is given."""
    sets = _groups(frame, ["image_set", "images", "missing"])
    named = label and len(sets) > 1
    return "; ".join(
        (f"{', '.join(cells[label].unique())}: " if named else "") + images_of(*key) for key, cells in sets
    )


def images_of(image_set: str, count: int, missing: str) -> str:
    """How many images of an image set a number is of, and which ones are missing."""
    ids = missing.split()
    of = f" of {image_set}" if image_set else ""
    return f"{count} of {count + len(ids)} images{of}, missing: {listed(ids)}" if ids else f"{count} images{of}"


def listed(ids: Sequence[str], shown: int = 8) -> str:
    """Ids in print: the first ones, and how many there are beside them."""
    rest = f" and {len(ids) - shown} more (all in the CSV file)" if len(ids) > shown else ""
    return ", ".join(ids[:shown]) + rest


def _markdown_text(text: str) -> str:
    for sign in r"\*_|<`":
        text = text.replace(sign, "\\" + sign)
    return text


def _markdown_table(header: list[str], rows: list[list[tuple[str, bool]]]) -> str:
    """Aligned in a fixed-width font; bold cells hang their asterisks out, so that digits stay in line."""
    columns = []
    for k, name in enumerate(header):
        cells = [row[k] for row in rows]
        bold = any(strong for _, strong in cells)
        marked = any(text.endswith(("↓", "↑")) for text, _ in cells)
        texts = []
        for text, strong in cells:
            gap = "  " if marked and not text.endswith(("↓", "↑")) else ""
            text = _markdown_text(text)
            texts.append((f"**{text}**" if strong else f"  {text}  " if bold else text) + gap)
        column = [_markdown_text(name), *texts]
        width = max(map(len, column))
        rule = "-" * width if k == 0 else "-" * (width - 1) + ":"
        name, *texts = [text.ljust(width) if k == 0 else text.rjust(width) for text in column]
        columns.append([name, rule, *texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    # Behind a line break `*` and `[` would be taken for its arguments.
    "*": "{*}",
    "[": "{[}",
    "±": r"$\pm$",
    "–": "--",
    "10⁻³": "$10^{-3}$",
    "∞": r"$\infty$",
    "†": r"$\dagger$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
}


def _latex_text(text: str) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)


def _latex_row(cells) -> str:
    texts = [rf"\textbf{{{_latex_text(text)}}}" if bold else _latex_text(text) for text, bold in cells]
    return " & ".join(texts) + r" \\"
