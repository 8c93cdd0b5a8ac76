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
