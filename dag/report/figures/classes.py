"""Scores of every class, clean and perturbed."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dag.report.figures.style import COLOURS, PAGE, STYLE


@matplotlib.rc_context(STYLE)
def classes(frame: pd.DataFrame) -> Figure:
    """Scores of every class on clean and perturbed images, one bar per class, one panel per pair.

    Parameters
    ----------
    frame : DataFrame
        Of `dag.report.frames.per_class`.
    """
    pairs = frame.drop_duplicates(["perturbation", "victim"])
    names = list(frame["class"].unique())
    across = min(len(pairs), 3)
    down = -(-len(pairs) // across)
    figure = Figure(figsize=(PAGE, down * (0.7 + 0.14 * len(names))), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, pair in zip(panels.flat, pairs.itertuples(), strict=False):
        mine = frame[(frame.perturbation == pair.perturbation) & (frame.victim == pair.victim)]
        y = [names.index(name) for name in mine["class"]]
        axes.hlines(y, mine.score, mine.clean, color="0.75", linewidth=2.5, zorder=1)
        # the clean mark shows around the other one where nothing is lost
        axes.plot(mine.clean, y, "o", color=COLOURS[0], markersize=6.5, markerfacecolor="white", zorder=2)
        axes.plot(mine.score, y, "D", color=COLOURS[1], markersize=3.2, zorder=3)
        axes.set_title(f"{pair.row_label}\non {pair.column_label}", fontsize=7.5)
        axes.set_xlabel("AP" if pair.task == "detection" else "IoU", labelpad=1)
        axes.xaxis.set_tick_params(labelbottom=True)
        axes.grid(axis="x")
    panels[0, 0].set_yticks(range(len(names)), names)
    panels[0, 0].set(ylim=(len(names) - 0.5, -0.5), xlim=(-3, 103))
    for axes in panels.flat[len(pairs) :]:
        axes.remove()
    handles = [
        Line2D([], [], linestyle="", marker="o", color=COLOURS[0], markersize=6.5, markerfacecolor="white"),
        Line2D([], [], linestyle="", marker="D", color=COLOURS[1], markersize=3.2),
    ]
    figure.legend(handles, ["clean", "perturbed"], loc="outside upper right", ncols=2)
    return figure
