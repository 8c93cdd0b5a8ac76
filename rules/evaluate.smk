"""What the victims see, and how well they still do.

PRODUCTS  results/{experiment}/{image_set}/predictions/{victim}/{perturbation}.{pixels}/{shard}.h5
          results/{experiment}/cells/{product}/{image_set}/{shard}.json   the cells that a table is made of
          results/{experiment}/scores/{product}.json
"""


rule predict:
    """All cells of one table or figure on one shard; cells that are on disk already are kept.

    The HDF5 files of the cells are not declared: tables share them, and Snakemake would delete them
    all when one is wanted anew.  Each carries the digest of everything that made it, and is replaced
    when that differs.
    """
    input:
        weights=cell_weights,
        perturbations=cell_perturbations,
        lists=lambda wildcards: ancient(image_lists(wildcards.image_set)),
    output:
        "results/{experiment}/cells/{product}/{image_set}/{shard}.json",
    log:
        "logs/predict/{experiment}/{product}/{image_set}/{shard}.txt",
    benchmark:
        "results/{experiment}/benchmarks/predict/{product}/{image_set}/{shard}.tsv"
    priority: 1
    conda:
        "../environment.yml"
    resources:
        gpu=lambda wildcards: budget.gpus(config, list(cells(wildcards))),
        mem_mb=lambda wildcards: budget.memory_mb(config, list(cells(wildcards))),
        runtime=predict_minutes,
    params:
        folder=lambda wildcards: f"{RESULTS}/{wildcards.image_set}",
        cells=cells,
        networks=lambda wildcards: {name: network(name) for name in cells(wildcards)},
        image_set=lambda wildcards: image_set(wildcards.image_set),
        pixels=lambda wildcards: pixels(product(wildcards.product)),
        code=code("scripts/evaluate/predict.py"),
    script:
        "../scripts/evaluate/predict.py"


rule score:
    """mIoU or mAP of every cell of a table or figure, with paired bootstrap errors."""
    input:
        manifests=cell_manifests,
        lists=lambda wildcards: ancient(product_lists(wildcards)),
    output:
        "results/{experiment}/scores/{product}.json",
    log:
        "logs/score/{experiment}/{product}.txt",
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        networks=victims,
        image_sets=product_image_sets,
        bootstrap=config["bootstrap"],
        seed=config["seed"],
        code=code("scripts/evaluate/score.py"),
    script:
        "../scripts/evaluate/score.py"
