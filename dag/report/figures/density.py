"""Figure 3: score against the density of the attacked proposals."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dag.report.figures.style import COLUMN, LINES, MARKERS, STYLE, line_style


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
