"""Show one shard under every perturbation of a table to its victims; see rule predict."""

from pathlib import Path

from dag.workflow.startup import device, identity, progress, start

start(snakemake.log[0], snakemake.threads)

from dag.data import voc
from dag.evaluate import cells

params, shard = snakemake.params, snakemake.wildcards.shard
folder = Path(params.folder)
wanted, images = [], None
for victim, perturbations in params.cells.items():
    network = params.networks[victim]
    listed, header = identity(network, params.image_set, shard, params.code)
    sources = {
        name: None if name == "none" else folder / "perturbations" / name / f"{shard}.h5" for name in perturbations
    }
    mine = cells.cells_of(folder / "predictions", victim, shard, sources, params.pixels, header)
    wanted += mine
    missing = [cell for cell in mine if not cell.done()]
    names = ", ".join(f"{cell.perturbation} ({cell.pixels})" for cell in missing)
    print(f"{victim}: {len(missing)} of {len(mine)} cells to compute: {names}", flush=True)
    if missing:  # torch is not even imported when all is there
        from dag.evaluate import predict
        from dag.networks.building import build

        images = images or [voc.read_image(root, image_id) for root, image_id in listed]
        computed = predict.predict(
            build(network["architecture"], network["arguments"], network["files"], task=network["task"]),
            images,
            [image_id for _, image_id in listed],
            missing,
            device=device(),
            progress=lambda items, victim=victim: progress(items, victim),
        )
        print(f"{victim}: {computed} cells computed", flush=True)
cells.write_manifest(snakemake.output[0], wanted)
