"""Figures: tables as heat maps, the two diagnostics of section 3.5, and examples.

Every function takes arrays and frames and returns a matplotlib Figure; `save` writes it in the
format that the file name asks for.  Sizes are those of print: 7.2 inches are a page's width,
3.5 inches a column's, text is 6 to 8 points.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from dag.attack.arithmetic import apply, perceptibility
from dag.data.voc import CLASSES, VOID, colour_map
from dag.workflow.names import CONTROLS

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
            figure.savefig(file, format=kind, metadata=_UNDATED[kind])
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@matplotlib.rc_context(STYLE)
def table_figure(frame: pd.DataFrame, title: str = "") -> Figure:
    """A table of scores as a heat map of the drop from the clean score.

    Parameters
    ----------
    frame : DataFrame
        Of `dag.report.tables.transfer` or `dag.report.tables.white_box`.
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
    columns = cells.drop_duplicates("column")
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
    visible = cells[(cells.group != "none") & (cells.condition != "PERM" if "condition" in cells else True)]
    for row in visible.drop_duplicates("row").itertuples():
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


@matplotlib.rc_context(STYLE)
def density(points: pd.DataFrame, metric: str = "mAP") -> Figure:
    """Scores against the density of the attacked proposals (Figure 3).

    Parameters
    ----------
    points : DataFrame
        One row per victim and threshold: column_label, nms (IoU threshold of the suppression of
        proposals), score and score_se in percent, proposals and targets (means per image).
    metric : str
        Name of the score.

    Raises
    ------
    ValueError
        If proposals or targets of one threshold differ between victims: they belong to the source.
    """
    counts = points.groupby("nms")[["proposals", "targets"]].agg(["min", "max"])
    for name in ("proposals", "targets"):
        if (counts[name, "max"] > counts[name, "min"] * (1 + 1e-6)).any():
            raise ValueError(
                f"the victims disagree about the number of {name}; take all scores from the same perturbations"
            )
    counts = points.drop_duplicates("nms").sort_values("nms")
    figure = Figure(figsize=(COLUMN, 3.3), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    for k, (label, line) in enumerate(points.groupby("column_label", sort=False)):
        line = line.sort_values("nms")
        upper.errorbar(line.nms, line.score, line.score_se, label=label, **line_style(k))
    upper.set(ylabel=f"{metric} (%), ± 1 standard error", ylim=(0, None))
    upper.legend()
    for k, name in enumerate(("proposals", "targets")):
        lower.plot(
            counts.nms, counts[name], color="0.25", linestyle=LINES[k], marker=MARKERS[k], markerfacecolor="white"
        )
        lower.annotate(
            name, (counts.nms.iloc[-1], counts[name].iloc[-1]), (5, 0), textcoords="offset points", va="center"
        )
    lower.set(yscale="log", ylabel="mean per image", xlabel="NMS threshold of the proposals (IoU)")
    lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    lower.set_xticks(counts.nms)
    for axes in (upper, lower):
        axes.grid(axis="y")
    return figure


_PANELS = {"segmentation": "active pixels per image", "detection": "active proposals per image"}


@matplotlib.rc_context(STYLE)
def convergence(curves: Mapping[str, Sequence[NDArray]], tasks: Mapping[str, str]) -> Figure:
    """Number of active targets against iterations (Figure 4), one panel per task.

    Parameters
    ----------
    curves : dict of str to sequence of int arrays
        For every label of a source, |T_m| of every image at m = 0, 1, ... up to the end of its
        attack; an empty array is an image without targets, which is left out.
    tasks : dict of str to str
        "segmentation" or "detection" for every label.

    Returns
    -------
    Figure
        Lines are means over the images, an image that has ended keeping its last number (0 if
        it converged); bands reach from the lower to the upper quartile.  The legend gives the
        mean number of iterations.

    Raises
    ------
    ValueError
        If a source has no image with targets.
    """
    panels = [task for task in _PANELS if task in {tasks[label] for label in curves}]
    figure = Figure(figsize=(PAGE if len(panels) > 1 else COLUMN, 2.5), layout="constrained")
    for task, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        for k, label in enumerate(label for label in curves if tasks[label] == task):
            images = [np.asarray(curve) for curve in curves[label] if len(curve)]
            if not images:
                raise ValueError(
                    f"source {label}: no image has targets, so there is no curve; take it out of the figure"
                )
            length = max(map(len, images))
            active = np.stack([np.pad(image, (0, length - len(image)), mode="edge") for image in images])
            iterations = np.mean([len(image) - 1 for image in images])
            low, high = np.quantile(active, (0.25, 0.75), axis=0)
            line = line_style(k) | {"marker": ""}
            axes.fill_between(np.arange(length), low, high, color=line["color"], alpha=0.15, linewidth=0)
            axes.plot(np.arange(length), active.mean(0), label=f"{label}: {iterations:.1f} iterations", **line)
        axes.set(xlabel="iteration", ylabel=_PANELS[task], xlim=(0, None), ylim=(0, None), title=task.capitalize())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(axis="y")
        axes.legend()
    return figure


@matplotlib.rc_context(STYLE)
def examples(
    rows: Sequence[Mapping],
    magnify: float = 10,
    threshold: float = 0.5,
    truth_title: str = "ground truth",
    note: str = "",
) -> Figure:
    """What perturbations do to the predictions of one victim each (Figures 2 and 6).

    Parameters
    ----------
    rows : sequence of dict
        One per example: label; status of the attack (may be absent, or be put in other words as
        outcome); image and perturbation, (3, H, W) in grey levels; truth, before and after, each either
        a label map (H, W) or detections {"boxes": (D, 4), "labels": (D,), "scores": (D,)}, the truth without scores.
    magnify : float
        Factor by which the perturbation is magnified; grey is 0.
    threshold : float
        Detections with a lower score are not drawn.
    truth_title : str
        Heading of the column of `truth`, e.g. "wanted" for shaped examples.
    note : str
        A sentence below the figure, e.g. how the images were chosen.
    """
    headings = ["image", f"perturbation × {magnify:g}\n(grey: 0)", "perturbed image", truth_title]
    headings += ["prediction,\nclean image", "prediction,\nperturbed image"]
    blocks = []
    for k, row in enumerate(rows):
        image, r = row["image"], row["perturbation"]
        perturbed = apply(image, r, "float")
        pictures = [(image, None), (_grey(r, magnify), None), (perturbed, None)]
        pictures += [(image, row["truth"]), (image, row["before"]), (perturbed, row["after"])]
        blocks.append((_summary(row), headings if k == 0 else [], {"": pictures}))
    return _gallery(blocks, threshold, note)


@matplotlib.rc_context(STYLE)
def transfer_examples(blocks: Sequence[Mapping], magnify: float = 10, threshold: float = 0.5, note: str = "") -> Figure:
    """One perturbation against several victims, clean above perturbed (Figure 5).

    Parameters
    ----------
    blocks : sequence of dict
        One per perturbation: label (e.g. "r1 + r3"); status (may be absent); image and perturbation
        as of `examples`; victims, a sequence of dicts {"label", "truth", "before", "after"}.
    magnify, threshold, note
        As of `examples`.
    """
    drawn = []
    for block in blocks:
        image, r, victims = block["image"], block["perturbation"], block["victims"]
        perturbed = apply(image, r, "float")
        headings = ["image", f"ground truth /\nperturbation × {magnify:g}", *(victim["label"] for victim in victims)]
        lines = {
            "clean": [(image, None), (image, _truths(victims)), *((image, victim["before"]) for victim in victims)],
            "perturbed": [
                (perturbed, None),
                (_grey(r, magnify), None),
                *((perturbed, victim["after"]) for victim in victims),
            ],
        }
        drawn.append((_summary(block), headings, lines))
    return _gallery(drawn, threshold, note)


@matplotlib.rc_context(STYLE)
def paired_examples(blocks: Sequence[Mapping], magnify: float = 10, threshold: float = 0.5, note: str = "") -> Figure:
    """One perturbation that misleads several victims, clean on the left, perturbed on the right (Figure 1).

    Parameters
    ----------
    blocks, magnify, threshold, note
        As of `transfer_examples`.
    """
    drawn = []
    for block in blocks:
        image, r = block["image"], block["perturbation"]
        perturbed = apply(image, r, "float")
        lines = {"image": [(image, None), (_grey(r, magnify), None), (perturbed, None)]}
        for victim in block["victims"]:
            lines[victim["label"]] = [(image, victim["before"]), (image, victim["truth"]), (perturbed, victim["after"])]
        headings = ["clean", f"perturbation × {magnify:g} (grey: 0)\nabove the ground truth", "perturbed"]
        drawn.append((_summary(block), headings, lines))
    return _gallery(drawn, threshold, note)


def _truths(victims: Sequence[Mapping]) -> list[NDArray | Mapping]:
    """Ground truth of all tasks among the victims, a label map first."""
    truths = [victim["truth"] for victim in victims]
    maps = [truth for truth in truths if isinstance(truth, np.ndarray)]
    return maps[:1] + [truth for truth in truths if isinstance(truth, Mapping)][:1]


# An image and what is drawn of it: None (the image itself), a label map, detections, or a list of these.
Picture = tuple[NDArray, NDArray | Mapping | list | None]


def _gallery(
    blocks: Sequence[tuple[str, list[str], dict[str, list[Picture]]]], threshold: float, words: str = ""
) -> Figure:
    """Blocks of (caption, headings, lines of pictures by the text at their left), one below the other.

    Everything is placed in inches, so that pictures are of one width and texts find their room.
    """
    columns = max(len(pictures) for _, _, lines in blocks for pictures in lines.values())
    gutter = 0.2 if any(side for _, _, lines in blocks for side in lines) else 0
    margin, gap, line_height = 0.06, 0.05, 0.13
    cell = min((PAGE - 2 * margin - gutter - gap * (columns - 1)) / columns, 1.8)
    classes, scored = _drawn(blocks)
    across = max(1, int((2 * margin + gutter + (cell + gap) * columns) / 0.95))
    legend_lines = -(-len(classes) // across)
    width = 2 * margin + gutter + cell * columns + gap * (columns - 1)
    sentences = [words, f"Detections with a score of at least {threshold:g}." if scored else ""]
    notes = [line for sentence in sentences for line in _wrapped(sentence, width - 2 * margin, size=6)]
    note = line_height * len(notes)
    below = note + (line_height * legend_lines + 0.08 if classes else 0)

    # From the top down, each with its distance from the top and its height.
    titles, strips, y = [], [], margin
    for caption, headings, lines in blocks:
        high = line_height * (1 + max((heading.count("\n") + 1 for heading in headings), default=0))
        titles.append((y, high, caption, headings))
        y += high + 0.06
        for side, pictures in lines.items():
            high = cell * max(image.shape[1] / image.shape[2] for image, _ in pictures)
            strips.append((y, high, side, pictures))
            y += high + gap
        y += 0.08
    height = y + below
    figure = Figure(figsize=(width, height))
    corners = [(margin + gutter + k * (cell + gap)) / width for k in range(columns)]

    for y, high, caption, headings in titles:
        # shrunk if it is too long; print is a little wider than the outlines
        size = 7.5 * min(1, 0.97 * (width - 2 * margin) / text_width(caption, weight="bold"))
        figure.text(margin / width, 1 - y / height, caption, va="top", fontweight="bold", fontsize=size)
        for x, heading in zip(corners, headings, strict=False):
            centre = x + cell / 2 / width
            figure.text(centre, 1 - (y + high) / height, heading, ha="center", va="bottom", fontsize=7, linespacing=1.1)
    for y, high, side, pictures in strips:
        middle = 1 - (y + high / 2) / height
        figure.text((margin + gutter - 0.06) / width, middle, side, rotation=90, ha="right", va="center")
        for x, (image, prediction) in zip(corners, pictures, strict=False):
            axes = figure.add_axes((x, 1 - (y + high) / height, cell / width, high / height), anchor="N")
            _draw(axes, image, prediction, threshold, cell)
    if notes:
        figure.text(margin / width, 0.04 / height, "\n".join(notes), va="bottom", fontsize=6, color="0.3")
    if classes:
        patches = [
            Patch(facecolor=_colour(label), edgecolor="0.5", linewidth=0.4, label=_name(label)) for label in classes
        ]
        figure.legend(
            handles=patches,
            loc="lower center",
            bbox_to_anchor=(0.5, note / height),
            ncols=-(-len(classes) // legend_lines),
            handlelength=1,
            handletextpad=0.4,
            columnspacing=1,
            borderaxespad=0.2,
        )
    return figure


def _draw(axes: Axes, image: NDArray, prediction: NDArray | Mapping | None, threshold: float, inches: float) -> None:
    """An image, its label map, or either with detections, `inches` wide."""
    _, height, width = image.shape
    axes.set_axis_off()
    drawn = prediction if isinstance(prediction, list) else [prediction]
    # Pixels of the image per point of print.
    point = width / (72 * inches)
    if isinstance(drawn[0], np.ndarray):
        _draw_label_map(axes, drawn[0], (height, width), None if len(drawn) > 1 else point)
    else:
        axes.imshow(np.rint(image.transpose(1, 2, 0)).astype(np.uint8))
    if isinstance(drawn[-1], Mapping):
        _draw_detections(axes, drawn[-1], (height, width), threshold, point)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _draw_label_map(axes: Axes, label_map: NDArray, size: tuple[int, int], point: float | None) -> None:
    """A label map in VOC's colours, with the name of every class where it is widest, if there is room.

    Without `point`, pixels per point of print, nothing is named.
    """
    if label_map.shape != size:
        raise ValueError(f"a label map of shape {label_map.shape} does not fit an image of size {size}")
    axes.imshow(colour_map()[label_map], interpolation="nearest")
    taken: list[tuple[float, float, float, float]] = []
    for label in np.unique(label_map) if point else ():
        if label in (0, VOID):
            continue
        # how far every pixel is from the next one of another class, or from the border of the picture
        depth = distance_transform_edt(np.pad(label_map == label, 1))[1:-1, 1:-1]
        if depth.max() < 0.6 * LABEL_SIZE * point:
            continue
        rows, columns = np.nonzero(depth >= 0.9 * depth.max())
        inside = np.nonzero(label_map == label)
        nearest = np.hypot(rows - inside[0].mean(), columns - inside[1].mean()).argmin()
        y, x = rows[nearest], columns[nearest]
        half = (36 * text_width(_name(label), LABEL_SIZE) + 1) * point
        x = min(max(x, half), size[1] - half)
        spot = (x - half, y - LABEL_SIZE / 2 * point, x + half, y + LABEL_SIZE / 2 * point)
        if any(_overlap(spot, other) for other in taken):
            continue
        taken.append(spot)
        axes.text(
            x,
            y,
            _name(label),
            fontsize=LABEL_SIZE,
            color="white",
            ha="center",
            va="center_baseline",
            path_effects=[withStroke(linewidth=1.5, foreground="black")],
        )


def _draw_detections(axes: Axes, prediction: Mapping, size: tuple[int, int], threshold: float, point: float) -> None:
    """Boxes with class and score; `point`: pixels per point of print."""
    height, width = size
    taken: list[tuple[float, float, float, float]] = []
    scores = prediction.get("scores")
    order = range(len(prediction["labels"])) if scores is None else np.argsort(-scores, kind="stable")
    for k in order:
        if scores is not None and scores[k] < threshold:
            continue
        x_min, y_min, x_max, y_max = np.clip(prediction["boxes"][k], 0, (width - 1, height - 1) * 2)
        colour = _colour(prediction["labels"][k])
        axes.add_patch(
            Rectangle(
                (x_min, y_min),
                x_max - x_min,
                y_max - y_min,
                fill=False,
                edgecolor=colour,
                linewidth=1.2,
                path_effects=HALO,
            )
        )
        text = _name(prediction["labels"][k]) + ("" if scores is None else f" {scores[k]:.2f}")
        wide, high = (72 * text_width(text, LABEL_SIZE) + 2.5) * point, (LABEL_SIZE + 1.5) * point
        # The first place that is in the image and free, or as free as can be.
        spots = [
            (x, y, x + wide, y + high)
            for x in (min(x_min, width - wide), max(x_max - wide, 0))
            for y in (y_min - high, y_min, y_max - high, y_max)
        ]
        spots = [spot for spot in spots if spot[1] >= 0 and spot[3] <= height] or spots[1:2]
        spot = min(spots, key=lambda spot: sum(_overlap(spot, other) for other in taken))
        taken.append(spot)
        axes.text(
            spot[0] + point,
            (spot[1] + spot[3]) / 2,
            text,
            fontsize=LABEL_SIZE,
            color=ink(colour),
            va="center_baseline",
            bbox={"boxstyle": "square,pad=0.12", "facecolor": colour, "edgecolor": "none"},
        )


def text_width(text: str, size: float = 7.5, weight: str = "normal") -> float:
    """Width of a line of print in inches."""
    return TextPath((0, 0), text, size=size, prop=FontProperties(weight=weight)).get_extents().x1 / 72


def _wrapped(text: str, inches: float, size: float) -> list[str]:
    """Lines of a text that are no longer than `inches`."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= inches:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _overlap(a: tuple, b: tuple) -> float:
    """Common area of two rectangles (x_min, y_min, x_max, y_max)."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _drawn(blocks: Sequence[tuple]) -> tuple[list[int], bool]:
    """Classes of all label maps, background first, void last; and whether there are scored detections."""
    predictions = [
        part
        for _, _, lines in blocks
        for pictures in lines.values()
        for _, prediction in pictures
        for part in (prediction if isinstance(prediction, list) else [prediction])
    ]
    maps = [prediction for prediction in predictions if isinstance(prediction, np.ndarray)]
    scored = any(isinstance(prediction, Mapping) and "scores" in prediction for prediction in predictions)
    return sorted(set().union(*(np.unique(label_map).tolist() for label_map in maps))), scored


def _colour(label: int) -> tuple[float, float, float]:
    return tuple(colour_map()[label] / 255)


def _name(label: int) -> str:
    return "void" if label == VOID else CLASSES[label]


def _grey(r: NDArray, magnify: float) -> NDArray:
    return np.clip(128 + magnify * r, 0, 255)


def _summary(row: Mapping) -> str:
    r = row["perturbation"]
    outcome = row.get("outcome", row.get("status"))
    size = f"max |r| = {np.abs(r).max():.1f}, p = {1000 * perceptibility(r):.1f} · 10⁻³"
    return f"{row['label']}: " + (f"{outcome}, " if outcome else "") + size


def line_style(k: int) -> dict:
    return {
        "color": COLOURS[k % len(COLOURS)],
        "linestyle": LINES[k % len(LINES)],
        "marker": MARKERS[k % len(MARKERS)],
    }


def ink(shade: Sequence[float]) -> str:
    """Black or white, whichever is legible on a colour."""
    return "black" if np.dot(shade[:3], (0.299, 0.587, 0.114)) > 0.5 else "white"


def broken(label: str) -> str:
    """A long name in two lines, broken behind the hyphen nearest to its middle."""
    hyphens = [k for k, sign in enumerate(label) if sign == "-"]
    if len(label) <= 12 or not hyphens:
        return label
    k = min(hyphens, key=lambda k: abs(k - len(label) / 2)) + 1
    return f"{label[:k]}\n{label[k:]}"
