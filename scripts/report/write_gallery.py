"""The page of a gallery; see rule write_gallery."""

from pathlib import Path

from dag.data.classes import ClassList
from dag.workflow.startup import start

start(snakemake.log[0])

from dag.report import gallery
from dag.report.wording import row_label
from dag.workflow.files import read_json, write_text

params, output = snakemake.params, snakemake.output
labels = {name: entry["label"] for name, entry in params.networks.items()}
template, css, js = (Path(path).read_text(encoding="utf-8") for path in snakemake.input.page)
content = gallery.data(
    {key: params.entry[key] for key in ("title", "description", "image_set")} | params.experiment,
    params.victims,
    {name: row_label(name, labels, params.symbols) for name in params.shown},
    params.shown,
    {Path(path).stem: read_json(path) for path in snakemake.input.records},
    ClassList.of(params.classes),
)
write_text(output.data, gallery.script("gallery.start", content))
write_text(output.css, css)
write_text(output.js, js)
write_text(output.html, gallery.page(template, params.entry["title"]))
