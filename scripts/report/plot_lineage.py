"""What carries a perturbation from network to network, as points and means; see rule plot_lineage."""

from dag.report.figures import lineage, style
from dag.workflow.startup import start

start(snakemake.log[0])

import pandas as pd

from dag.workflow.files import read_json, write_text

output, found = snakemake.output, read_json(snakemake.input[0])
pairs, groups = pd.DataFrame(found["pairs"]), pd.DataFrame(found["groups"])
write_text(output.csv, groups.assign(images=found["images"]).to_csv(index=False))
write_text(output.pairs, pairs.to_csv(index=False))
figure = lineage.lineage(pairs, groups)
style.save(figure, output.svg)
style.save(figure, output.png)
