"""Tables of scores as the page shows them: numbers in print, colours and tips of every cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex

from dag.report.figures.style import DROP, ink
from dag.report.frames import conditions
from dag.report.wording import images_of, pixel_words, truths_of

# Scores above the clean one; the same steps as for drops.
_RISE = colormaps["Blues"]


def limit_of(frames: Sequence[pd.DataFrame]) -> int:
    """Upper end of the scale of all heat maps of the page: the largest drop, rounded up to tens."""
    drops = [0.0]
    for frame in frames:
        drops += [frame["drop"].max(), (_clean_companion(frame) - frame.companion).max()]
    return max(10, math.ceil(max(drops) / 10) * 10)


def _clean_companion(frame: pd.DataFrame) -> pd.Series:
    """Companion of the clean image for every row of a frame."""
    keys = ["victim", "image_set", "pixels"]
    clean = frame[frame.group == "none"].drop_duplicates(keys).set_index(keys).companion
    return pd.Series(clean.reindex(pd.MultiIndex.from_frame(frame[keys])).to_numpy(), index=frame.index)


def colour(drop: float, limit: float) -> dict:
    """Background of a cell, white where there is no drop to show, and whether its ink is white instead of black."""
    if math.isnan(drop):
        return {"background": "#ffffff", "dark": False}
    rgb = DROP(min(drop / limit, 1.0)) if drop >= 0 else _RISE(min(-drop / limit, 1.0) * 0.85)
    return {"background": to_hex(rgb), "dark": ink(rgb) == "white"}


def table(frame: pd.DataFrame, limit: float) -> dict:
    """A table of scores: one view for each kind of pixels, each with all its cells."""
    frame = frame.assign(companion_drop=_clean_companion(frame) - frame.companion)
    layout = _white_box if "condition" in frame else _transfer
    views = [
        {
            "pixels": pixels,
            "words": pixel_words(pixels),
            "images": _images(rows),
            "truths": truths_of(rows),
            **layout(rows, limit),
        }
        for pixels, rows in frame.groupby("pixels", sort=False)
    ]
    metrics = [" / ".join(frame[column].unique()) for column in ("metric", "companion_metric")]
    return {
        "views": views,
        "metric": metrics[0],
        "companion": metrics[1],
        "paper": "paper" in frame,
        "intervals": "drop_low" in frame,
        "white_box": bool(frame.white_box.any()),
        "permuted": "permuted" in set(frame.group),
    }


def _transfer(frame: pd.DataFrame, limit: float) -> dict:
    """Rows are perturbations, columns victims, then perceptibility on every image set."""
    columns = frame.drop_duplicates("victim")
    image_sets = list(columns.image_set.unique())
    groups: list[dict] = []
    for column in columns.itertuples():
        title = f"{column.task}, {column.metric}"
        if not groups or groups[-1]["title"] != title:
            groups.append({"title": title, "columns": 0})
        groups[-1]["columns"] += 1
    rows = []
    for _, row in frame.groupby("perturbation", sort=False):
        row = row.set_index("victim").loc[columns.victim]
        first = row.iloc[0]
        cells = [_cell(cell, limit) for _, cell in row.iterrows()]
        visible = [_visible(row[row.image_set == name].iloc[0]) for name in image_sets]
        control = first.group not in ("none", "single", "sum")
        label = {"label": first.row_label, "group": first.group, "control": control}
        rows.append(label | {"cells": cells, "visible": visible})
    rows.sort(key=lambda row: row["group"] != "none")
    several = len(image_sets) > 1
    return {
        "corner": "perturbation",
        "groups": groups,
        "columns": list(columns.column_label),
        "visible": [f"p / 10⁻³{f', {name}' * several}" for name in image_sets],
        "rows": rows,
    }


def _white_box(frame: pd.DataFrame, limit: float) -> dict:
    """Rows are sources, columns clean, perturbed and permuted, or the budgets of an attack."""
    columns = conditions(frame)
    mixed = frame.metric.nunique() > 1
    rows = []
    for _, row in frame.groupby("source", sort=False):
        first, last = row.iloc[0], row[row.group == "single"].iloc[-1]
        row = row.set_index("condition")
        cells = [_cell(row.loc[name], limit) if name in row.index else NO_CELL for name in columns]
        label = f"{first.column_label}, {first.metric}" if mixed else first.column_label
        visible = [_visible(last)]
        rows.append({"label": label, "group": first.task, "control": False, "cells": cells, "visible": visible})
    return {"corner": "network", "groups": [], "columns": columns, "visible": ["p / 10⁻³"], "rows": rows}


# Where a table has nothing to show.
NO_CELL = {
    **dict.fromkeys(("score", "paper", "drop", "companion"), "–"),
    **dict.fromkeys(("score_error", "drop_error", "companion_error", "mark"), ""),
    **dict.fromkeys(("colour", "companion_colour"), colour(math.nan, 1)),
    "white_box": False,
    "facts": "not in this table",
}


def _cell(cell: pd.Series, limit: float) -> dict:
    """One number of a table in all its forms."""
    clean = cell.group == "none"
    drop = f"{cell['drop']:z.1f}"
    has_interval = "drop_low" in cell and not pd.isna(cell.drop_low)
    if has_interval:
        spread = f"[{cell.drop_low:z.1f}, {cell.drop_high:z.1f}]"
        said = f"{spread}, 95 % interval"
    else:
        spread = said = _error(cell.drop_se)
    facts = [
        f"{cell.metric} {cell.score:.2f}{_error(cell.score_se, 2)}",
        "" if clean else f"drop from clean {drop}{f' {said}' if has_interval else said}",
        f"{cell.companion_metric} {cell.companion:.2f}{_error(cell.companion_se, 2)}",
        f"paper {cell.paper:.2f}" if "paper" in cell and not pd.isna(cell.paper) else "",
        "" if clean else f"p {1000 * cell.perceptibility:.2f} · 10⁻³, largest |r| {cell.linf:.1f} grey levels",
        images_of(cell.image_set, cell.images, cell.missing),
        "white box: the victim's own perturbation takes part" if cell.white_box else "",
    ]
    return {
        "score": f"{cell.score:.1f}",
        "score_error": _error(cell.score_se),
        "paper": f"{cell.paper:.2f}" if "paper" in cell and not pd.isna(cell.paper) else "–",
        "drop": "clean" if clean else drop,
        "drop_error": "" if clean else spread,
        "companion": f"{cell.companion:.1f}",
        "companion_error": _error(cell.companion_se),
        "mark": cell["mark"],
        "white_box": bool(cell.white_box),
        "colour": colour(math.nan if clean else cell["drop"], limit),
        "companion_colour": colour(math.nan if clean else cell.companion_drop, limit),
        "facts": "\n".join(fact for fact in facts if fact),
    }


def _error(se: float, digits: int = 1) -> str:
    return "" if pd.isna(se) else f" ± {se:.{digits}f}"


def _visible(cell: pd.Series) -> str:
    """Perceptibility in 10⁻³, beside that of the paper if a column has it."""
    if cell.group == "none":
        return ""
    here = f"{1000 * cell.perceptibility:.1f}"
    if "paper_p" not in cell:
        return here
    return f"{'–' if pd.isna(cell.paper_p) else f'{1000 * cell.paper_p:.1f}'} / {here}"


def _images(frame: pd.DataFrame) -> str:
    """How many images of which image set the columns of a frame are of."""
    label = "label" if "label" in frame else "column_label"
    sets = frame.groupby(["image_set", "images", "missing"], sort=False)[label].unique()
    if len(sets) == 1:
        return images_of(*sets.index[0])
    return "; ".join(f"{', '.join(labels)}: {images_of(*key)}" for key, labels in sets.items())
