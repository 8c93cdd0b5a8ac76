"""Cost of an iteration with every objective, relative to Dense Adversary Generation on the same targets.

    python benchmarks/objectives.py [--rounds N]

The network is LR-ASPP on MobileNetV3 with random weights, 375 x 500 pixels, every pixel a target.  Times are CPU times
of this single-threaded process.  Objectives alternate within a round, in reverse order every other round, and ratios
are relative to the mean of two measurements of `dag` in the same round, whose own ratios show the uncertainty.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

import attack
import torch
from attack import built_of, image, measure, per_iteration, prepared, problem_of

from dag.attack import perturb
from dag.attack.engine import dense_adversaries
from dag.attack.methods import method_of
from dag.attack.objectives import LOSSES

ITERATIONS = 2
SIGN = {"steps": "sign", "budget": "linf", "eps": 8, "stop": "iterations"}


def variant(network, problem, objective: str):
    """A function that measures the CPU-seconds of an iteration with an objective."""
    scores = perturb.pixel_scores(network)
    shares = torch.full((len(network.labels),), 1e-4) if objective == "mce-bal" else None

    def run(counted) -> None:
        method = method_of(SIGN | {"objective": objective})
        settings = {"rules": attack.TIMED, "iterations": ITERATIONS + 2, "step": 2.0}
        list(dense_adversaries([problem], counted, method=method, shares=shares, **settings))

    return lambda: per_iteration(run, scores, ITERATIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    case = attack.LIGHT["LR-ASPP-MobileNetV3 375 x 500"]
    network = built_of(prepared(case))
    problem = problem_of(network, image(case.size))
    names = ["dag", *LOSSES, "dag'"]
    times = measure({name: variant(network, problem, name.rstrip("'")) for name in names}, rounds)
    print(f"CPU-seconds of an iteration of dag, median: {median(times['dag']):.3f}")
    for name in names:
        pairs = zip(times[name], times["dag"], times["dag'"], strict=True)
        ratios = [2 * one / (first + last) for one, first, last in pairs]
        print(f"{name:10} {median(ratios):.3f}   ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)


if __name__ == "__main__":
    main()
