"""What every source takes from every victim, ordered by likeness, with the trees of that order."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import dendrogram, linkage

from dag.report.figures.style import COLOURS, DROP, STYLE, broken, ink, text_width


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
def transfer_matrix(cells: pd.DataFrame, families: Mapping[str, str], given: bool = False) -> Figure:
    """Every source against every victim, both ordered by how alike they behave, or as they are given.

    Parameters
    ----------
    cells : DataFrame
        Of `dag.report.frames.pairs`, complete, without `none`.
    families : mapping of str to str
        Family of every victim and of every network of a single source.
    given : bool
        Keep the order of the cells; there are no trees then.

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
        if ((cells.perturbation == row) & (cells.victim == column)).any():
            raise ValueError(f"victim {column!r} has a score of 0 on clean images and nothing to lose; leave it out")
        raise ValueError(f"the transfer matrix lacks victim {column!r} under {row!r}; give all pairs")
    matrix = matrix.loc[cells.perturbation.unique(), cells.victim.unique()]
    (rows, row_tree), (columns, column_tree) = (
        (list(range(len(values))), None) if given else order(values)
        for values in (matrix.to_numpy(), matrix.to_numpy().T)
    )
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


def _family(network: str, families: Mapping[str, str]) -> str:
    if network not in families:
        raise ValueError(f"network {network!r} has no family; give the families of all networks of the matrix")
    return families[network]


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
