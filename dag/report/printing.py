"""Tables as Markdown and LaTeX, made from the tidy frames alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from dag.evaluate.score import ALSO
from dag.report.frames import conditions, groups
from dag.report.wording import CONTROL_WORDS, images_of, pixel_words, truths_of
from dag.workflow.names import CONTROLS


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
        told = set(frame.companion_metric)
        for metric in [name for names in ALSO.values() for name in names if name in frame and told != {name}]:
            known = frame[frame[metric].notna()]
            cells = [_number(*pair) for pair in zip(known[metric], known[f"{metric}_se"], strict=True)]
            blocks.append((f"{metric}, %", *lines(known, cells, "metric")))
    return blocks, _caption(frame, companion)


def _layout_transfer(frame: pd.DataFrame, texts: list[str], metric: str) -> Grid:
    cells = frame.assign(text=texts)
    columns = cells.drop_duplicates("victim")
    mixed = columns[metric].nunique() > 1
    image_sets = list(columns.image_set.unique())
    header = ["perturbation"]
    header += [f"{label}, {name}" if mixed else label for label, name in columns[["column_label", metric]].values]
    header += [f"p / 10⁻³, {name}" for name in image_sets] if len(image_sets) > 1 else ["p / 10⁻³"]
    clean_first = sorted(groups(cells, ["perturbation"]), key=lambda item: item[1].group.iloc[0] != "none")
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
    mixed, costs = cells[metric].nunique() > 1, "passes" in frame
    columns = conditions(cells)
    rows = []
    for _, row in groups(cells, ["source"]):
        last = row[row.group == "single"].iloc[-1]
        row = row.set_index("condition")
        texts = [(row.text[name], row.white_box[name]) if name in row.index else ("–", False) for name in columns]
        rows.append(
            [
                (last.column_label, False),
                *([(last[metric], False)] if mixed else []),
                *texts,
                (_visible(last), False),
                *([("–" if pd.isna(last.passes) else f"{last.passes:.0f}", False)] if costs else []),
            ]
        )
    return ["network", *(["metric"] if mixed else []), *columns, "p / 10⁻³", *(["passes"] if costs else [])], rows


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
    "perceptibility_se": ("±", lambda p: "–" if pd.isna(p) else f"{1000 * p:.2f}"),
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
    images = _image_sets(frame, "label" if "label" in frame else "column_label")
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
    if "draws" in frame:
        sentences.append(
            f"ADVR: mean over {frame.draws.max():.0f} draws of adversarial labels and random starts, whose spread is "
            "part of the errors; p and PERM are of all draws and of the first."
        )
    if "attack" in frame:
        sentences.append(
            "Every attack is shown to the network that it was made for; p and passes (forward passes of the attack, "
            "mean over the images) are those of the last column."
        )
        if (frame.attack == "worst of all").any():
            sentences.append(
                "Worst of all: on every image the attack that lowers the mIoU of the whole set most, by exchange; for "
                "detectors the one after which the image has the lowest mAP."
            )
        if "objects found" in frame:
            sentences.append("Objects found: by a detection of their class with a score of at least 0.5.")
    sentences += truths_of(frame)
    sentences.append("p: perceptibility, mean over the images.")
    return " ".join(sentences)


def _image_sets(frame: pd.DataFrame, label: str = "") -> str:
    """How many images of which image sets a frame is of; where they differ, those of each `label`, if that is given."""
    sets = groups(frame, ["image_set", "images", "missing"])
    named = label and len(sets) > 1
    return "; ".join(
        (f"{', '.join(cells[label].unique())}: " if named else "") + images_of(*key) for key, cells in sets
    )


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
