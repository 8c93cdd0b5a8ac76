"""What the victims see, and how well they still do.

PRODUCTS  results/{experiment}/{image_set}/predictions/{victim}/{shard}.json  which cells are there
          results/{experiment}/{image_set}/predictions/{victim}/{shard}/{perturbation}.{pixels}.h5
          results/{experiment}/{image_set}/scores/{victim}.json
"""


rule predict:
    """All cells of one victim on one shard; cells that are on disk already are kept.

    The HDF5 files of the cells are not declared: Snakemake would delete them all when one is
    wanted anew.  Each carries the digest of everything that made it, and is replaced when that
    differs.
    """
    input:
        unpack(victim_weights),
        perturbations=perturbation_shards,
        lists=lambda wildcards: ancient(image_lists(wildcards.image_set)),
    output:
        "results/{experiment}/{image_set}/predictions/{victim}/{shard}.json",
    log:
        "logs/predict/{experiment}/{image_set}/{victim}/{shard}.txt",
    benchmark:
        "benchmarks/predict/{experiment}/{image_set}/{victim}/{shard}.tsv"
    params:
        network=lambda wildcards: network(wildcards.victim),
        image_set=image_set,
        perturbations=perturbations_seen,
        pixels=config["pixels"],
        code=code("dag.evaluate"),
    priority: 1
    resources:
        mem_mb=4000,
        runtime=240,
    script:
        "../scripts/predict.py"


rule score:
    """mIoU or mAP of one victim under every perturbation, with paired bootstrap errors."""
    input:
        manifests=prediction_manifests,
        lists=lambda wildcards: ancient(image_lists(wildcards.image_set)),
    output:
        "results/{experiment}/{image_set}/scores/{victim}.json",
    log:
        "logs/score/{experiment}/{image_set}/{victim}.txt",
    params:
        network=lambda wildcards: network(wildcards.victim),
        label=lambda wildcards: config["networks"][wildcards.victim]["label"],
        image_set=image_set,
        bootstrap=config["bootstrap"],
        seed=config["seed"],
        code=code("dag.scores"),
    resources:
        mem_mb=4000,
        runtime=60,
    script:
        "../scripts/score.py"
