"""Drops after rounding to 8 bits and after JPEG compression."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dag.report.figures.style import PAGE, STYLE, line_style


@matplotlib.rc_context(STYLE)
def files(cells: pd.DataFrame) -> Figure:
    """Drops when the perturbed image is stored in a file, by kind of file, one panel per perturbation.

    Parameters
    ----------
    cells : DataFrame
        Of `dag.report.frames.pairs`, for every kind of pixels; drops are from the clean image in the same kind of
        file.
    """
    rows = cells.drop_duplicates("perturbation")
    kinds = list(cells.pixels.unique())
    figure = Figure(figsize=(PAGE, 2.7), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    victims = list(cells.victim.unique())
    for axes, row in zip(panels, rows.itertuples(), strict=True):
        mine = cells[cells.perturbation == row.perturbation]
        for victim, line in mine.groupby("victim", sort=False):
            line = line.set_index("pixels").loc[kinds]
            errors = np.maximum([line["drop"] - line.drop_low, line.drop_high - line["drop"]], 0)
            name = line.column_label.iloc[0] + (" (white box)" if line.white_box.iloc[0] else "")
            shift = 0.06 * (victims.index(victim) - (len(victims) - 1) / 2)
            style = line_style(victims.index(victim))
            axes.errorbar(np.arange(len(kinds)) + shift, line["drop"], errors, **style, label=name, elinewidth=0.7)
        axes.axhline(0, color="0.3", linewidth=0.6)
        axes.set_xticks(range(len(kinds)), [kind.replace("jpeg-", "JPEG ") for kind in kinds], rotation=35, ha="right")
        axes.set_title(row.row_label)
        axes.grid(axis="y")
        axes.legend(fontsize=6)
    # room for the legends above what is drawn
    low, high = panels[0].get_ylim()
    panels[0].set(ylim=(low, high + 0.07 * (len(victims) + 1) * (high - low)), yticks=range(0, 101, 20))
    panels[0].set_ylabel("drop from the clean image\nin the same file, points")
    return figure
