"""Take a published file out of its archive; see rule extract."""

from dag.workflow.startup import start

start(snakemake.log[0])

from dag.data.archives import extract
from dag.data.checksums import CHECKSUMS, pin

params = snakemake.params
sha256 = extract(snakemake.input.archive, params.member, snakemake.output[0], **params.checks)
if not any(params.checks.get(kind) for kind in CHECKSUMS):
    pin(params.pins, snakemake.wildcards.file, sha256)
