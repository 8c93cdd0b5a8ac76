"""One HTML page with all tables and figures, which opens from the disk in any browser.

This module computes the content of the page from the CSV files of the results; its layout is in
report/index.html.j2 and report/index.css.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import pandas as pd
from PIL import Image

from dag.attack.rules import STATUSES
from dag.report import claims
from dag.report.glossary import glossary
from dag.report.score_tables import colour, limit_of, table
from dag.report.wording import listed, pixel_words

# A name in the configuration says whether a table or figure is one of the paper's.
_OF_THE_PAPER = re.compile(r"(table[1-4]|figure[1-6])(_|$)")

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
    limit = limit_of(frames.values())
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
            "table": table(frames[name], limit) if name in frames else None,
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
        scale=[colour(limit * step / 10, limit)["background"] for step in range(11)],
        most_pixels=max((frame.pixels.nunique() for frame in frames.values()), default=1),
        pixels=[pixel_words(name) for name in experiment["pixels"]],
        networks=_networks(experiment["networks"]),
        findings=findings(frames.values(), experiment["networks"]),
        claims=_claims(folder / "tables" / "claims.csv"),
        self_tests=_claims(folder / "tables" / "self_tests.csv"),
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
        Task, family, architecture and label of every network.

    Returns
    -------
    list of dict
        value, what it is, and of how many cells it was computed.  Float pixels and the default attack only; items
        without cells are left out.  Medians and largest values are given, since a mean would hide differences between
        cells.
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
        alike = [networks[name]["architecture"] == networks[victim]["architecture"] for name, victim in _pairs(single)]
        single = single.assign(family=family, same_task=task, alike=alike)
        kinds = {
            "within an architecture": single[single.family],
            "within an architecture, to a network from an independent start": single[single.alike & ~single.family],
            "to another architecture": single[~single.family & ~single.alike],
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
