"""Plant adversarial examples, and let the attacks on one network look for them; see rule plant."""

from dag.workflow.startup import device, identity, progress, start

start(snakemake.log[0], snakemake.threads)

from dag.attack.planted import find_planted
from dag.data import readers
from dag.data.classes import match
from dag.networks.building import build_told
from dag.workflow.files import write_json
from dag.workflow.names import PLANTED

params, network = snakemake.params, snakemake.params.network
images, _ = identity(network, params.image_set, params.shard, params.code, ("image", network["task"]))
built = build_told(network)
reader = readers.reader_of(params.image_set)
matched = match(built.classes, reader.classes)
found = find_planted(
    built,
    images[:PLANTED],
    params.sources,
    reader=reader,
    match=matched,
    seed=params.seed,
    name=network["name"],
    device=device(),
    progress=lambda items, total: progress(items, network["name"], total),
)
write_json(snakemake.output[0], found)
