"""Make a table from the scores of its victims; see rule tabulate."""

import json
from pathlib import Path

from dag.workflow.startup import start

start(snakemake.log[0])

import pandas as pd

from dag.report import figures, tables
from dag.workflow.store import write_text

params, output = snakemake.params, snakemake.output
entry, paper = params.entry, params.entry.get("paper")
scores = json.loads(Path(snakemake.input.scores).read_text())
if entry["layout"] == "transfer":
    frames = {
        pixels: tables.transfer(scores, entry["perturbations"], params.labels, params.symbols, pixels, paper)
        for pixels in params.pixels
    }
else:
    frames = {pixels: tables.white_box(scores, entry["sources"], pixels, paper) for pixels in params.pixels}
write_text(output.csv, pd.concat(frames.values()).to_csv(index=False))
sections = {tables.pixel_words(pixels).capitalize(): frame for pixels, frame in frames.items()}
write_text(output.markdown, tables.document(params.title, sections, notes=params.notes))
write_text(
    output.latex, "\n".join(tables.to_latex(frame, params.title, notes=params.notes) for frame in frames.values())
)
missing = frames["float"].missing.str.split().str.len().max()
title = f"{params.title} ({missing} images missing)" if missing else params.title
figure = figures.table_figure(frames["float"], title)
figures.save(figure, output.svg)
figures.save(figure, output.png)
