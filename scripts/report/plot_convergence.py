"""Figure 4; see rule plot_convergence."""

from dag.report.figures import convergence, style
from dag.workflow.startup import start

start(snakemake.log[0])

import pandas as pd

from dag.report.collect import records
from dag.workflow.files import write_text

sources = records(snakemake.input.shards, snakemake.params.networks)
curves = {source["label"]: [record["active"] for record in source["records"]] for source in sources}
variants = {source["label"]: source["source"].partition("@")[2] for source in sources}
points = pd.DataFrame(
    {"source": source["source"], "image": record["image"], "iteration": iteration, "active": active}
    for source in sources
    for record in source["records"]
    for iteration, active in enumerate(record["active"])
)
write_text(snakemake.output.csv, points.to_csv(index=False))
figure = convergence.convergence(curves, {source["label"]: source["task"] for source in sources}, variants)
style.save(figure, snakemake.output.svg)
style.save(figure, snakemake.output.png)
