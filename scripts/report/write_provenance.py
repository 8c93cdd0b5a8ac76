"""What made the results of an experiment; see rule write_provenance."""

from pathlib import Path

from dag.workflow.startup import start

start(snakemake.log[0])

from dag.evaluate.cells import recomputed
from dag.report.provenance import provenance
from dag.workflow.files import write_json

params = snakemake.params
products = {
    name: {kind: [Path(path) for path in paths] for kind, paths in entry.items()}
    for name, entry in params.products.items()
}
sources = [Path(path) for path in snakemake.input.shards]
with recomputed(*(path for entry in params.products.values() for path in entry["manifests"])):
    made = provenance(params.configuration, params.package, sources, products)
write_json(snakemake.output[0], made)
