"""One page with all tables and figures; see rule write_index."""

from pathlib import Path

from dag.job import start

start(snakemake.log[0])

from dag.page import page
from dag.store import write_text

params, folder = snakemake.params, Path(snakemake.output[0]).parent
write_text(snakemake.output[0], page(params.title, params.description, params.products, folder))
