"""Unpack SBD into the layout of VOC; see rule unpack_sbd."""

from dag.workflow.startup import progress, start

start(snakemake.log[0])

import os
import shutil
from pathlib import Path

from dag.data.archives import unpack
from dag.data.voc import arrange_sbd

root = Path(snakemake.output[0]).parents[2]
dataset = root.with_name(root.name + ".dataset")
for folder in (root, dataset):  # the folders that Snakemake made, or an older attempt
    shutil.rmtree(folder, ignore_errors=True)
unpack(snakemake.input, dataset, snakemake.params.members, strip=2)
arrange_sbd(dataset, lambda ids: progress(ids, "label maps"))
os.sync()
os.replace(dataset, root)
