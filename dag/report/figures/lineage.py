"""Loss against likeness of weights, one point a pair, and its mean by how source and victim are related."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dag.evaluate.lineage import ARCHITECTURE, DIFFERENCES, LINEAGE, OTHER, OWN, RELATIONS
from dag.report.figures.style import COLOURS, PAGE, STYLE

# Relations that exclude each other: every pair of two networks is a point of one colour.
_SHADES = dict(zip((LINEAGE, ARCHITECTURE, OTHER), COLOURS, strict=False))
_OF_PAIRS = ("correlation", "lost", "lost_low", "lost_high")
_OF_GROUPS = (
    *("pairs", "lost", "images_low", "images_high", "networks_low", "networks_high"),
    *("correlation", "objects_agree", "perceptibility"),
)
_NOTHING = -0.35  # where pairs stand that have no layer in common


@matplotlib.rc_context(STYLE)
def lineage(pairs: pd.DataFrame, groups: pd.DataFrame) -> Figure:
    """Transfer by likeness of weights and by relation of source and victim; one column of panels for every attack.

    Parameters
    ----------
    pairs : DataFrame
        Of `dag.evaluate.lineage.summary`.
    groups : DataFrame
        Of `dag.evaluate.lineage.groups`.

    Returns
    -------
    Figure
        Above: share of the clean score that a victim loses against the correlation of its weights with those of the
        source, float pixels, with 95 % intervals (bootstrap over images); pairs without a comparable layer stand at the
        left.  Below: means over the pairs of a relation and differences of these means; thick: 95 % interval over
        images, thin: over networks; hollow: other pixels than float.  Beside the names: the number of pairs, and the
        means of the correlation of their weights and of the share of object pixels that both label alike.
    """
    # a column of nothing but None has no numbers
    pairs, groups = pairs.astype(dict.fromkeys(_OF_PAIRS, float)), groups.astype(dict.fromkeys(_OF_GROUPS, float))
    attacks = list(groups.attack.unique())
    differences = [f"{first} - {second}" for first, second in DIFFERENCES]
    rows = [name for name in (*RELATIONS, *differences) if (groups.relation == name).any()]
    two = pairs[(pairs.relations != OWN) & (pairs.pixels == "float")]
    kinds = [kind for kind in groups.pixels.unique() if " - " not in kind]
    heights = (2.1, (0.16 + 0.12 * len(kinds)) * len(rows) + 0.1)
    figure = Figure(figsize=(max(PAGE, 2.4 + 1.6 * len(attacks)), sum(heights) + 0.8), layout="constrained")
    panels = figure.subplots(2, len(attacks), squeeze=False, sharey="row", sharex="row", height_ratios=heights)
    for above, below, attack in zip(*panels, attacks, strict=True):
        _points(above, two[two.attack == attack])
        p = 1000 * groups[(groups.attack == attack) & (groups.pixels == "float")].perceptibility.mean()
        above.set_title(f"{attack}\np = {p:.1f} · 10⁻³")
        _means(below, groups[groups.attack == attack], rows, kinds)
    ticks = [0, 0.5, 1]
    panels[0, 0].set_xticks([*([_NOTHING] if two.correlation.isna().any() else []), *ticks])
    panels[0, 0].set_xticklabels([*(["no layer"] if two.correlation.isna().any() else []), "0", "0.5", "1"])
    panels[0, 0].set_ylabel("lost, % of clean")
    for axes in panels[0]:
        axes.set_xlabel("correlation of weights")
    panels[1, 0].set_yticks(range(len(rows)), [_label(name, groups) for name in rows], linespacing=1.0)
    panels[1, 0].set_ylim(len(rows) - 0.5, -0.6)
    for axes in panels[1]:
        axes.set_xlabel("lost, % of clean, mean")
    handles = [Line2D([], [], linestyle="", marker="o", color=shade) for shade in _SHADES.values()]
    handles += [Line2D([], [], color="0.2", linewidth=3), Line2D([], [], color="0.2", linewidth=0.8)]
    words = [*_SHADES, "95 %, other images", "95 %, other networks"]
    for kind in kinds[1:]:
        handles.append(Line2D([], [], linestyle="", marker="o", color="0.2", markerfacecolor="white"))
        words.append(f"{kind} pixels")
    figure.legend(handles, words, loc="outside upper center", ncols=3)
    return figure


def _points(axes: Axes, pairs: pd.DataFrame) -> None:
    """One point for every pair of two networks, with its interval over the images."""
    for relation, shade in _SHADES.items():
        mine = pairs[pairs.relations.str.split("; ").map(lambda found, one=relation: one in found)]
        errors = np.maximum([mine.lost - mine.lost_low, mine.lost_high - mine.lost], 0)
        # points without a comparable layer would hide each other: they are spread, in their order
        spread = pd.Series(np.linspace(-0.12, 0.12, len(mine)), mine.index)
        x = mine.correlation.fillna(_NOTHING + spread)
        style = {"fmt": "o", "markersize": 2.5, "markeredgewidth": 0, "elinewidth": 0.4, "capsize": 0}
        # the more pairs, the paler their intervals, or these would hide the points
        pale = to_rgba(shade, min(0.7, max(0.15, 15 / max(len(mine), 1))))
        axes.errorbar(x, mine.lost, errors, color=to_rgba(shade, 0.7), ecolor=pale, **style)
    axes.axhline(0, color="0.3", linewidth=0.6)
    axes.grid(axis="y")


def _label(relation: str, groups: pd.DataFrame) -> str:
    """A relation with the number of its pairs and how alike they are, under the attack that has most of them."""
    rows = groups[(groups.relation == relation) & (groups.pixels == "float")]
    row = rows.sort_values("pairs", kind="stable").iloc[-1] if rows.pairs.notna().any() else rows.iloc[0]
    alike = {"weights {:.2f}": row.correlation, "objects {:.0f} %": row.objects_agree}
    known = [text.format(value) for text, value in alike.items() if not pd.isna(value)]
    pairs = [] if pd.isna(row.pairs) else [f"{row.pairs:.0f} pairs" if relation != OWN else f"{row.pairs:.0f} networks"]
    return "\n".join(filter(None, [relation.replace(" - ", " −\n"), ", ".join(pairs + known)]))


def _means(axes: Axes, groups: pd.DataFrame, rows: list[str], kinds: list[str]) -> None:
    """Means of the relations with both intervals and their numbers, and below a line the differences."""
    for row in groups[groups.pixels.isin(kinds)].itertuples():
        step = 0.8 / max(len(kinds), 2)
        y = rows.index(row.relation) + step * (kinds.index(row.pixels) - (len(kinds) - 1) / 2)
        shade = _SHADES.get(row.relation, "0.2")
        for low, high, width in (
            (row.networks_low, row.networks_high, 0.8),
            (row.images_low, row.images_high, 3),
        ):
            axes.plot([low, high], [y, y], color=shade, linewidth=width, solid_capstyle="butt")
        face = shade if row.pixels == "float" else "white"
        axes.plot(row.lost, y, "o", color=shade, markerfacecolor=face, markersize=3.5)
        right = np.nanmax([row.lost, row.networks_high, row.images_high])
        axes.annotate(f"{row.lost:z.1f}", (right, y), (3, 0), textcoords="offset points", va="center", fontsize=6.5)
    single = sum(name in RELATIONS for name in rows)
    if single < len(rows):
        axes.axhline(single - 0.5, color="0.7", linewidth=0.6)
    axes.axvline(0, color="0.3", linewidth=0.6)
    axes.grid(axis="x")
    axes.margins(x=0.12)
