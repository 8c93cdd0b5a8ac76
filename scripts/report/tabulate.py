"""Make a table from the scores of its victims; see rule tabulate."""

from dag.report import frames, printing, wording
from dag.report.figures import heat_map, style
from dag.workflow.startup import start

start(snakemake.log[0])

import pandas as pd

from dag.workflow.files import read_json, write_text

params, output = snakemake.params, snakemake.output
entry, paper = params.entry, params.entry.get("paper")
scores = read_json(snakemake.input.scores)
if entry["layout"] == "transfer":
    tables = {
        pixels: frames.transfer(scores, entry["perturbations"], params.labels, params.symbols, pixels, paper)
        for pixels in params.pixels
    }
elif entry["layout"] == "robustness":
    tables = {pixels: frames.robustness(scores, params.series, entry["along"], pixels) for pixels in params.pixels}
else:
    tables = {pixels: frames.white_box(scores, entry["sources"], pixels, paper) for pixels in params.pixels}
write_text(output.csv, pd.concat(tables.values()).to_csv(index=False))
sections = {wording.pixel_words(pixels).capitalize(): frame for pixels, frame in tables.items()}
write_text(output.markdown, printing.document(params.title, sections, notes=params.notes))
write_text(
    output.latex, "\n".join(printing.to_latex(frame, params.title, notes=params.notes) for frame in tables.values())
)
missing = tables["float"].missing.str.split().str.len().max()
title = f"{params.title} ({missing} images missing)" if missing else params.title
figure = heat_map.table_figure(tables["float"], title)
style.save(figure, output.svg)
style.save(figure, output.png)
