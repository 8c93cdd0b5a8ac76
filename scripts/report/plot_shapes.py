"""Shaped examples; see rule plot_shapes."""

from pathlib import Path

import pandas as pd

from dag.data.classes import ClassList
from dag.report.figures import examples, style
from dag.workflow.startup import start

start(snakemake.log[0])

from dag.report.collect import choice, shaped_examples
from dag.workflow.files import write_text

params, output = snakemake.params, snakemake.output
rows = shaped_examples(Path(snakemake.input[0]))
numbers = ["start", "shape", "class", "status", "iterations", "reached_before", "reached", "largest", "perceptibility"]
write_text(output.csv, pd.DataFrame(rows)[numbers].to_csv(index=False))
note = f"Network: {params.label}. {choice(params.entry, params.images)}"
figure = examples.examples(rows, truth_title="wanted", note=note, classes=ClassList.of(params.classes))
style.save(figure, output.svg)
style.save(figure, output.png)
