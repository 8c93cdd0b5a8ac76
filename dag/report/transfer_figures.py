"""Figures beyond the paper: who fools whom, at which strength, how surely, which classes, and what survives a file.

Every function takes a tidy frame (`dag.report.tables`) and returns a matplotlib Figure in the project's style.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.cluster.hierarchy import dendrogram, linkage

from dag.report.figures import COLOURS, DROP, PAGE, STYLE, broken, ink, line_style, text_width
from dag.report.tables import CONTROL_WORDS

# What a difference is taken against, and its mark: filled where its interval leaves out 0.
AGAINST = {"clean": "o", "permuted": "s", "signs": "^", "gaussian": "D"}
_AGAINST_WORDS = {"clean": "clean image"} | CONTROL_WORDS


def lost(cells: pd.DataFrame) -> pd.Series:
    """Share of the clean score that a perturbation takes, in percent; comparable between mIoU and mAP."""
    return 100 * cells["drop"] / (cells.score + cells["drop"])


def order(values: np.ndarray) -> tuple[list[int], np.ndarray | None]:
    """Rows of a matrix (N, M) in the order of a dendrogram, and its linkage.

    Average linkage of Euclidean distances, leaves ordered so that neighbours are alike; two rows or fewer stay as
    they are, without a linkage.
    """
    if len(values) < 3:
        return list(range(len(values))), None
    tree = linkage(values, "average", optimal_ordering=True)
    return dendrogram(tree, no_plot=True)["leaves"], tree


@matplotlib.rc_context(STYLE)
def transfer_matrix(cells: pd.DataFrame, families: Mapping[str, str]) -> Figure:
    """Every source against every victim, both ordered by how alike they behave.

    Parameters
    ----------
    cells : DataFrame
        Of `dag.report.tables.pairs`, complete, without `none`.
    families : mapping of str to str
        Family of every victim and of every network of a single source.

    Returns
    -------
    Figure
        Colour and number: percent of the clean score that is lost; bold: the 95 % interval of the drop leaves out 0;
        framed: white box.  Trees: rows (columns) that have similar losses stand together.  Coloured squares:
        families, one colour each, so that a reader sees whether the trees find them.

    Raises
    ------
    ValueError
        If a cell is missing or a network has no family.
    """
    cells = cells.assign(lost=lost(cells))
    matrix = cells.pivot(index="perturbation", columns="victim", values="lost")
    if matrix.isna().any(axis=None):
        row, column = matrix.isna().stack().idxmax()
        raise ValueError(f"the transfer matrix lacks victim {column!r} under {row!r}; give all pairs")
    matrix = matrix.loc[cells.perturbation.unique(), cells.victim.unique()]
    rows, row_tree = order(matrix.to_numpy())
    columns, column_tree = order(matrix.to_numpy().T)
    matrix = matrix.iloc[rows, columns]
    row_names = cells.drop_duplicates("perturbation").set_index("perturbation").row_label
    heads = cells.drop_duplicates("victim").set_index("victim")
    row_families = [_family(name.partition("@")[0], families) for name in matrix.index]
    column_families = [_family(name, families) for name in matrix.columns]
    shades = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(sorted({*row_families, *column_families}))}

    column_texts = [f"{broken(heads.column_label[name])}\n{heads.metric[name]}" for name in matrix.columns]
    left = max(text_width(row_names[name]) for name in matrix.index) + 0.3
    wide, high, tree, right = 0.52, 0.27, 0.45, 0.75
    above = tree + 0.22 + max(text_width(line, 7) for text in column_texts for line in text.split("\n"))
    below = 0.2 + 0.16 * -(-len(shades) // 4)
    # the legend of the colours needs its room too
    width = max(left + tree + wide * len(matrix.columns) + right, 4.5)
    height = above + high * len(matrix.index) + below
    figure = Figure(figsize=(width, height))

    def place(x: float, y: float, w: float, h: float) -> Axes:
        """Axes at x inches from the left and y from the top."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    x, y = left + tree, above
    axes = place(x, y, wide * len(matrix.columns), high * len(matrix.index))
    axes.set(xlim=(0, len(matrix.columns)), ylim=(len(matrix.index), 0))
    scale = Normalize(0, 100)
    found = cells.set_index(["perturbation", "victim"])
    for i, row in enumerate(matrix.index):
        for j, column in enumerate(matrix.columns):
            cell = found.loc[row, column]
            shade = DROP(scale(np.clip(cell.lost, 0, 100)))
            axes.add_patch(Rectangle((j, i), 1, 1, facecolor=shade, edgecolor="white", linewidth=1))
            if cell.white_box:
                axes.add_patch(Rectangle((j + 0.03, i + 0.05), 0.94, 0.9, fill=False, linewidth=1))
            weight = "bold" if cell["mark"] else "normal"
            axes.text(
                j + 0.5,
                i + 0.5,
                f"{cell.lost:z.0f}",
                ha="center",
                va="center_baseline",
                color=ink(shade),
                fontweight=weight,
            )
    axes.set_yticks(np.arange(len(matrix.index)) + 0.5, [row_names[name] for name in matrix.index])
    axes.set_xticks(np.arange(len(matrix.columns)) + 0.5, column_texts, rotation=90, linespacing=1.0)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=9)
    axes.spines[:].set_visible(False)
    for k, family in enumerate(row_families):
        axes.add_patch(Rectangle((-0.16, k + 0.25), 0.1, 0.5, color=shades[family], clip_on=False, linewidth=0))
    for k, family in enumerate(column_families):
        axes.add_patch(Rectangle((k + 0.3, -0.3), 0.4, 0.18, color=shades[family], clip_on=False, linewidth=0))
    axes.annotate("perturbation of ↓", (0, 1), (-22, 7), "axes fraction", "offset points", ha="right")
    for node, where, side in ((row_tree, (x - tree - left + 0.02, y), "left"), (column_tree, (x, 0.02), "top")):
        if node is not None:
            w, h = (tree, high * len(matrix.index)) if side == "left" else (wide * len(matrix.columns), tree)
            _tree(place(*where, w, h), node, side)
    bar = place(x + wide * len(matrix.columns) + 0.2, y, 0.1, min(high * len(matrix.index), 2))
    figure.colorbar(ScalarMappable(scale, DROP), cax=bar).outline.set_visible(False)
    bar.set_title("lost, %\nof clean", fontsize=7)
    handles = [Rectangle((0, 0), 1, 1, color=shade, linewidth=0) for shade in shades.values()]
    figure.legend(
        handles, shades, loc="lower left", ncols=4, title="family", handlelength=0.7, columnspacing=1, borderaxespad=0.1
    )
    return figure


