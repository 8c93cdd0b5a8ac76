"""How attacks ended and how visible their perturbations are, as tidy frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from dag.attack.rules import STATUSES
from dag.report.frames import groups

# Of a table of perceptibility.
COLUMNS = ["row_label", "image_set", "images", "missing", "pixels", "paper_p", "perceptibility", "linf"]


def perceptibility(frame: pd.DataFrame) -> pd.DataFrame:
    """How visible each perturbation of a `transfer` frame is (section 3.5.3).

    Returns
    -------
    DataFrame
        One row per perturbation and image set (one more for the mean over draws): row_label, image_set, images,
        missing (ids of given-up images), pixels, perceptibility (mean of p over the images), linf (largest |r|, grey
        levels), and paper_p if a frame has it.

    Raises
    ------
    ValueError
        If two victims report different values for the same perturbation of the same images.
    """
    records = []
    # a table that repeats attacks shows the mean over its draws, another one the first draw
    frame = frame.assign(draws=frame.draws.fillna(1) if "draws" in frame else 1)
    for (name, image_set, draws), cells in groups(frame[frame.group != "none"], ["perturbation", "image_set", "draws"]):
        values = cells.perceptibility
        if values.max() - values.min() > 1e-3 * values.max():
            raise ValueError(
                f"perturbation {name!r} has perceptibility {values.min():.3g} to {values.max():.3g} on {image_set}, "
                "depending on the victim; some scores are of an older perturbation: compute them again"
            )
        label = cells.row_label.iloc[0] + (f" (mean of {draws:.0f} draws)" if draws > 1 else "")
        records.append(cells.iloc[0].to_dict() | {"row_label": label})
    known = [column for column in COLUMNS if column in frame]
    return pd.DataFrame(records, columns=known).reset_index(drop=True)


def statuses(sources: Sequence[Mapping], paper: Mapping[str, float] | None = None) -> pd.DataFrame:
    """How the attack ended on the images of every source (section 3.5.2).

    Parameters
    ----------
    sources : sequence of dict
        {"source": name, "label": text, "task": "segmentation" or "detection", "missing": ids of the images
        that were given up (optional), "records": one dict per image: {"status", "iterations", "targets",
        "perceptibility", "largest"}}.
    paper : dict of str to float, optional
        Mean iterations that the paper prints, by source.

    Returns
    -------
    DataFrame
        One row per source: source, label, task, images, missing; the number of images of every status;
        no_step, the images among the converged ones on which no target was recognised to begin
        with (r = 0); then over the images that have targets iterations_mean, iterations_max,
        targets_mean, perceptibility_mean with its standard error perceptibility_se, linf_max; with `paper` also
        iterations_paper.

    Raises
    ------
    ValueError
        If a source has no images or a status is unknown.
    """
    rows = []
    for source in sources:
        records = pd.DataFrame(source["records"])
        if records.empty:
            raise ValueError(f"source {source['source']!r} has no image records; compute its perturbations first")
        unknown = set(records.status) - set(STATUSES)
        if unknown:
            raise ValueError(
                f"source {source['source']!r} has images of status {sorted(unknown)}; known are {', '.join(STATUSES)}"
            )
        attacked = records[records.status != "no targets"]
        rows.append(
            {
                "source": source["source"],
                "label": source["label"],
                "task": source["task"],
                "images": len(records),
                "missing": " ".join(source.get("missing", [])),
                **{status.replace(" ", "_"): int((records.status == status).sum()) for status in STATUSES},
                "no_step": int(((records.status == "converged") & (records.iterations == 0)).sum()),
                **({"iterations_paper": paper.get(source["source"], math.nan)} if paper else {}),
                "iterations_mean": attacked.iterations.mean(),
                "iterations_max": attacked.iterations.max(),
                "targets_mean": attacked.targets.mean(),
                "perceptibility_mean": attacked.perceptibility.mean(),
                "perceptibility_se": attacked.perceptibility.sem(),
                "linf_max": attacked.largest.max(),
            }
        )
    return pd.DataFrame(rows)
