"""Perceptibility of every perturbation; see rule tabulate_perceptibility."""

from dag.report import attack_frames, frames, printing
from dag.workflow.startup import start

start(snakemake.log[0])

import pandas as pd

from dag.workflow.files import read_json, write_text

params = snakemake.params
labels = {name: entry["label"] for name, entry in params.networks.items()}
shown = []
for path, entry in zip(snakemake.input.scores, params.tables.values(), strict=True):
    scores, paper = read_json(path), entry.get("paper")
    if entry["layout"] == "transfer":
        shown.append(frames.transfer(scores, entry["perturbations"], labels, params.symbols, "float", paper))
    else:
        shown.append(frames.white_box(scores, entry["sources"], "float", paper))
# an experiment with tables of robustness alone has none
frame = attack_frames.perceptibility(pd.concat(shown)) if shown else pd.DataFrame(columns=attack_frames.COLUMNS)
write_text(snakemake.output.csv, frame.to_csv(index=False))
write_text(
    snakemake.output.markdown, printing.document("Perceptibility of the perturbations", {"All perturbations": frame})
)
