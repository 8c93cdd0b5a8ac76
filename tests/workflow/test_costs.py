"""Costs of an experiment that can be counted by hand."""

import pytest

from dag.workflow import costs

COST = {"mem_mb": 9000, "forward": 100, "iteration": 300, "iterations": 40}


@pytest.fixture
def config() -> dict:
    table = {"layout": "transfer", "image_set": "ten", "perturbations": ["none", "big", "big.permuted"]}
    return {
        "experiment": "try",
        "gpu": "card",
        "gpus": {"card": {"attack": 10, "evaluation": 20, "measured": "never"}},
        "permutations": 3,
        "pixels": ["float", "8-bit"],
        "networks": {"big": {"task": "detection", "cost": COST}, "small": {"task": "detection"}},
        "image_sets": {"ten": {"size": 10}},
        "attacks": {"detection": {"iterations": 150}},
        "variants": {"short": {"iterations": 20}},
        "tables": {"t": table | {"victims": ["big", "small"]}},
        "figures": {},
        "products": ["t"],
    }


def test_an_attack_costs_its_mean_iterations_but_never_more_than_its_limit(config):
    # 10 images x 40 iterations x 300 GFLOP at 10 TFLOP/s
    assert costs.attack_seconds(config, "big", 10) == pytest.approx(12)
    assert costs.attack_seconds(config, "big@short", 10) == pytest.approx(6)
    assert costs.attack_seconds(config, "small", 10) == 0


def test_predictions_cost_a_pass_per_victim_perturbation_and_rendering(config):
    # clean once; one perturbation and its three draws, as floats and as 8 bits: 9 passes of 100 GFLOP at 20 TFLOP/s
    assert costs.predict_seconds(config, config["tables"]["t"], "ten", 10) == pytest.approx(0.45)
    config["tables"]["t"]["pixels"] = ["float"]
    assert costs.predict_seconds(config, config["tables"]["t"], "ten", 10) == pytest.approx(0.25)


def test_shaped_examples_cost_all_their_iterations(config):
    # 2 images and noise, 3 shapes, 100 iterations x 300 GFLOP at 10 TFLOP/s
    entry = {
        "network": "big",
        "images": 2,
        "noise": [9, 9],
        "shapes": dict.fromkeys("abc"),
        "attack": {"iterations": 100},
    }
    assert costs.shape_seconds(config, entry) == pytest.approx(27)
    assert costs.shape_seconds(config, entry | {"images": ["x"]}) == pytest.approx(18)
    assert costs.shape_seconds(config, entry | {"network": "small"}) == 0


def test_only_networks_with_a_cost_ask_for_a_gpu_and_more_memory(config):
    assert costs.gpus(config, ["small"]) == 0 and costs.gpus(config, ["small", "big"]) == 1
    assert costs.memory_mb(config, ["small"]) == 4000 and costs.memory_mb(config, ["small", "big"]) == 9000


def test_a_job_that_holds_several_networks_has_room_for_their_weights(config):
    config["networks"] |= {name: config["networks"]["big"] for name in ("second", "third")}
    assert costs.memory_mb(config, ["big", "second", "small", "third"]) == 9000 + 2 * 600


def test_run_times_leave_room(config):
    assert costs.run_time_minutes(600, small=480) == 60
    assert costs.run_time_minutes(0, small=480) == 480


def test_training_counts_every_stage_once(config):
    config["recipes"] = {"long": {"iterations": 1000, "passes": 20, "batch": 2}}
    config["networks"] |= {
        "first": {"cost": COST, "training": {"recipe": "long", "initial": "file"}},
        "second": {"cost": COST, "training": {"recipe": "long", "initial": {"network": "first"}}},
        "mini": {"training": {"list": "Main/07", "body": "x", "iterations": 5}},
    }
    # 40,000 images x 3 x 100 GFLOP at 10 TFLOP/s
    assert costs.training_seconds(config, ["second", "first", "mini", "big"]) == {"first": 1200, "second": 1200}


def test_summary_adds_everything_up(config):
    # one attack on 10 images; predictions: 2 victims x (clean, big, three draws) x 2 renderings x 10 images
    text = costs.summary(config)
    assert text.startswith(
        "try: Attack: 1 source on 10 images, 0.0 GPU hours. Evaluation: 200 predictions, 0.0 GPU hours. "
        "Estimated for the card 'card', 10 and 20 TFLOP/s, never measured: measure yours by `make gpu-check`."
    )
    config["image_sets"]["ten"]["size"] = 3_000_000
    text = costs.summary(config)
    assert "1 source on 3000000 images, 1000.0 GPU hours" in text  # 1.2 s an image
    assert "60000000 predictions, 37.5 GPU hours" in text
    assert "perturbations 5400.0 GB, predictions 420.0 GB" in text
