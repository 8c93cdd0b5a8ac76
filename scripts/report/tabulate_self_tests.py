"""Whether the attacks can be believed; see rule tabulate_self_tests."""

from dag.report import claims, frames, self_tests
from dag.workflow.startup import start

start(snakemake.log[0])

import pandas as pd

from dag.report.collect import planted, records
from dag.workflow.files import read_json, write_text

params = snakemake.params
tables = {"eps": [pd.DataFrame()], "iterations": [pd.DataFrame()]}
for path, entry in zip(snakemake.input.scores, params.compared, strict=True):
    frame = frames.robustness(read_json(path), entry["series"], entry["along"], "float")
    tables[entry["along"]].append(frame.assign(table=path))
budgets, iterations = (pd.concat(frames_along, ignore_index=True) for frames_along in tables.values())
frame = self_tests.self_tests(
    budgets,
    iterations,
    records(snakemake.input.shards, params.networks),
    planted(snakemake.input.planted, params.networks),
)
write_text(snakemake.output.csv, frame.to_csv(index=False))
write_text(snakemake.output.markdown, claims.to_markdown(frame, "Can these attacks be believed?", self_tests.CAPTION))
