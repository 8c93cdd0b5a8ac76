"""Figure 3: score against the density of the attacked proposals."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dag.report.figures.style import COLUMN, LINES, MARKERS, STYLE, line_style


@matplotlib.rc_context(STYLE)
def density(points: pd.DataFrame, metric: str = "mAP", source: str = "") -> Figure:
    """Scores against the density of the attacked proposals (Figure 3).

    Parameters
    ----------
    points : DataFrame
        One row per victim and threshold: column_label, nms (IoU threshold of the suppression of
        proposals), score and score_se in percent, white_box, and of the source proposals, targets and
        perceptibility (means per image).
    metric : str
        Name of the score.
    source : str
        Label of the attacked network.

    Raises
    ------
    ValueError
        If proposals, targets or perceptibility of one threshold differ between victims: they belong to the source.
    """
    of_source = {"proposals": "number of proposals", "targets": "number of targets", "perceptibility": "perceptibility"}
    counts = points.groupby("nms")[list(of_source)].agg(["min", "max"])
    for name, words in of_source.items():
        if (counts[name, "max"] > counts[name, "min"] * (1 + 1e-6)).any():
            raise ValueError(f"the victims disagree about the {words}; take all scores from the same perturbations")
    counts = points.drop_duplicates("nms").sort_values("nms")
    figure = Figure(figsize=(COLUMN, 4.2), layout="constrained")
    upper, lower, strength = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1, 1))
    upper.set_title(f"perturbations of {source}" if source else "")
    for k, (label, line) in enumerate(points.groupby("column_label", sort=False)):
        line = line.sort_values("nms")
        name = f"{label} ({'white box' if line.white_box.iloc[0] else 'black box'})"
        upper.errorbar(line.nms, line.score, line.score_se, label=name, **line_style(k))
    upper.set(ylabel=f"{metric} (%), ± 1 standard error", ylim=(0, None))
    upper.legend()
    for k, name in enumerate(("proposals", "targets")):
        lower.plot(
            counts.nms, counts[name], color="0.25", linestyle=LINES[k], marker=MARKERS[k], markerfacecolor="white"
        )
        lower.annotate(
            name, (counts.nms.iloc[-1], counts[name].iloc[-1]), (5, 0), textcoords="offset points", va="center"
        )
    lower.set(yscale="log", ylabel="mean per image")
    lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    strength.plot(counts.nms, 1000 * counts.perceptibility, color="0.25", marker="o", markerfacecolor="white")
    strength.set(
        ylabel="p / 10⁻³", ylim=(0, 1200 * counts.perceptibility.max()), xlabel="NMS threshold of the proposals (IoU)"
    )
    strength.set_xticks(counts.nms)
    for axes in (upper, lower, strength):
        axes.grid(axis="y")
    return figure
