"""Figures beyond the paper that follow from scores; see rule plot_transfer."""

import json
from pathlib import Path

from dag.workflow.startup import start

start(snakemake.log[0])

import pandas as pd

from dag.report import figures, tables, transfer_figures
from dag.workflow.store import write_text

params, output = snakemake.params, snakemake.output
kind = params.entry["kind"]
scores = json.loads(Path(snakemake.input.scores).read_text())
labels = {name: entry["label"] for name, entry in params.networks.items()}


def cells(read, pixels="float"):
    return read(scores, [tuple(pair) for pair in params.pairs], labels, params.symbols, pixels)


if kind == "matrix":
    frame = cells(tables.pairs)
    figure = transfer_figures.transfer_matrix(frame, params.families)
elif kind == "strength":
    frame = cells(tables.pairs)
    base = frame.perturbation.map(params.bases)
    base_label = base.map(lambda name: tables.row_label(name, labels, params.symbols))
    frame = frame.assign(base=base, base_label=base_label, scaled=frame.perturbation != base)
    figure = transfer_figures.strength(frame)
elif kind == "files":
    frame = pd.concat([cells(tables.pairs, pixels) for pixels in params.pixels], ignore_index=True)
    figure = transfer_figures.files(frame)
elif kind == "classes":
    frame = cells(tables.per_class)
    figure = transfer_figures.classes(frame)
else:
    frame = cells(tables.differences)
    figure = transfer_figures.intervals(frame)
write_text(output.csv, frame.to_csv(index=False))
figures.save(figure, output.svg)
figures.save(figure, output.png)
