"""Bring a published file here, or check the one that is here; see rule download."""

from dag.workflow.startup import start

start(snakemake.log[0])

import os

from dag.data.checksums import CHECKSUMS, pin, pinned
from dag.data.download import fetch

params, file = snakemake.params, snakemake.wildcards.file
published = any(params.checks.get(kind) for kind in CHECKSUMS)
checks = params.checks if published else params.checks | {"sha256": pinned(params.pins, file)}
sha256 = fetch(params.urls, params.path, **checks)
if not published:
    pin(params.pins, file, sha256)
os.symlink(os.path.relpath(params.path, os.path.dirname(snakemake.output[0])), snakemake.output[0])
