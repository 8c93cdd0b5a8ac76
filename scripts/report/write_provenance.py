"""What made the results of an experiment; see rule write_provenance."""

from pathlib import Path

from dag.workflow.startup import start

start(snakemake.log[0])

from dag.report.provenance import provenance
from dag.workflow.store import write_json

params = snakemake.params
products = {
    name: {kind: [Path(path) for path in paths] for kind, paths in entry.items()}
    for name, entry in params.products.items()
}
sources = [Path(path) for path in snakemake.input.shards]
write_json(snakemake.output[0], provenance(params.configuration, params.package, sources, products))
