"""One HTML page with all tables and figures, which opens from the disk in any browser.

This module computes what the page says from the CSV files of the results; how it looks stands in
report/index.html.j2 and report/index.css.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from dag.attack.rules import STATUSES
from dag.report import claims
from dag.report.figures.style import DROP, ink
from dag.report.glossary import glossary
from dag.report.wording import images_of, listed, pixel_words

# A name in the configuration says whether a table or figure is one of the paper's.
_OF_THE_PAPER = re.compile(r"(table[1-4]|figure[1-6])(_|$)")

# Scores above the clean one; the same steps as for drops.
_RISE = colormaps["Blues"]

_TEXT = ("missing", "mark", "perturbation", "row_label", "victim", "column_label", "image_set", "source")

# A section without products of its own is always there.
_OF_PRODUCTS = ("paper-tables", "paper-figures", "beyond-the-paper", "galleries")
_SECTIONS = {
    "what-this-is": "What this is",
    "what-came-out": "What came out",
    "paper-tables": "The paper's tables",
    "paper-figures": "The paper's figures",
    "beyond-the-paper": "Beyond the paper",
    "the-attacks": "The attacks",
    "galleries": "Gallery",
    "how-it-was-made": "How it was made",
}
_VERDICTS = {
    claims.HOLDS: ("holds", "✓"),
    claims.FAILS: ("fails", "✗"),
    claims.OPEN: ("open", "?"),
    claims.ABSENT: ("absent", "–"),
}


def page(
    experiment: Mapping,
    products: Mapping[str, Mapping],
    files: Mapping[str, Sequence[str]],
    captions: Mapping[str, str],
    folder: Path,
    template: Path,
    style: Path,
) -> str:
    """The page as HTML.

    Parameters
    ----------
    experiment : mapping
        Of `dag.report.description.experiment`.
    products : mapping
        Tables (entries without "kind") and figures (entries with "kind") by name, in order.
    files : mapping
        Files of every product, relative to `folder`.  A figure's picture is the lighter one of its SVG and
        PNG; a product with an HTML file is a page of its own, linked with the first of the images that lie in
        pictures/{shard}/ beside it.
    captions : mapping
        Captions for Snakemake's own report by name of the product, as their files hold them.
    folder : Path
        Results of the experiment, where the page will lie.
    template, style : Path
        The page in Jinja's language, and its style sheet.

    Returns
    -------
    str
        Without anything that is fetched from elsewhere, and without a date.
    """
    frames = {name: _read(folder / "tables" / f"{name}.csv") for name, entry in products.items() if "kind" not in entry}
    limit = _limit(frames.values())
    shown: dict[str, list[dict]] = {section: [] for section in _SECTIONS}
    for name, entry in products.items():
        own_page = next((path for path in files[name] if path.endswith(".html")), None)
        product = {
            "name": name,
            "title": entry["title"],
            "description": _paragraphs(entry.get("description", "")),
            "caption": _caption(captions.get(name, ""), entry),
            "links": [(path, Path(path).suffix.removeprefix(".").upper()) for path in files[name]],
            "picture": _picture(files[name], folder),
            "table": _table(frames[name], limit) if name in frames else None,
            "page": own_page,
            "previews": _previews(own_page, folder) if own_page else [],
        }
        shown[_section(name, product)].append(product)
    present = [section for section in _SECTIONS if shown[section] or section not in _OF_PRODUCTS]
    context = dict(
        experiment=experiment,
        style=style.read_text(encoding="utf-8"),
        sections=[
            {"number": number, "id": section, "title": _SECTIONS[section], "products": shown[section]}
            for number, section in enumerate(present, 1)
        ],
        limit=limit,
        scale=[_colour(limit * step / 10, limit)["background"] for step in range(11)],
        most_pixels=max((frame.pixels.nunique() for frame in frames.values()), default=1),
        pixels=[pixel_words(name) for name in experiment["pixels"]],
        networks=_networks(experiment["networks"]),
        findings=findings(frames.values(), experiment["networks"]),
        claims=_claims(folder / "tables" / "claims.csv"),
        statuses=_statuses(folder / "tables" / "statuses.csv"),
        perceptibility=_perceptibility(folder / "tables" / "perceptibility.csv"),
    )
    # The glossary holds the terms that the rest of the page uses.
    return _render(template, **context, glossary=glossary(_render(template, **context, glossary=[])))


def findings(frames: Sequence[pd.DataFrame], networks: Mapping[str, Mapping]) -> list[dict]:
    """What came out, in a few numbers.

    Parameters
    ----------
    frames : sequence of DataFrame
        Of `dag.report.frames.transfer` or `dag.report.frames.white_box`; a cell may occur in several.
    networks : mapping
        Task, family and label of every network.

    Returns
    -------
    list of dict
        value, what it is, and of how many cells it was computed.  Float pixels and the default attack alone; what
        the cells cannot say is left out.  A mean would hide that cells differ: medians and largest values.
    """
    cells = pd.concat(frames, ignore_index=True) if len(frames := list(frames)) else pd.DataFrame()
    if cells.empty:
        return []
    cells = cells.drop_duplicates(["perturbation", "victim", "image_set", "pixels"])
    cells = cells[(cells.group != "none") & ~cells.perturbation.str.contains("@")]
    cells = cells.assign(clean=cells.score + cells["drop"])
    cells = cells[cells.clean > 0]
    cells = cells.assign(left=100 * cells.score / cells.clean)
    rounded, cells = cells[cells.pixels == "8-bit"], cells[cells.pixels == "float"]
    found = []
    own = cells[cells.perturbation.isin(networks) & cells.white_box]
    for task, rows in own.groupby("task", sort=False):
        text = f"of the clean score is left under a network's own perturbation (white box), {task}"
        found.append(_finding(f"{rows.left.median():.0f} %", text, f"median of {_count(rows)}, {_range(rows.left)} %"))
    both = own.merge(rounded, on=["perturbation", "victim", "image_set"], suffixes=("", "_rounded"))
    if len(both):
        text = "of the clean score is left when the same perturbed images are rounded to 8 bits"
        value = f"{both.left_rounded.median():.0f} %"
        found.append(_finding(value, text, f"median of {_count(both)}; {both.left.median():.0f} % on float pixels"))
    permuted = cells[cells.group == "permuted"]
    if len(permuted):
        text = "points lost under the control, perturbations with rows and columns shuffled"
        drop = f"{permuted['drop'].median():z.1f}"
        found.append(_finding(drop, text, f"median of {_count(permuted)}, {_range(permuted['drop'], 1)}"))
    single = cells[cells.perturbation.isin(networks) & ~cells.white_box]
    if len(single):
        text = "points lost under the perturbation of another network (black box)"
        lost = int((single["mark"] == "↓").sum())
        detail = f"median of {_count(single)}; in {lost} of them the loss is more than chance"
        found.append(_finding(f"{single['drop'].median():z.1f}", text, detail))
        family = [networks[name]["family"] == networks[victim]["family"] for name, victim in _pairs(single)]
        task = [networks[name]["task"] == networks[victim]["task"] for name, victim in _pairs(single)]
        single = single.assign(family=family, same_task=task)
        kinds = {
            "within an architecture": single[single.family],
            "to another architecture": single[~single.family],
            "to the other task": single[~single.same_task],
        }
        for where, rows in kinds.items():
            if len(rows):
                best = rows.loc[rows["drop"].idxmax()]
                text = f"points: the strongest transfer {where}, {best.row_label} → {best.column_label}"
                detail = f"{best.clean:.1f} → {best.score:.1f} {best.metric}; the largest of {_count(rows)}"
                found.append(_finding(f"{best['drop']:z.1f}", text, detail))
    return found


def _finding(value: str, text: str, detail: str) -> dict:
    return {"value": value, "text": text, "detail": detail}


def _count(cells: pd.DataFrame) -> str:
    return f"{len(cells)} cell{'s' * (len(cells) != 1)}"


def _range(values: pd.Series, digits: int = 0) -> str:
    return f"{values.min():z.{digits}f} to {values.max():z.{digits}f}"


def _pairs(cells: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(cells.perturbation, cells.victim, strict=True))


def _render(template: Path, **context: object) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(template.parent),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template.name).render(**context)


def _read(path: Path) -> pd.DataFrame:
    """A CSV file of the results; text stays text, be it empty or all digits."""
    frame = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])
    return frame.fillna(dict.fromkeys([column for column in _TEXT if column in frame], ""))


def _paragraphs(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part]


def _section(name: str, product: Mapping) -> str:
    if product["page"]:
        return "galleries"
    if not _OF_THE_PAPER.match(name):
        return "beyond-the-paper"
    return "paper-tables" if product["table"] else "paper-figures"


def _picture(files: Sequence[str], folder: Path) -> dict | None:
    """The lighter one of the pictures of a product, with its size on the page: half as large again as in print."""
    pictures = [path for path in files if Path(path).suffix in (".svg", ".png", ".jpg")]
    if not pictures:
        return None
    path = min(pictures, key=lambda path: ((folder / path).stat().st_size, path))
    raster = next((path for path in pictures if not path.endswith(".svg")), None)
    if raster is None:
        return {"path": path, "width": None, "height": None}
    with Image.open(folder / raster) as image:
        per_dot = 1.5 * 96 / image.info.get("dpi", (144, 144))[0]
        width, height = (round(dots * per_dot) for dots in image.size)
    return {"path": path, "width": width, "height": height}


def _previews(own_page: str, folder: Path, count: int = 6) -> list[str]:
    """The first images of a gallery, in its order: by shard, then by number."""
    pictures = (folder / own_page).parent.glob("pictures/*/*.webp")
    first = sorted(pictures, key=lambda path: (path.parent.name, len(path.name), path.name))[:count]
    return [path.relative_to(folder).as_posix() for path in first]


def _caption(text: str, entry: Mapping) -> str:
    """What a figure shows: its caption for Snakemake's report as plain text, without title and description."""
    rendered = jinja2.Environment().from_string(text).render(snakemake={"params": {"entry": entry}})
    parts = [part for part in rendered.split("\n\n") if not part.lstrip().startswith("**")]
    return re.sub(r"\\(.)|\*", r"\1", " ".join(" ".join(parts).split()))


