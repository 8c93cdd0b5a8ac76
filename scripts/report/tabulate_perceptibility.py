"""Perceptibility of every perturbation; see rule tabulate_perceptibility."""

from dag.report import attack_frames, frames, printing
from dag.workflow.startup import start

start(snakemake.log[0])

import pandas as pd

from dag.workflow.files import read_json, write_text

params = snakemake.params
labels = {name: entry["label"] for name, entry in params.networks.items()}
shown = [
    frames.transfer(
        read_json(path),
        entry["perturbations"],
        labels,
        params.symbols,
        "float",
        entry.get("paper"),
    )
    for path, entry in zip(snakemake.input.scores, params.tables.values(), strict=True)
]
frame = attack_frames.perceptibility(pd.concat(shown))
write_text(snakemake.output.csv, frame.to_csv(index=False))
write_text(
    snakemake.output.markdown, printing.document("Perceptibility of the perturbations", {"All perturbations": frame})
)
