"""Figure 4: active targets against iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from dag.report.figures.style import COLUMN, PAGE, STYLE, line_style

_PANELS = {"segmentation": "active pixels per image", "detection": "active proposals per image"}


@matplotlib.rc_context(STYLE)
def convergence(
    curves: Mapping[str, Sequence[NDArray]], tasks: Mapping[str, str], variants: Mapping[str, str] | None = None
) -> Figure:
    """Number of active targets against iterations (Figure 4), one panel per task and variant of the attack.

    Parameters
    ----------
    curves : dict of str to sequence of int arrays
        For every label of a source, |T_m| of every image at m = 0, 1, ... up to the end of its
        attack; an empty array is an image without targets, which is left out.
    tasks : dict of str to str
        "segmentation" or "detection" for every label.
    variants : dict of str to str, optional
        Name of the variant of the attack for every label, "" for the default.

    Returns
    -------
    Figure
        Lines are means over the images, an image that has ended keeping its last number (0 if
        it converged); bands reach from the lower to the upper quartile.  The legend gives the
        mean number of iterations.  A panel ends where every line has fallen below 1 % of its start; its
        horizontal axis names the longest attack.

    Raises
    ------
    ValueError
        If a source has no image with targets.
    """
    kinds = {label: (tasks[label], (variants or {}).get(label, "")) for label in curves}
    panels = sorted(dict.fromkeys(kinds.values()), key=lambda kind: list(_PANELS).index(kind[0]))
    figure = Figure(figsize=(PAGE if len(panels) > 1 else COLUMN, 2.7), layout="constrained")
    first = {}
    for (task, variant), axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        end = longest = 0
        # Panels of one task share their vertical axis.
        if task in first:
            axes.sharey(first[task])
        else:
            first[task] = axes
            axes.set_ylabel(_PANELS[task])
        for k, label in enumerate(label for label in curves if kinds[label] == (task, variant)):
            images = [np.asarray(curve) for curve in curves[label] if len(curve)]
            if not images:
                raise ValueError(
                    f"source {label}: no image has targets, so there is no curve; take it out of the figure"
                )
            length = max(map(len, images))
            active = np.stack([np.pad(image, (0, length - len(image)), mode="edge") for image in images])
            iterations = np.mean([len(image) - 1 for image in images])
            low, high = np.quantile(active, (0.25, 0.75), axis=0)
            mean = active.mean(0)
            end = max([end, *(np.flatnonzero(mean >= 0.01 * mean[0]) + 1)])
            longest = max(longest, length - 1)
            line = line_style(k) | {"marker": ""}
            axes.fill_between(np.arange(length), low, high, color=line["color"], alpha=0.15, linewidth=0)
            axes.plot(np.arange(length), mean, label=f"{label}: {iterations:.1f} iterations", **line)
        words = "iteration" if end >= longest else f"iteration (longest attack: {longest})"
        axes.set(xlabel=words, xlim=(0, max(1, min(end, longest))))
        axes.set_title(task.capitalize() + (f", {variant}" if variant else ""))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.1), fontsize=6.5)
    for axes in first.values():
        axes.set_ylim(0, None)
    return figure
