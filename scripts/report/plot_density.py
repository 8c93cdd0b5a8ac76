"""Figure 3; see rule plot_density."""

from dag.report import frames
from dag.report.figures import density, style
from dag.workflow.startup import start

start(snakemake.log[0])

import numpy as np
import pandas as pd

from dag.report.collect import records
from dag.workflow import plan
from dag.workflow.files import read_json, write_text

params, output = snakemake.params, snakemake.output
scores = read_json(snakemake.input.scores)
labels = {name: entry["label"] for name, entry in params.networks.items()}
frame = frames.transfer(scores, params.entry["perturbations"], labels, params.symbols, "float")
attacked = pd.DataFrame(
    {
        "perturbation": source["source"],
        "nms": source["settings"]["nms"],
        "proposals": np.mean([record["available"] for record in source["records"]]),
        "targets": np.mean([record["targets"] for record in source["records"]]),
    }
    for source in records(snakemake.input.shards, params.networks)
)
points = frame.merge(attacked, on="perturbation", validate="many_to_one").sort_values(["victim", "nms"])
write_text(output.csv, points.to_csv(index=False))
sources = dict.fromkeys(labels[plan.network_of(name)] for name in params.entry["perturbations"])
figure = density.density(points, frame.metric.iloc[0], ", ".join(sources))
style.save(figure, output.svg)
style.save(figure, output.png)
