"""Perturbations: made by sources, added up, scaled, and controls of all of them.

PRODUCTS  results/{experiment}/{image_set}/perturbations/{perturbation}/{shard}.h5
          results/{experiment}/{image_set}/planted/{network}.json         a self-test of the attacks
          results/{experiment}/shapes/{product}.h5
          results/{experiment}/export/{image_set}/{perturbation}/index.csv, images/, perturbations/

What is not made by a source is temporary: sums, multiples and controls follow from the sources in seconds and
would multiply the storage.
"""


rule perturb:
    """One attack on one network, for the images of one shard."""
    input:
        weights=lambda wildcards: [
            file for name in plan.attacked(config, wildcards.source) for file in paths.weights(config, name).values()
        ],
        lists=lambda wildcards: lists_of(wildcards.image_set),
    output:
        "results/{experiment}/{image_set}/perturbations/{source}/{shard}.h5",
    log:
        "logs/perturb/{experiment}/{image_set}/{source}/{shard}.txt",
    benchmark:
        "results/{experiment}/benchmarks/perturb/{image_set}/{source}/{shard}.tsv"
    conda:
        "../environment.yml"
    resources:
        gpu=lambda wildcards: costs.gpus(config, plan.attacked(config, wildcards.source)),
        mem_mb=lambda wildcards: costs.memory_mb(config, plan.attacked(config, wildcards.source)),
        runtime=lambda wildcards: jobs.attack_minutes(config, wildcards.source),
    params:
        network=lambda wildcards: jobs.network(config, plan.network_of(wildcards.source)),
        others=lambda wildcards: [jobs.network(config, name) for name in plan.attacked(config, wildcards.source)[1:]],
        image_set=lambda wildcards: jobs.image_set(config, wildcards.image_set),
        contents=lambda wildcards: jobs.attack_contents(config, wildcards.image_set, wildcards.source, wildcards.shard),
        settings=lambda wildcards: jobs.attack(config, wildcards.source),
        given_up=lambda wildcards: jobs.uncounted(config, wildcards.image_set, wildcards.source),
        seed=config["seed"],
        code=code("scripts/attack/perturb.py"),
    script:
        "../scripts/attack/perturb.py"


rule plant:
    """Whether the attacks on a network find an adversarial example that is known to exist, on the first images."""
    input:
        weights=lambda wildcards: list(paths.weights(config, wildcards.network).values()),
        lists=lambda wildcards: lists_of(wildcards.image_set),
    output:
        "results/{experiment}/{image_set}/planted/{network}.json",
    log:
        "logs/plant/{experiment}/{image_set}/{network}.txt",
    conda:
        "../environment.yml"
    resources:
        gpu=lambda wildcards: costs.gpus(config, [wildcards.network]),
        mem_mb=lambda wildcards: costs.memory_mb(config, [wildcards.network]),
        runtime=lambda wildcards: jobs.plant_minutes(config, wildcards.network, wildcards.image_set),
    params:
        network=lambda wildcards: jobs.network(config, wildcards.network),
        image_set=lambda wildcards: jobs.image_set(config, wildcards.image_set),
        shard=lambda wildcards: plan.shards(config, wildcards.image_set)[0],
        contents=lambda wildcards: jobs.attack_contents(
            config, wildcards.image_set, wildcards.network, plan.shards(config, wildcards.image_set)[0]
        ),
        sources=lambda wildcards: jobs.planted(config, wildcards.network, wildcards.image_set),
        seed=config["seed"],
        code=code("scripts/attack/plant.py"),
    script:
        "../scripts/attack/plant.py"


