"""A table as a heat map of its drops."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dag.report.figures.style import DROP, STYLE, broken, ink, text_width
from dag.workflow.names import CONTROLS


@matplotlib.rc_context(STYLE)
def table_figure(frame: pd.DataFrame, title: str = "") -> Figure:
    """A table of scores as a heat map of the drop from the clean score.

    Parameters
    ----------
    frame : DataFrame
        Of `dag.report.frames.transfer` or `dag.report.frames.white_box`.
    title : str, optional

    Returns
    -------
    Figure
        Numbers are scores, with their standard error in small print; colours are drops in
        points, one scale from 0 to the largest drop; black frames mark white-box cells; rows
        stand in groups: clean, single sources, sums, controls (of a `white_box` frame: by task).
        At the right is the perceptibility of the perturbation on the images of the first victim.
    """
    if "condition" in frame:
        names = frame.column_label + (" (" + frame.metric + ")" if frame.metric.nunique() > 1 else "")
        cells = frame.assign(row=frame.source, row_text=names, band=frame.task)
        cells = cells.assign(column=frame.condition, column_text=frame.condition)
    else:
        cells = frame.assign(row=frame.perturbation, row_text=frame.row_label, band=frame.group)
        cells = cells.assign(column=frame.victim, column_text=frame.column_label.map(broken) + "\n" + frame.metric)
    columns = cells.sort_values("value", kind="stable") if "value" in cells else cells
    columns = columns.drop_duplicates("column")
    bands = [band for band in ("none", "single", "sum", *CONTROLS, *cells.task.unique()) if (cells.band == band).any()]
    rows = cells.drop_duplicates("row").sort_values("band", key=lambda band: band.map(bands.index), kind="stable")
    # Rows are one unit high, with a gap above every group.
    tops = np.arange(len(rows)) + 0.3 * np.cumsum(rows.band != rows.band.shift()).to_numpy() - 0.3
    left, top = dict(zip(columns.column, range(len(columns)), strict=True)), dict(zip(rows.row, tops, strict=True))

    # Everything is placed in inches: cells of the same height in every table, texts as wide as they are.
    margin, note, right, cell_height = 0.08, 0.2, 1.25, 0.24
    labels = max(map(text_width, rows.row_text)) + 0.15
    cell_width = max(0.78, *(text_width(line) + 0.08 for text in columns.column_text for line in text.split("\n")))
    above = (0.25 if title else 0) + 0.14 * (1.3 + columns.column_text.str.count("\n").max())
    wide, high = cell_width * len(columns), cell_height * (tops[-1] + 1)
    width, height = labels + wide + right, margin + above + high + note
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((labels / width, note / height, wide / width, high / height))
    axes.set(xlim=(0, len(columns)), ylim=(tops[-1] + 1, 0))

    scale = Normalize(0, max(cells["drop"].max(), 1))
    for cell in cells.itertuples():
        x, y, shade = left[cell.column], top[cell.row], DROP(scale(max(cell.drop, 0)))
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=shade, edgecolor="white", linewidth=1))
        if cell.white_box:
            axes.add_patch(Rectangle((x + 0.015, y + 0.04), 0.97, 0.92, fill=False, edgecolor="black", linewidth=1))
        text = {"va": "center_baseline", "color": ink(shade)}
        axes.text(x + 0.5, y + 0.5, f"{cell.score:.1f}", ha="right", fontsize=7.5, **text)
        if not np.isnan(cell.score_se):
            axes.text(x + 0.54, y + 0.5, f"± {cell.score_se:.1f}", ha="left", fontsize=6, **text)
    visible = cells[cells.group == "single" if "condition" in cells else cells.group != "none"]
    for row in visible.drop_duplicates("row", keep="last" if "condition" in cells else "first").itertuples():
        axes.text(
            len(columns) + 0.35,
            top[row.row] + 0.5,
            f"{1000 * row.perceptibility:.1f}",
            ha="center",
            va="center_baseline",
        )
    axes.text(len(columns) + 0.35, -0.2, "p / 10⁻³", ha="center", va="bottom")

    axes.set_xticks(np.arange(len(columns)) + 0.5, columns.column_text)
    axes.set_yticks(tops + 0.5, rows.row_text)
    axes.tick_params(length=0, labelsize=7.5)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    if title:
        figure.text(margin / width, 1 - margin / height, title, ha="left", va="top", fontsize=9, fontweight="bold")
    bar = figure.add_axes((1 - 0.5 / width, note / height, 0.1 / width, min(high - 0.1, 2) / height))
    figure.colorbar(ScalarMappable(scale, DROP), cax=bar).outline.set_visible(False)
    bar.set_title("drop,\npoints", fontsize=7)
    words = f"{' / '.join(frame.pixels.unique())} pixels; ± one standard error; p: perceptibility; framed: white box"
    figure.text(margin / width, 0.05 / height, words, va="bottom", fontsize=6, color="0.3")
    return figure
