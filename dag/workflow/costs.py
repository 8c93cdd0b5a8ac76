"""Estimates of memory, run time, GPU hours and disk space, from the configuration.

A network of networks.yaml may have a `cost`: `mem_mb` of a job that runs it, `forward` and `iteration` of
the attack in GFLOP per image, and the mean number of `iterations`.  Its jobs ask for one GPU,
which is assumed to sustain the rates of the card named by `gpu` in the configuration, one for attacks and trainings
and one for evaluation.  Networks without a `cost` count as small and get no estimate.
"""

from __future__ import annotations

import math

from dag.workflow import plan

# Time limit for the scheduler: this many times the estimate, plus this many minutes.
SLACK, START_UP_MINUTES = 4, 20
# Measured on the pocket networks with VOC's images: 24 images of a perturbation are 43 MB, predictions 0.17 MB.
PERTURBATION_MB, PREDICTION_MB = 1.8, 0.007
# Memory of each further network that waits for its turn: the weights of VGG16, all layers, are 540 MB.
WEIGHTS_MB = 600


def rate(config: dict, work: str) -> float:
    """GFLOP per second that the card sustains in an "attack" (or training) or in "evaluation"."""
    return 1000 * config["gpus"][config["gpu"]][work]


def gpus(config: dict, networks: list[str]) -> int:
    """GPUs that a job with these networks asks for: 1 or 0."""
    return int(any("cost" in config["networks"][name] for name in networks))


def memory_mb(config: dict, networks: list[str], small: int = 4000) -> int:
    """Memory of a job that holds these networks and runs them in turn; `small` for those without `cost`."""
    known = [config["networks"][name]["cost"]["mem_mb"] for name in networks if "cost" in config["networks"][name]]
    return max([small, *known]) + WEIGHTS_MB * max(0, len(known) - 1)


def attack_seconds(config: dict, source: str, images: int) -> float:
    """Estimated GPU seconds of an attack on so many images; networks without `cost` take none."""
    costs = [config["networks"][name].get("cost") for name in plan.attacked(config, source)]
    settings = plan.attack(config, source)
    gflop = 0.0
    for one in settings.get("worst_of", [settings]):
        most = one["iterations"]
        for cost in (cost for cost in costs if cost is not None):
            # Dense Adversary Generation ends when its targets are lost
            steps = min(cost["iterations"], most) if one.get("stop", "converged") == "converged" else most
            gflop += steps * cost["iteration"]
    return images * gflop / rate(config, "attack")


def shape_seconds(config: dict, entry: dict) -> float:
    """Estimated GPU seconds of the shaped examples of a figure, all of its iterations; 0 without `cost`."""
    cost = config["networks"][entry["network"]].get("cost")
    if cost is None:
        return 0.0
    images = entry["images"] if isinstance(entry["images"], int) else len(entry["images"])
    examples = (images + ("noise" in entry)) * len(entry["shapes"])
    return examples * entry["attack"]["iterations"] * cost["iteration"] / rate(config, "attack")


def predict_seconds(config: dict, entry: dict, image_set: str, images: int) -> float:
    """Estimated GPU seconds of all cells of a table or figure on so many images of an image set."""
    rendered = len(entry.get("pixels", config["pixels"]))
    gflop = sum(
        config["networks"][victim].get("cost", {"forward": 0})["forward"] * (1 + rendered * (len(names) - 1))
        for victim, names in plan.cells(entry, image_set, config["permutations"]).items()
    )
    return images * gflop / rate(config, "evaluation")


def training_seconds(config: dict, names: list[str]) -> dict[str, float]:
    """Estimated GPU seconds of every network that recipes train for these, stages of others included."""
    found: dict[str, float] = {}
    pending = list(names)
    while pending:
        name = pending.pop()
        training = config["networks"][name].get("training", {})
        if "recipe" not in training or name in found:
            continue
        recipe = config["recipes"][training["recipe"]]
        images = recipe["iterations"] * recipe["passes"] * recipe.get("batch", 1)
        # forward, and backward to the inputs and to the weights of every layer
        gflop = 3 * config["networks"][name].get("cost", {"forward": 0})["forward"]
        found[name] = images * gflop / rate(config, "attack")
        if isinstance(training["initial"], dict):
            pending.append(training["initial"]["network"])
    return found


def run_time_minutes(seconds: float, small: int) -> int:
    """Time limit for the scheduler, from the estimated seconds; `small` without an estimate."""
    return math.ceil(START_UP_MINUTES + SLACK * seconds / 60) if seconds else small


def summary(config: dict) -> str:
    """GPU hours and disk space of the whole experiment from scratch, as text.

    Cells shared by tables are counted once per table; files of unpublished size are not counted.
    """
    sizes = {name: entry["size"] for name, entry in config["image_sets"].items()}
    sources = [*plan.all_source_sets(config), *plan.further_draws(config)]
    attacked = sum(sizes[image_set] for _, image_set in sources)
    attack = sum(attack_seconds(config, source, sizes[image_set]) for source, image_set in sources)
    shown, predict = 0, 0.0
    for entry in plan.products(config).values():
        for image_set in plan.image_sets(entry):
            predict += predict_seconds(config, entry, image_set, sizes[image_set])
            names = plan.cells(entry, image_set, config["permutations"]).values()
            shown += sum(map(len, names)) * sizes[image_set] * len(entry.get("pixels", config["pixels"]))
    training = training_seconds(config, plan.networks(config))
    trained = f"Training: {len(training)} networks, {sum(training.values()) / 3600:.1f} GPU hours. " if training else ""
    many = "1 source" if len(sources) == 1 else f"{len(sources)} sources"
    card = config["gpus"][config["gpu"]]
    known = f"measured {card['measured']}" if card["measured"] != "never" else "never measured"
    return (
        f"{config['experiment']}: {trained}Attack: {many} on {attacked} images, "
        f"{attack / 3600:.1f} GPU hours. Evaluation: {shown} predictions, {predict / 3600:.1f} GPU hours. "
        f"Estimated for the card {config['gpu']!r}, {card['attack']} and {card['evaluation']} TFLOP/s, {known}: "
        f"measure yours by `make gpu-check`. Disk: perturbations {attacked * PERTURBATION_MB / 1000:.1f} GB, "
        f"predictions {shown * PREDICTION_MB / 1000:.1f} GB."
    )
