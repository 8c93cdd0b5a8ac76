"""Show one shard under every perturbation of a table to its victims; see rule predict."""

from pathlib import Path

from dag.workflow.startup import device, identity, progress, start

start(snakemake.log[0], snakemake.threads)

from dag.data.classes import ClassList, match
from dag.data.readers import reader_of
from dag.evaluate import cells

params, shard = snakemake.params, snakemake.wildcards.shard
folder = Path(params.folder)
wanted, missing, roots, reader = [], [], {}, reader_of(params.image_set)
for victim, perturbations in params.cells.items():
    images, header = identity(params.networks[victim], params.image_set, shard, params.code)
    roots = {image_id: root for root, image_id in images}
    sources = {
        name: None if name == "none" else folder / "perturbations" / name / f"{shard}.h5" for name in perturbations
    }
    header |= {"seed": params.seed}
    mine = cells.cells_of(folder / "predictions", victim, shard, sources, params.pixels, header)
    wanted += mine
    lacking = [cell for cell in mine if not cell.done()]
    missing += lacking
    names = ", ".join(f"{cell.perturbation} ({cell.pixels})" for cell in lacking)
    print(f"{victim}: {len(lacking)} of {len(mine)} cells to compute: {names}", flush=True)
if missing:  # torch is not even imported when all is there
    from dag.evaluate import predict
    from dag.networks.building import build_told

    victims = dict.fromkeys(cell.victim for cell in missing)
    computed = predict.predict(
        {victim: build_told(params.networks[victim], source=False) for victim in victims},
        lambda image_id: reader.image((roots[image_id], image_id)),
        list(roots),
        missing,
        matches={victim: match(ClassList.of(params.networks[victim]["classes"]), reader.classes) for victim in victims},
        seed=params.seed,
        device=device(),
        progress=lambda items, total: progress(items, "images", total),
    )
    for victim, count in computed.items():
        print(f"{victim}: {count} cells computed", flush=True)
cells.write_manifest(snakemake.output[0], wanted)
