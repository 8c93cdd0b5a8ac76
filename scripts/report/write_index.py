"""One page with all tables and figures; see rule write_index."""

import os
from pathlib import Path

from dag.workflow.startup import start

start(snakemake.log[0])

from dag.report.page import page
from dag.workflow.files import write_text

params, folder = snakemake.params, Path(snakemake.output[0]).parent
template, style = Path(snakemake.input.template), Path(snakemake.input.style)
files = {name: [os.path.relpath(path, folder) for path in paths] for name, paths in params.files.items()}
html = page(params.experiment, params.products, files, params.captions, folder, template, style)
write_text(snakemake.output[0], html)