rule shape:
    """Shaped examples: natural images and noise that a segmentation network labels as a chosen map."""
    input:
        weights=lambda wildcards: list(paths.weights(config, product(wildcards.product)["network"]).values()),
        lists=lambda wildcards: lists_of(product(wildcards.product)["image_set"]),
    output:
        "results/{experiment}/shapes/{product}.h5",
    log:
        "logs/shape/{experiment}/{product}.txt",
    benchmark:
        "results/{experiment}/benchmarks/shape/{product}.tsv"
    wildcard_constraints:
        product=one_of(plan.of_kind(config, "shapes")),
    conda:
        "../environment.yml"
    resources:
        gpu=lambda wildcards: costs.gpus(config, [product(wildcards.product)["network"]]),
        mem_mb=lambda wildcards: costs.memory_mb(config, [product(wildcards.product)["network"]]),
        runtime=lambda wildcards: jobs.shape_minutes(config, wildcards.product),
    params:
        network=lambda wildcards: jobs.network(config, product(wildcards.product)["network"]),
        image_set=lambda wildcards: jobs.image_set(config, product(wildcards.product)["image_set"]),
        contents=lambda wildcards: jobs.shape_contents(config, wildcards.product),
        given_up=lambda wildcards: plan.given_up(config, product(wildcards.product)["image_set"]),
        entry=lambda wildcards: jobs.shape_settings(config, wildcards.product),
        seed=config["seed"],
        code=code("scripts/attack/shape.py"),
    script:
        "../scripts/attack/shape.py"


rule combine:
    """Element-wise sum of the perturbations of several sources."""
    input:
        lambda wildcards: [
            paths.perturbation(config, wildcards.image_set, source, wildcards.shard)
            for source in wildcards.combination.split("+")
        ],
    output:
        temp("results/{experiment}/{image_set}/perturbations/{combination}/{shard}.h5"),
    log:
        "logs/combine/{experiment}/{image_set}/{combination}/{shard}.txt",
    conda:
        "../environment.yml"
    params:
        code=code("scripts/attack/combine.py"),
    script:
        "../scripts/attack/combine.py"


rule scale:
    """Multiples of a perturbation that have the same perceptibility on every image, in 10⁻³."""
    input:
        "results/{experiment}/{image_set}/perturbations/{perturbation}/{shard}.h5",
    output:
        temp("results/{experiment}/{image_set}/perturbations/{perturbation}.p-{milli}/{shard}.h5"),
    log:
        "logs/scale/{experiment}/{image_set}/{perturbation}.p-{milli}/{shard}.txt",
    wildcard_constraints:
        perturbation=SUM_PATTERN,
    conda:
        "../environment.yml"
    params:
        code=code("scripts/attack/scale.py"),
    script:
        "../scripts/attack/scale.py"


rule control:
    """Draws of a control: permuted, random signs, Gaussian noise; every draw from its own seed."""
    input:
        "results/{experiment}/{image_set}/perturbations/{perturbation}/{shard}.h5",
    output:
        temp(
            expand(
                "results/{{experiment}}/{{image_set}}/perturbations/{{perturbation}}.{{control}}-{draw}/{{shard}}.h5",
                draw=range(1, config["permutations"] + 1),
            )
        ),
    log:
        "logs/control/{experiment}/{image_set}/{perturbation}.{control}/{shard}.txt",
    wildcard_constraints:
        perturbation=SCALED_PATTERN,
    conda:
        "../environment.yml"
    params:
        seed=config["seed"],
        code=code("scripts/attack/control.py"),
    script:
        "../scripts/attack/control.py"


rule export_perturbation:
    """Perturbed images as PNG of 8 bits and perturbations as .npy, with an index."""
    input:
        shards=lambda wildcards: paths.source_shards(config, [(wildcards.perturbation, wildcards.image_set)]),
        lists=lambda wildcards: lists_of(wildcards.image_set),
    output:
        directory("results/{experiment}/export/{image_set}/{perturbation}"),
    log:
        "logs/export_perturbation/{experiment}/{image_set}/{perturbation}.txt",
    wildcard_constraints:
        perturbation=DRAWN_PATTERN,
    conda:
        "../environment.yml"
    params:
        image_set=lambda wildcards: jobs.image_set(config, wildcards.image_set),
        contents=lambda wildcards: jobs.all_contents(config, wildcards.image_set, "image"),
        code=code("scripts/attack/export_perturbation.py"),
    script:
        "../scripts/attack/export_perturbation.py"


rule export:
    """What `export` of the configuration names, as files: --config 'export={mini-test: [mini-fcn-vgg]}'."""
    input:
        lambda wildcards: exported(),