def _limit(frames: Sequence[pd.DataFrame]) -> int:
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


def _colour(drop: float, limit: float) -> dict:
    """Background of a cell, white where there is no drop to show, and whether its ink is white instead of black."""
    if math.isnan(drop):
        return {"background": "#ffffff", "dark": False}
    rgb = DROP(min(drop / limit, 1.0)) if drop >= 0 else _RISE(min(-drop / limit, 1.0) * 0.85)
    return {"background": to_hex(rgb), "dark": ink(rgb) == "white"}


def _table(frame: pd.DataFrame, limit: float) -> dict:
    """A table of scores: one view for each kind of pixels, each with all its cells."""
    frame = frame.assign(companion_drop=_clean_companion(frame) - frame.companion)
    layout = _white_box if "condition" in frame else _transfer
    views = [
        {"pixels": pixels, "words": pixel_words(pixels), "images": _images(rows), **layout(rows, limit)}
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
    """Rows are sources, columns clean, perturbed and permuted."""
    conditions = list(frame.condition.unique())
    mixed = frame.metric.nunique() > 1
    rows = []
    for _, row in frame.groupby("source", sort=False):
        row = row.set_index("condition").loc[conditions]
        first = row.iloc[0]
        cells = [_cell(cell, limit) for _, cell in row.iterrows()]
        label = f"{first.column_label}, {first.metric}" if mixed else first.column_label
        visible = [_visible(row.loc["ADVR"])]
        rows.append({"label": label, "group": first.task, "control": False, "cells": cells, "visible": visible})
    return {"corner": "network", "groups": [], "columns": conditions, "visible": ["p / 10⁻³"], "rows": rows}


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
        "colour": _colour(math.nan if clean else cell["drop"], limit),
        "companion_colour": _colour(math.nan if clean else cell.companion_drop, limit),
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
    sets = frame.groupby(["image_set", "images", "missing"], sort=False).column_label.unique()
    if len(sets) == 1:
        return images_of(*sets.index[0])
    return "; ".join(f"{', '.join(labels)}: {images_of(*key)}" for key, labels in sets.items())


def _claims(path: Path) -> dict:
    """The claims, and how many have each verdict."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = [
        {
            **row,
            "measure": row["measure"].replace("`", ""),
            "place": f"section {row['paper']}" if row["paper"][:1].isdigit() else row["paper"],
            "style": _VERDICTS[row["verdict"]][0],
            "sign": _VERDICTS[row["verdict"]][1],
        }
        for row in frame.to_dict("records")
    ]
    counts = [
        {"verdict": verdict, "style": style, "sign": sign, "count": int((frame.verdict == verdict).sum())}
        for verdict, (style, sign) in _VERDICTS.items()
    ]
    return {"rows": rows, "counts": counts}


def _networks(networks: Mapping[str, Mapping]) -> dict:
    """All networks, as header and rows of text."""
    columns = {"label": "network", "task": "task", "family": "architecture", "part": "part", "weights": "weights"}
    rows = [[entry[column] for column in columns] for entry in networks.values()]
    return {"header": list(columns.values()), "numeric": [False] * len(columns), "rows": rows}


def _statuses(path: Path) -> dict:
    """How the attacks ended, as header and rows of text."""
    columns = {
        "label": ("source", "{}"),
        "task": ("task", "{}"),
        "images": ("images", "{}"),
        "missing": ("missing images", "ids"),
        **{status.replace(" ", "_"): (status, "{}") for status in STATUSES},
        "no_step": ("no step", "{}"),
        "iterations_paper": ("iterations, paper", "{:.1f}"),
        "iterations_mean": ("iterations", "{:.1f}"),
        "iterations_max": ("most", "{:.0f}"),
        "targets_mean": ("targets", "{:.0f}"),
        "perceptibility_mean": ("p / 10⁻³", "thousandths"),
        "linf_max": ("largest |r|", "{:.1f}"),
    }
    return _plain(_read(path), columns)


def _perceptibility(path: Path) -> dict:
    """How visible the perturbations are, as header and rows of text."""
    columns = {
        "row_label": ("perturbation", "{}"),
        "image_set": ("image set", "{}"),
        "images": ("images", "{}"),
        "missing": ("missing images", "ids"),
        "paper_p": ("p / 10⁻³, paper", "thousandths"),
        "perceptibility": ("p / 10⁻³", "thousandths"),
        "linf": ("largest |r|", "{:.1f}"),
    }
    return _plain(_read(path), columns)


def _plain(frame: pd.DataFrame, columns: Mapping[str, tuple[str, str]]) -> dict:
    known = [
        column for column in columns if column in frame and not (column == "missing" and (frame[column] == "").all())
    ]
    rows = [[_text(row[column], columns[column][1]) for column in known] for row in frame.to_dict("records")]
    numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in known]
    return {"header": [columns[column][0] for column in known], "numeric": numeric, "rows": rows}


def _text(value: object, form: str) -> str:
    if pd.isna(value):
        return "–"
    if form == "ids":
        return listed(value.split())
    return f"{1000 * value:.1f}" if form == "thousandths" else form.format(value)
