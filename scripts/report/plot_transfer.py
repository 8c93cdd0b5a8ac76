"""Figures beyond the paper that follow from scores; see rule plot_transfer."""

from dag.report import frames, wording
from dag.report.figures import budget, classes, files, intervals, matrix, strength, style
from dag.workflow.startup import start

start(snakemake.log[0])

import pandas as pd

from dag.workflow.files import read_json, write_text

params, output = snakemake.params, snakemake.output
kind = params.entry["kind"]
scores = read_json(snakemake.input.scores)
labels = {name: entry["label"] for name, entry in params.networks.items()}


def cells(read, pixels="float"):
    return read(scores, [tuple(pair) for pair in params.pairs], labels, params.symbols, pixels)


if kind == "matrix":
    frame = cells(frames.pairs)
    figure = matrix.transfer_matrix(frame, params.families, params.entry.get("order") == "given")
elif kind == "strength":
    frame = cells(frames.pairs)
    base = frame.perturbation.map(params.bases)
    base_label = base.map(lambda name: wording.row_label(name, labels, params.symbols))
    frame = frame.assign(base=base, base_label=base_label, scaled=frame.perturbation != base)
    figure = strength.strength(frame)
elif kind == "files":
    frame = pd.concat([cells(frames.pairs, pixels) for pixels in params.pixels], ignore_index=True)
    figure = files.files(frame)
elif kind == "budget":
    along = params.entry["along"]
    tables = [frames.robustness(scores, params.series, along, pixels) for pixels in params.pixels]
    frame = pd.concat(tables, ignore_index=True)
    figure = budget.budget(tables[params.pixels.index("float")], along)
elif kind == "classes":
    frame = cells(frames.per_class)
    figure = classes.classes(frame)
else:
    frame = cells(frames.differences)
    figure = intervals.intervals(frame)
write_text(output.csv, frame.to_csv(index=False))
style.save(figure, output.svg)
style.save(figure, output.png)
