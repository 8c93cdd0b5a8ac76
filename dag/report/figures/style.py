"""Style that all figures share: sizes of print, colours, lines, and how they are saved.

7.2 inches are a page's width, 3.5 inches a column's, text is 6 to 8 points.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath

PAGE, COLUMN = 7.2, 3.5


# Okabe and Ito's palette without its yellow, which is too light for lines on white; the line
# styles and markers tell the lines apart where there is no colour at all.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


LINES = ("-", "--", "-.", ":")


MARKERS = ("o", "s", "^", "D", "v", "P", "X")


STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "errorbar.capsize": 2,
    "figure.facecolor": "white",
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    # Without a fixed salt the same figure would differ from run to run.
    "svg.hashsalt": "dag",
}


# From white; the darkest sixth is left out, so that black numbers stay legible longer.
DROP = ListedColormap(matplotlib.colormaps["Oranges"](np.linspace(0, 0.85, 256)), "drop")


# Boxes stay visible on any image.
HALO = [withStroke(linewidth=2, foreground="white")]


LABEL_SIZE = 5.5


_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as svg, png or pdf, chosen by the suffix; the file appears whole or not at all.

    Raises
    ------
    ValueError
        If the suffix is another one.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    if kind not in _UNDATED:
        raise ValueError(f"{path}: figures are written as {', '.join(_UNDATED)}; change the suffix")
    partial = path.with_name(f".{path.name}.part")
    try:
        with matplotlib.rc_context(STYLE), open(partial, "wb") as file:
            options = {"pil_kwargs": {"optimize": True}} if kind == "png" else {}
            figure.savefig(file, format=kind, metadata=_UNDATED[kind], **options)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def text_width(text: str, size: float = 7.5, weight: str = "normal") -> float:
    """Width of a line of print in inches."""
    return TextPath((0, 0), text, size=size, prop=FontProperties(weight=weight)).get_extents().x1 / 72


def line_style(k: int) -> dict:
    return {
        "color": COLOURS[k % len(COLOURS)],
        "linestyle": LINES[k % len(LINES)],
        "marker": MARKERS[k % len(MARKERS)],
    }


def ink(shade: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast with a colour."""
    return "black" if luminance(shade) > 0.179 else "white"


def luminance(shade: Sequence[float]) -> float:
    """Relative luminance of a colour (r, g, b) in [0, 1], as WCAG 2 defines it.

    Black and white contrast alike with a colour of 0.179.
    """
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in shade[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def broken(label: str) -> str:
    """A long name in two lines, broken behind the hyphen nearest to its middle."""
    hyphens = [k for k, sign in enumerate(label) if sign == "-"]
    if len(label) <= 12 or not hyphens:
        return label
    k = min(hyphens, key=lambda k: abs(k - len(label) / 2)) + 1
    return f"{label[:k]}\n{label[k:]}"
