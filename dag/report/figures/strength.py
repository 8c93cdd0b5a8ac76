"""Drop against perceptibility, every perturbation scaled to the same."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dag.report.figures.style import PAGE, STYLE, line_style


@matplotlib.rc_context(STYLE)
def strength(cells: pd.DataFrame) -> Figure:
    """The drop against how visible the perturbation is, one panel per victim.

    Parameters
    ----------
    cells : DataFrame
        Of `dag.report.frames.pairs` with `base`, the name of the perturbation before it was scaled, `base_label`,
        its printed name, and `scaled`, whether the row is.

    Returns
    -------
    Figure
        Lines: perturbations scaled to one perceptibility on every image, with 95 % intervals; controls are grey.
        Hollow marks: the perturbation as the attack left it, at its mean perceptibility.
    """
    victims = cells.drop_duplicates("victim")
    across = min(len(victims), 4)
    down = -(-len(victims) // across)
    figure = Figure(figsize=(PAGE, 2.15 * down + 0.5), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    styles = {}
    names = cells.drop_duplicates("base")
    for base, group in zip(names.base, names.group, strict=True):
        controls = sum(style["color"] == "0.55" for style in styles.values())
        styles[base] = (
            line_style(controls) | {"color": "0.55"} if _is_control(group) else line_style(len(styles) - controls)
        )
    for axes, victim in zip(panels.flat, victims.itertuples(), strict=False):
        mine = cells[cells.victim == victim.victim]
        for base, line in mine[mine.scaled].groupby("base", sort=False):
            line = line.sort_values("perceptibility")
            errors = np.maximum([line["drop"] - line.drop_low, line.drop_high - line["drop"]], 0)
            axes.errorbar(1000 * line.perceptibility, line["drop"], errors, **styles[base], elinewidth=0.7, capsize=1.5)
        for row in mine[~mine.scaled].itertuples():
            style = styles[row.base]
            axes.plot(
                1000 * row.perceptibility,
                row.drop,
                **{**style, "linestyle": "", "markersize": 7, "markerfacecolor": "none"},
            )
        axes.axhline(0, color="0.3", linewidth=0.6)
        axes.set(title=f"{victim.column_label} ({victim.metric})", xscale="log")
        axes.grid(axis="y")
    ticks = sorted({round(1000 * value, 1) for value in cells[cells.scaled].perceptibility})
    for axes in panels.flat:
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axes in panels.flat[len(victims) :]:
        axes.remove()
    figure.supxlabel("perceptibility p / 10⁻³", fontsize=7.5)
    figure.supylabel("drop from the clean image, points", fontsize=7.5)
    handles = [Line2D([], [], **style) for style in styles.values()]
    handles.append(Line2D([], [], color="0.3", linestyle="", marker="o", markersize=7, markerfacecolor="none"))
    labels = [*names.base_label, "as the attack left it"]
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _is_control(group: str) -> bool:
    return group not in ("none", "single", "sum")
