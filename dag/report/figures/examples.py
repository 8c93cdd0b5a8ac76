"""Examples: image, perturbation, perturbed image, and predictions on the clean and the perturbed image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from dag.attack.arithmetic import apply, perceptibility
from dag.data.classes import VOC, VOID, ClassList
from dag.report.figures.style import HALO, LABEL_SIZE, PAGE, STYLE, ink, text_width


@matplotlib.rc_context(STYLE)
def examples(
    rows: Sequence[Mapping],
    magnify: float = 10,
    threshold: float = 0.5,
    truth_title: str = "ground truth",
    note: str = "",
    classes: ClassList = VOC,
) -> Figure:
    """Effect of perturbations on the predictions of one victim each (Figures 2 and 6).

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
    classes : ClassList
        Names and colours of the labels.
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
    return _gallery(blocks, threshold, note, classes)


@matplotlib.rc_context(STYLE)
def transfer_examples(
    blocks: Sequence[Mapping],
    magnify: float = 10,
    threshold: float = 0.5,
    note: str = "",
    classes: ClassList = VOC,
) -> Figure:
    """One perturbation against several victims, clean above perturbed (Figure 5).

    Parameters
    ----------
    blocks : sequence of dict
        One per perturbation: label (e.g. "r1 + r3"); status (may be absent); image and perturbation
        as of `examples`; victims, a sequence of dicts {"label", "truth", "before", "after"}.
    magnify, threshold, note, classes
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
    return _gallery(drawn, threshold, note, classes)


@matplotlib.rc_context(STYLE)
def paired_examples(
    blocks: Sequence[Mapping],
    magnify: float = 10,
    threshold: float = 0.5,
    note: str = "",
    classes: ClassList = VOC,
) -> Figure:
    """One perturbation that misleads several victims, clean on the left, perturbed on the right (Figure 1).

    Parameters
    ----------
    blocks, magnify, threshold, note, classes
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
    return _gallery(drawn, threshold, note, classes)


def _truths(victims: Sequence[Mapping]) -> list[NDArray | Mapping]:
    """Ground truth of all tasks among the victims, a label map first."""
    truths = [victim["truth"] for victim in victims]
    maps = [truth for truth in truths if isinstance(truth, np.ndarray)]
    return maps[:1] + [truth for truth in truths if isinstance(truth, Mapping)][:1]


# An image and what is drawn of it: None (the image itself), a label map, detections, or a list of these.
Picture = tuple[NDArray, NDArray | Mapping | list | None]


