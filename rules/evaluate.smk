"""What the victims see, and how well they still do.

PRODUCTS  results/{experiment}/{image_set}/predictions/{victim}/{perturbation}.{pixels}/{shard}.h5
          results/{experiment}/cells/{product}/{image_set}/{shard}.json   the cells that a table is made of
          results/{experiment}/scores/{product}.json
          results/{experiment}/lineages/{product}.json                    pairs of networks, how alike, what is lost
"""


rule predict:
    """All cells of one table or figure on one shard; cells that are on disk already are kept.

    The HDF5 files of the cells are not declared: tables share them, and Snakemake would delete them
    all when one is wanted anew.  Each carries the digest of everything that made it, and is replaced
    when that differs.
    """
    input:
        weights=lambda wildcards: jobs.cell_weights(config, wildcards.product, wildcards.image_set),
        perturbations=lambda wildcards: jobs.cell_perturbations(
            config, wildcards.product, wildcards.image_set, wildcards.shard
        ),
        lists=lambda wildcards: lists_of(wildcards.image_set),
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
        gpu=lambda wildcards: costs.gpus(config, list(jobs.cells(config, wildcards.product, wildcards.image_set))),
        mem_mb=lambda wildcards: costs.memory_mb(
            config, list(jobs.cells(config, wildcards.product, wildcards.image_set))
        ),
        runtime=lambda wildcards: jobs.predict_minutes(config, wildcards.product, wildcards.image_set),
    params:
        folder=lambda wildcards: paths.told(config, f"{paths.results(config)}/{wildcards.image_set}"),
        cells=lambda wildcards: jobs.cells(config, wildcards.product, wildcards.image_set),
        networks=lambda wildcards: {
            name: jobs.network(config, name) for name in jobs.cells(config, wildcards.product, wildcards.image_set)
        },
        image_set=lambda wildcards: jobs.image_set(config, wildcards.image_set),
        contents=lambda wildcards: jobs.shard_contents(config, wildcards.image_set, wildcards.shard, "image"),
        pixels=lambda wildcards: plan.pixels(config, product(wildcards.product)),
        seed=config["seed"],
        code=code("scripts/evaluate/predict.py"),
    script:
        "../scripts/evaluate/predict.py"


rule score:
    """mIoU or mAP of every cell of a table or figure, with paired bootstrap errors."""
    input:
        manifests=lambda wildcards: paths.manifests(config, wildcards.product),
        checked=lambda wildcards: paths.checks(config, wildcards.product),
        lists=lambda wildcards: lists_of(*plan.image_sets(product(wildcards.product))),
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
        networks=lambda wildcards: jobs.victims(config, wildcards.product),
        image_sets=lambda wildcards: jobs.image_sets(config, wildcards.product),
        worst=lambda wildcards: comparisons.worst(config, product(wildcards.product)),
        draws=lambda wildcards: plan.repeated(product(wildcards.product)),
        ensembles=lambda wildcards: plan.ensembles(config, product(wildcards.product)),
        bootstrap=config["bootstrap"],
        seed=config["seed"],
        code=code("scripts/evaluate/score.py"),
    script:
        "../scripts/evaluate/score.py"


rule compare_networks:
    """Every source and victim of a figure of lineages: how alike they are, what the victim loses, and means of that."""
    input:
        manifests=lambda wildcards: paths.manifests(config, wildcards.product),
        checked=lambda wildcards: paths.checks(config, wildcards.product),
        lists=lambda wildcards: lists_of(*plan.image_sets(product(wildcards.product))),
        weights=lambda wildcards: jobs.weights(config, plan.mentioned(product(wildcards.product))),
    output:
        "results/{experiment}/lineages/{product}.json",
    log:
        "logs/compare_networks/{experiment}/{product}.txt",
    wildcard_constraints:
        product=one_of(plan.of_kind(config, "lineage")),
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        networks=lambda wildcards: {
            name: jobs.network(config, name) for name in plan.mentioned(product(wildcards.product))
        },
        kin=lambda wildcards: description.kin(config, product(wildcards.product)),
        image_sets=lambda wildcards: jobs.image_sets(config, wildcards.product),
        bootstrap=config["bootstrap"],
        seed=config["seed"],
        code=code("scripts/evaluate/compare_networks.py"),
    script:
        "../scripts/evaluate/compare_networks.py"
