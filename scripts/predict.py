"""Show one shard under every wanted perturbation to one victim; see rule predict."""

from pathlib import Path

from dag.job import device, identity, progress, start, weight_files

start(snakemake.log[0], snakemake.threads)

from dag import cells

params, manifest = snakemake.params, Path(snakemake.output[0])
files = weight_files(snakemake.input)
images, header = identity(params, files, snakemake.wildcards.shard)
shards = iter(Path(path) for path in snakemake.input.get("perturbations", []))
sources = {name: None if name == "none" else next(shards) for name in params.perturbations}
wanted = cells.cells_of(manifest.with_suffix(""), sources, params.pixels, header)
missing = [cell for cell in wanted if not cell.done()]
print(f"{len(missing)} of {len(wanted)} cells to compute: {', '.join(cell.path.stem for cell in missing)}", flush=True)
if missing:  # torch is not even imported when all is there
    from dag import evaluate
    from dag.networks.interface import build

    evaluate.predict(
        build(params.network["architecture"], params.network["arguments"], files),
        images,
        missing,
        device=device(),
        progress=lambda items: progress(items, params.network["name"]),
    )
cells.write_manifest(manifest, wanted)