@matplotlib.rc_context(STYLE)
def strength(cells: pd.DataFrame) -> Figure:
    """The drop against how visible the perturbation is, one panel per victim.

    Parameters
    ----------
    cells : DataFrame
        Of `dag.report.tables.pairs` with `base`, the name of the perturbation before it was scaled, `base_label`,
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


@matplotlib.rc_context(STYLE)
def files(cells: pd.DataFrame) -> Figure:
    """What is left of the loss when the perturbed image passes through a file, one panel per perturbation.

    Parameters
    ----------
    cells : DataFrame
        Of `dag.report.tables.pairs`, for every kind of pixels; drops are from the clean image in the same kind of
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


@matplotlib.rc_context(STYLE)
def classes(frame: pd.DataFrame) -> Figure:
    """Which classes a perturbation takes: clean value and what is left, one bar per class, one panel per pair.

    Parameters
    ----------
    frame : DataFrame
        Of `dag.report.tables.per_class`.
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


@matplotlib.rc_context(STYLE)
def intervals(frame: pd.DataFrame) -> Figure:
    """Is the drop real: differences with their 95 % intervals, one panel per victim.

    Parameters
    ----------
    frame : DataFrame
        Of `dag.report.tables.differences`.

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


def _family(network: str, families: Mapping[str, str]) -> str:
    if network not in families:
        raise ValueError(f"network {network!r} has no family; give the families of all networks of the matrix")
    return families[network]


def _is_control(group: str) -> bool:
    return group not in ("none", "single", "sum")


def _tree(axes: Axes, tree: np.ndarray, side: str) -> None:
    """A dendrogram whose leaves stand at the middles of rows (at the left) or columns (at the top)."""
    drawn = dendrogram(tree, no_plot=True)
    for across, along in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        leaves = np.array(across) / 10  # scipy puts leaves at 5, 15, 25, ...
        axes.plot(*((along, leaves) if side == "left" else (leaves, along)), color="0.45", linewidth=0.7)
    top, count = max(map(max, drawn["dcoord"])), len(tree) + 1
    if side == "left":
        axes.set(xlim=(1.02 * top, 0), ylim=(count, 0))
    else:
        axes.set(xlim=(0, count), ylim=(0, 1.02 * top))
    axes.set_axis_off()
