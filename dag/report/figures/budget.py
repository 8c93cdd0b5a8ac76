"""Score against the budget of an attack: its radius, or the number of iterations."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dag.report.figures.style import PAGE, STYLE, line_style

_AXES = {"eps": "largest change of a value ε, grey levels", "iterations": "iterations"}


@matplotlib.rc_context(STYLE)
def budget(cells: pd.DataFrame, along: str) -> Figure:
    """The score of every network against the budget of the attacks on it, one panel per network, one line per attack.

    Parameters
    ----------
    cells : DataFrame
        Of `dag.report.frames.robustness`, one kind of pixels.
    along : str
        "eps" or "iterations".

    Returns
    -------
    Figure
        Scores with one standard error.  Dashed: the score of the clean images.  The axis of the budget is logarithmic.
    """
    networks = cells.drop_duplicates("victim")
    attacks = list(cells.attack.unique())
    styles = {name: line_style(number) for number, name in enumerate(attacks)}
    across = min(len(networks), 4)
    down = -(-len(networks) // across)
    width = PAGE if across > 1 else PAGE / 2
    figure = Figure(figsize=(width, 2.15 * down + 0.5), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, squeeze=False)
    values = sorted(set(cells[cells.value > 0].value))
    for axes, network in zip(panels.flat, networks.itertuples(), strict=False):
        mine = cells[cells.victim == network.victim]
        for attack, line in mine[mine.value > 0].groupby("attack", sort=False):
            axes.errorbar(line.value, line.score, line.score_se, **styles[attack], elinewidth=0.7, capsize=1.5)
        clean = mine[mine.value == 0].score.iloc[0]
        axes.axhline(clean, color="0.3", linewidth=0.8, linestyle="--")
        axes.set(title=network.label, xscale="log", ylim=(0, None), ylabel=f"{network.metric}, %")
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="y")
    for axes in panels.flat[len(networks) :]:
        axes.remove()
    figure.supxlabel(_AXES[along], fontsize=7.5)
    handles = [*(Line2D([], [], **styles[name]) for name in attacks), Line2D([], [], color="0.3", linestyle="--")]
    figure.legend(handles, [*attacks, "clean"], loc="outside upper center", ncols=6 if across > 1 else 3)
    return figure