def _gallery(
    blocks: Sequence[tuple[str, list[str], dict[str, list[Picture]]]], threshold: float, words: str, classes: ClassList
) -> Figure:
    """Stacked blocks of (caption, headings, {row label: pictures}).

    Everything is placed in inches, so that pictures are of one width and texts find their room.
    """
    columns = max(len(pictures) for _, _, lines in blocks for pictures in lines.values())
    gutter = 0.2 if any(side for _, _, lines in blocks for side in lines) else 0
    margin, gap, line_height = 0.06, 0.05, 0.13
    cell = min((PAGE - 2 * margin - gutter - gap * (columns - 1)) / columns, 1.8)
    drawn, scored = _drawn(blocks)
    across = max(1, int((2 * margin + gutter + (cell + gap) * columns) / 0.95))
    legend_lines = -(-len(drawn) // across)
    width = 2 * margin + gutter + cell * columns + gap * (columns - 1)
    sentences = [words, f"Detections with a score of at least {threshold:g}." if scored else ""]
    notes = [line for sentence in sentences for line in _wrapped(sentence, width - 2 * margin, size=6)]
    note = line_height * len(notes)
    below = note + (line_height * legend_lines + 0.08 if drawn else 0)

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
            _draw(axes, image, prediction, threshold, cell, classes)
    if notes:
        figure.text(margin / width, 0.04 / height, "\n".join(notes), va="bottom", fontsize=6, color="0.3")
    if drawn:
        colours = classes.colour_map() / 255
        patches = [
            Patch(facecolor=colours[label], edgecolor="0.5", linewidth=0.4, label=classes.name(label))
            for label in drawn
        ]
        figure.legend(
            handles=patches,
            loc="lower center",
            bbox_to_anchor=(0.5, note / height),
            ncols=-(-len(drawn) // legend_lines),
            handlelength=1,
            handletextpad=0.4,
            columnspacing=1,
            borderaxespad=0.2,
        )
    return figure


def _draw(
    axes: Axes,
    image: NDArray,
    prediction: NDArray | Mapping | None,
    threshold: float,
    inches: float,
    classes: ClassList,
) -> None:
    """An image, its label map, or either with detections, `inches` wide."""
    _, height, width = image.shape
    axes.set_axis_off()
    drawn = prediction if isinstance(prediction, list) else [prediction]
    # Pixels of the image per point of print.
    point = width / (72 * inches)
    if isinstance(drawn[0], np.ndarray):
        _draw_label_map(axes, drawn[0], (height, width), point, classes, named=len(drawn) == 1)
    else:
        _show(axes, np.rint(image.transpose(1, 2, 0)).astype(np.uint8), inches)
    if isinstance(drawn[-1], Mapping):
        _draw_detections(axes, drawn[-1], (height, width), threshold, point, classes)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _show(axes: Axes, pixels: NDArray, inches: float) -> None:
    """Pixels (H, W, 3), embedded at their own size if that is not above the resolution of print.

    A small image that is resampled to print weighs many times as much and shows no more.
    """
    small = pixels.shape[1] <= inches * STYLE["savefig.dpi"]
    axes.imshow(pixels, interpolation="none" if small else "antialiased")


def _draw_label_map(
    axes: Axes, label_map: NDArray, size: tuple[int, int], point: float, classes: ClassList, named: bool
) -> None:
    """A label map in the colours of its classes, every region with a light outline: some hardly differ from black.

    If it is to be `named`, the name of every class stands where it is widest, if there is room.  `point`: pixels per
    point of print.
    """
    if label_map.shape != size:
        raise ValueError(f"a label map of shape {label_map.shape} does not fit an image of size {size}")
    _show(axes, classes.colour_map()[label_map], size[1] / (72 * point))
    regions = [label for label in np.unique(label_map) if label not in (classes.ground, VOID)]
    for label in regions:
        axes.contour(label_map == label, levels=[0.5], colors="white", linewidths=0.5)
    taken: list[tuple[float, float, float, float]] = []
    for label in regions if named else ():
        # how far every pixel is from the next one of another class, or from the border of the picture
        depth = distance_transform_edt(np.pad(label_map == label, 1))[1:-1, 1:-1]
        if depth.max() < 0.35 * LABEL_SIZE * point:
            continue
        rows, columns = np.nonzero(depth >= 0.9 * depth.max())
        inside = np.nonzero(label_map == label)
        nearest = np.hypot(rows - inside[0].mean(), columns - inside[1].mean()).argmin()
        y, x = rows[nearest], columns[nearest]
        half = (36 * text_width(classes.name(label), LABEL_SIZE) + 1) * point
        x = min(max(x, half), size[1] - half)
        spot = (x - half, y - LABEL_SIZE / 2 * point, x + half, y + LABEL_SIZE / 2 * point)
        if any(_overlap(spot, other) for other in taken):
            continue
        taken.append(spot)
        axes.text(
            x,
            y,
            classes.name(label),
            fontsize=LABEL_SIZE,
            color="white",
            ha="center",
            va="center_baseline",
            path_effects=[withStroke(linewidth=1.5, foreground="black")],
        )


def _draw_detections(
    axes: Axes, prediction: Mapping, size: tuple[int, int], threshold: float, point: float, classes: ClassList
) -> None:
    """Boxes with class and score; `point`: pixels per point of print."""
    (height, width), colours = size, classes.colour_map() / 255
    taken: list[tuple[float, float, float, float]] = []
    scores = prediction.get("scores")
    order = range(len(prediction["labels"])) if scores is None else np.argsort(-scores, kind="stable")
    for k in order:
        if scores is not None and scores[k] < threshold:
            continue
        x_min, y_min, x_max, y_max = np.clip(prediction["boxes"][k], 0, (width - 1, height - 1) * 2)
        label = int(prediction["labels"][k])
        colour = tuple(colours[label % len(colours)])
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
        text = classes.name(label) + ("" if scores is None else f" {scores[k]:.2f}")
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


def _grey(r: NDArray, magnify: float) -> NDArray:
    return np.clip(128 + magnify * r, 0, 255)


def _summary(row: Mapping) -> str:
    r = row["perturbation"]
    outcome = row.get("outcome", row.get("status"))
    size = f"max |r| = {np.abs(r).max():.1f}, p = {1000 * perceptibility(r):.1f} · 10⁻³"
    return f"{row['label']}: " + (f"{outcome}, " if outcome else "") + size
