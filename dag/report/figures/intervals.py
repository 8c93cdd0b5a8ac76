"""Every drop with its 95 % interval, against clean images and controls."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dag.report.figures.style import COLOURS, PAGE, STYLE, broken
from dag.report.wording import CONTROL_WORDS

# What a difference is taken against, and its mark: filled where its interval leaves out 0.
AGAINST = {"clean": "o", "permuted": "s", "signs": "^", "gaussian": "D"}


_AGAINST_WORDS = {"clean": "clean image"} | CONTROL_WORDS


@matplotlib.rc_context(STYLE)
def intervals(frame: pd.DataFrame) -> Figure:
    """Differences with their 95 % intervals, one panel per victim.

    Parameters
    ----------
    frame : DataFrame
        Of `dag.report.frames.differences`.

    Returns
    -------
    Figure
        One line per perturbation and what it is compared with: the clean image, or a control of itself.  Filled marks:
        the interval leaves out 0.  Perturbations in which the victim itself takes part are bold.
    """
    victims = frame.drop_duplicates("victim")
    rows = list(frame.drop_duplicates("perturbation").perturbation)
    labels = frame.drop_duplicates("perturbation").set_index("perturbation").row_label
    marks = {name: (COLOURS[k], sign) for k, (name, sign) in enumerate(AGAINST.items())}
    present = [name for name in AGAINST if (frame.against == name).any()]
    figure = Figure(figsize=(PAGE, 0.9 + 0.13 * (len(present) + 0.6) * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(victims), sharex=True, sharey=True, squeeze=False)[0]
    for axes, victim in zip(panels, victims.itertuples(), strict=True):
        mine = frame[frame.victim == victim.victim]
        for row in mine.itertuples():
            colour, sign = marks[row.against]
            offset = 0.8 / max(len(present), 1)
            y = rows.index(row.perturbation) + offset * (present.index(row.against) - (len(present) - 1) / 2)
            face = colour if row.resolved else "white"
            axes.plot([row.low, row.high], [y, y], color=colour, linewidth=1)
            axes.plot(row.difference, y, sign, color=colour, markerfacecolor=face, markersize=3.5)
        own = [rows.index(name) for name in mine[mine.white_box].perturbation.unique()]
        for k in own:
            axes.axhspan(k - 0.5, k + 0.5, color="0.94", zorder=0, linewidth=0)
        axes.axvline(0, color="0.3", linewidth=0.6)
        axes.set_title(f"{broken(victim.column_label)}\n{victim.metric}", fontsize=7.5)
        axes.grid(axis="x")
    panels[0].set_yticks(range(len(rows)), [labels[name] for name in rows])
    panels[0].set(ylim=(len(rows) - 0.5, -0.5))
    figure.supxlabel("score lost, points, with 95 % interval; filled: without 0; grey: white box", fontsize=7.5)
    handles = [Line2D([], [], linestyle="", marker=marks[name][1], color=marks[name][0]) for name in present]
    words = [f"against {_AGAINST_WORDS[name]}" for name in present]
    figure.legend(handles, words, loc="outside upper center", ncols=len(present))
    return figure
