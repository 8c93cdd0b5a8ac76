"""What of the paper's claims holds in this experiment; see rule tabulate_claims."""

from dag.report import attack_frames, frames
from dag.workflow.startup import start

start(snakemake.log[0])

import pandas as pd

from dag.report import claims
from dag.report.collect import records
from dag.workflow.files import read_json, write_text

params = snakemake.params
labels = {name: entry["label"] for name, entry in params.networks.items()}
cells = [
    frames.transfer(read_json(path), entry["perturbations"], labels, params.symbols, pixels)
    if entry["layout"] == "transfer"
    else frames.white_box(read_json(path), entry["sources"], pixels)
    for path, entry in zip(snakemake.input.scores, params.tables.values(), strict=True)
    for pixels in entry["pixels"]
]
statuses = attack_frames.statuses(records(snakemake.input.shards, params.networks))
shown = pd.concat(cells, ignore_index=True) if cells else claims.no_cells()
papers = shown[~shown.victim.isin(params.defended)]  # the paper's networks see images as they are
frame = claims.claims(papers, statuses, params.families, params.architectures, params.printed)
write_text(snakemake.output.csv, frame.to_csv(index=False))
write_text(snakemake.output.markdown, claims.to_markdown(frame))
