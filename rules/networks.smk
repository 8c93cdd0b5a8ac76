"""Weights of the networks that are trained here.

PRODUCTS  resources/weights/bodies/{body}.pt, resources/weights/{network}.pt
"""


rule pretrain:
    """A body, taught to tell single objects apart; networks of one architecture share it."""
    input:
        objects="resources/mini/objects.npz",
    output:
        "resources/weights/bodies/{body}.pt",
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
        code=code("dag.train"),
    script:
        "../scripts/pretrain.py"


rule train:
    """A network from its body and its list of training images."""
    input:
        unpack(training_inputs),
    output:
        "resources/weights/{network}.pt",
    log:
        "logs/train/{network}.txt",
    conda:
        "../environment.yml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        network=lambda wildcards: network(wildcards.network),
        settings=training,
        seed=config["seed"],
        code=code("dag.train", "dag.voc"),
    script:
        "../scripts/train.py"
