"""Weights of networks that are trained here: the miniature's, and full-size ones that are not published.

PRODUCTS  resources/weights/bodies/{body}.pt, resources/weights/{network}.pt
"""


rule pretrain:
    """Pretrain a body to classify single objects; networks of the same architecture share it."""
    input:
        objects="resources/mini/objects.npz",
    output:
        f"{paths.trained(config)}/bodies/{{body}}.pt",
    log:
        "logs/pretrain/{body}.txt",
    conda:
        "../environment.yml"
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        settings=lambda wildcards: config["bodies"][wildcards.body],
        seed=config["seed"],
        code=code("scripts/networks/pretrain.py"),
    script:
        "../scripts/networks/pretrain.py"


rule train:
    """Train a network of the miniature from its body on its list of training images."""
    input:
        unpack(lambda wildcards: jobs.training_inputs(config, wildcards.network)),
    output:
        f"{paths.trained(config)}/{{network}}.pt",
    log:
        "logs/train/{network}.txt",
    wildcard_constraints:
        network=one_of(plan.trained_by(config, "body")),
    conda:
        "../environment.yml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        network=lambda wildcards: jobs.network(config, wildcards.network),
        settings=lambda wildcards: training(wildcards.network),
        contents=lambda wildcards: jobs.training_contents(config, wildcards.network),
        seed=config["seed"],
        code=code("scripts/networks/train.py"),
    script:
        "../scripts/networks/train.py"


rule train_by_recipe:
    """Train a full-size network by a published recipe, from ImageNet weights or the previous stage.

    Every few minutes the job writes resources/weights/{network}.checkpoint, which is not declared; an interrupted
    job resumes from it.
    """
    input:
        initial=lambda wildcards: paths.initial_weights(config, wildcards.network),
        lists=lambda wildcards: lists_of(training(wildcards.network)["image_set"]),
    output:
        f"{paths.trained(config)}/{{network}}.pt",
    log:
        "logs/train_by_recipe/{network}.txt",
    wildcard_constraints:
        network=one_of(plan.trained_by(config, "recipe")),
    conda:
        "../environment.yml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=lambda wildcards: 6000 + 700 * config["recipes"][training(wildcards.network)["recipe"]].get("batch", 1),
        runtime=2880,
    params:
        network=lambda wildcards: jobs.network(config, wildcards.network),
        image_set=lambda wildcards: jobs.image_set(config, training(wildcards.network)["image_set"]),
        contents=lambda wildcards: jobs.all_contents(
            config,
            training(wildcards.network)["image_set"],
            "image",
            *plan.tasks(config, [wildcards.network]),
        ),
        repeated=lambda wildcards: config["image_sets"][training(wildcards.network)["image_set"]].get("repeated", False),
        recipe=lambda wildcards: config["recipes"][training(wildcards.network)["recipe"]],
        seed=config["seed"],
        code=code("scripts/networks/train_by_recipe.py"),
    script:
        "../scripts/networks/train_by_recipe.py"
