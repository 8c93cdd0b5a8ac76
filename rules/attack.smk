"""Perturbations: made by sources, added up, permuted.

PRODUCTS  results/{experiment}/{image_set}/perturbations/{perturbation}/{shard}.h5

Sums and permuted draws are temporary: they follow from the sources in seconds and would multiply
the storage.
"""


rule perturb:
    """Dense Adversary Generation on one shard with one source."""
    input:
        weights=source_weights,
        lists=lambda wildcards: ancient(image_lists(wildcards.image_set)),
    output:
        "results/{experiment}/{image_set}/perturbations/{source}/{shard}.h5",
    log:
        "logs/perturb/{experiment}/{image_set}/{source}/{shard}.txt",
    benchmark:
        "results/{experiment}/benchmarks/perturb/{image_set}/{source}/{shard}.tsv"
    conda:
        "../environment.yml"
    resources:
        gpu=lambda wildcards: budget.gpus(config, [plan.network_of(wildcards.source)]),
        mem_mb=lambda wildcards: budget.memory_mb(config, [plan.network_of(wildcards.source)]),
        runtime=attack_minutes,
    params:
        network=lambda wildcards: network(plan.network_of(wildcards.source)),
        image_set=lambda wildcards: image_set(wildcards.image_set),
        settings=lambda wildcards: plan.attack(config, wildcards.source),
        seed=config["seed"],
        code=code("dag.generate"),
    script:
        "../scripts/perturb.py"


rule combine:
    """Element-wise sum of the perturbations of several sources."""
    input:
        summands,
    output:
        temp("results/{experiment}/{image_set}/perturbations/{combination}/{shard}.h5"),
    log:
        "logs/combine/{experiment}/{image_set}/{combination}/{shard}.txt",
    conda:
        "../environment.yml"
    params:
        code=code("dag.derive"),
    script:
        "../scripts/combine.py"


rule permute:
    """Control: rows and columns shuffled, every draw from its own seed."""
    input:
        "results/{experiment}/{image_set}/perturbations/{perturbation}/{shard}.h5",
    output:
        temp(
            expand(
                "results/{{experiment}}/{{image_set}}/perturbations/{{perturbation}}.permuted-{draw}/{{shard}}.h5",
                draw=range(1, config["permutations"] + 1),
            )
        ),
    log:
        "logs/permute/{experiment}/{image_set}/{perturbation}/{shard}.txt",
    conda:
        "../environment.yml"
    params:
        seed=config["seed"],
        code=code("dag.derive"),
    script:
        "../scripts/permute.py"
