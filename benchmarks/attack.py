"""Cost of an iteration of the attack, relative to the network alone.

    python benchmarks/attack.py [--light | --heavy] [--peer PATH]

Each half takes just under a minute on one core; RESULTS.md has results and discusses them.  Weights are random,
nothing is downloaded.  The floor F is one forward pass and one backward pass to the image of the unmodified
network (float32, channels first, nothing folded), with a fixed gradient at full resolution, without attack, loss
or arg max.  The engine is `dag.attack.engine` on `dag.attack.perturb.pixel_scores`, on that network ("plain") and
on the one that `dag.networks.building.build` makes of it ("built").

The peer is `dag` of the package adv-lib (module adv_lib.attacks.segmentation.dense_adversary), an untargeted
attack on images in [0, 1] with 0.5 / 255 as step; PATH is the folder in which it is installed.

Times are CPU times of this single-threaded process.  An iteration lasts from one call of the network to the next;
the first of an attack is excluded, because it includes one-time preparation.  Variants alternate within a round, in
reverse order every other round, and ratios are computed within a round.  A measurement is invalid, and should be
repeated, if F itself varies too much (`MOST_SPREAD`, `MOST_DIFFERENCE`).  The benchmark aborts unless the engine, on
both networks, first reproduces the perturbation of a plain loop in float64.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import Tensor, nn

from dag.attack import perturb
from dag.attack.engine import Problem, dense_adversaries
from dag.attack.rules import Rules
from dag.networks.building import build, rewrite
from dag.networks.interface import Segmenter
from dag.networks.layers import operators

STEP = 0.5  # grey levels
# Fixed number of iterations: hardly any pixel reaches its random adversarial label, and no share of them stops it.
TIMED = Rules(active="unreached", stop=-1)
# Limits for F: (largest - smallest) / median over the rounds, and difference between medians of two measurements.
MOST_SPREAD, MOST_DIFFERENCE = 0.25, 0.04
# Largest allowed difference of a perturbation from that of the plain loop, relative to its largest value, in float64.
TOLERANCE = 1e-9

Variant = Callable[[], float]  # runs and returns CPU-seconds per iteration


@dataclass(frozen=True)
class Goal:
    """A bound on the median over rounds of the ratio of two times."""

    name: str
    above: str
    below: str
    bound: float
    at_most: bool = True


@dataclass(frozen=True)
class Case:
    """A segmentation network, the settings of its measurement and its goals.

    Attributes
    ----------
    architecture, arguments
        Arguments of `dag.networks.building.build`.
    size : (H, W)
    rounds : int
    iterations : int
        Number timed in one call of the engine, and of F.
    peer_iterations : int
        Number timed in one call of the peer; 0: the peer is left out.
    goals : tuple of Goal
    checked : dict
        Arguments that replace others in the check of equality.
    """

    architecture: str
    arguments: dict
    size: tuple[int, int]
    rounds: int
    iterations: int
    peer_iterations: int
    goals: tuple[Goal, ...]
    checked: dict | None = None


def _torchvision(name: str, short_side: int) -> tuple[str, dict]:
    return "dag.networks.torchvision_models:segmenter", {"name": name, "short_side": short_side}


LIGHT = {
    "LR-ASPP-MobileNetV3 375 x 500": Case(
        *_torchvision("lraspp_mobilenet_v3_large", 375), (375, 500), 4, 2, 2,
        (
            Goal("P1", "plain", "F", 1.02),
            Goal("P2", "built", "F", 0.70),
            Goal("P3", "peer", "built", 1.6, False),
            Goal("P3", "peer on built", "built", 1.2, False),
            Goal("P3", "peer", "plain", 1.15, False),
        ),
    ),
    "DeepLabv3-MobileNetV3 375 x 500": Case(
        *_torchvision("deeplabv3_mobilenet_v3_large", 375), (375, 500), 4, 1, 1,
        (
            Goal("P2", "built", "F", 0.62),
            Goal("P3", "peer", "built", 1.7, False),
            Goal("P3", "peer on built", "built", 1.08, False),
            Goal("P3", "peer", "plain", 1.05, False),
        ),
    ),
}  # fmt: skip
HEAVY = {
    "FCN-ResNet50 188 x 250": Case(
        *_torchvision("fcn_resnet50", 188), (188, 250), 3, 1, 1,
        (Goal("P4", "built", "F", 1.00), Goal("P4", "peer", "built", 1.00, False)),
    ),
    "FCN-8s-VGG16 188 x 252": Case(
        "dag.networks.caffe.fcn:fcn8s_vgg16", {}, (188, 252), 1, 1, 0,
        (Goal("P5", "built", "F", 0.70),),
        {"widths": dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"), 8)},
    ),
}  # fmt: skip
HEAD_GOALS = (
    Goal("P6", "active rows, backward", "all rows, backward", 0.25),
    Goal("P6", "active rows", "all rows", 0.65),
)
MEMORY_BATCHES = (1, 4)
QUEUE = 256  # images


# Networks, images, variants.


def prepared(case: Case, *, arguments: dict | None = None, dtype=torch.float32) -> Segmenter:
    """The unmodified network with reproducible random weights, statistics and score biases."""
    torch.manual_seed(0)
    network = build(case.architecture, case.arguments | (arguments or {}), fold=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.bias is not None][-1]
    with torch.no_grad():
        # no class dominates on average, so that label maps contain many
        last.bias -= network(image(case.size)[None]).mean((0, 2, 3))
    if hasattr(network, "elide"):
        network.elide = False
    return network.to(dtype)


def built_of(network: Segmenter) -> Segmenter:
    """Rewrite the network in place as `build` does."""
    if hasattr(network, "elide"):
        network.elide = True
    return rewrite(network)


def image(size: tuple[int, int], number: int = 0) -> Tensor:
    """A reproducible random image (3, H, W)."""
    return 255 * torch.rand(3, *size, generator=torch.Generator().manual_seed(number))


def problem_of(network: Segmenter, picture: Tensor) -> Problem:
    """All pixels are targets; labels are predictions, adversarial labels random other classes."""
    with torch.no_grad():
        labels = network(picture[None])[0].flatten(1).argmax(0)
    others = torch.randint(1, len(network.labels), labels.shape, generator=torch.Generator().manual_seed(0))
    return Problem(
        picture, labels, (labels + others) % len(network.labels), where=torch.arange(len(labels)), name="image"
    )


class _Over(Exception):
    """Enough iterations have been measured."""


def ticking(function: Callable, ticks: list[float], count: int) -> Callable:
    """`function`, which records the CPU time of every call and raises `_Over` in the call after `count`."""

    def ticks_and_calls(*arguments):
        ticks.append(time.process_time())
        if len(ticks) > count:
            raise _Over
        return function(*arguments)

    return ticks_and_calls


def per_iteration(run: Callable[[Callable], object], function: Callable, iterations: int) -> float:
    """CPU-seconds of one iteration of `run`, which calls `function` once in each; the first one is excluded."""
    ticks: list[float] = []
    with suppress(_Over):
        run(ticking(function, ticks, iterations + 1))
    if len(ticks) != iterations + 2:
        raise RuntimeError(f"an attack ended after {len(ticks)} of {iterations + 2} passes; give it more work")
    return (ticks[-1] - ticks[1]) / iterations


def floor(network: Segmenter, images: Tensor, iterations: int) -> float:
    """CPU-seconds of F."""
    gradient = torch.randn(
        len(images), len(network.labels), *images.shape[-2:], generator=torch.Generator().manual_seed(0)
    )
    begin = time.process_time()
    for _ in range(iterations):
        x = images.clone().requires_grad_()
        torch.autograd.grad(network(x), x, gradient)
    return (time.process_time() - begin) / iterations


def engine(
    network: Segmenter, problems: list[Problem], rules: Rules, iterations: int, scores: Callable | None = None
) -> dict[str, tuple[Tensor, list[int]]]:
    """Perturbation, and |T_m| of every pass, by image name."""
    results = dense_adversaries(
        problems,
        scores or perturb.pixel_scores(network),
        rules=rules,
        iterations=iterations,
        step=STEP,
        batch=len(problems),
    )
    return {problem.name: (attack.perturbation[0], attack.active) for problem, attack in results}


def engine_variant(network: Segmenter, problems: list[Problem], iterations: int) -> Variant:
    scores = perturb.pixel_scores(network)
    return lambda: per_iteration(
        lambda counted: engine(network, problems, TIMED, iterations + 2, counted), scores, iterations
    )


def peer_variant(peer: Callable, network: Segmenter, problems: list[Problem], iterations: int) -> Variant:
    run = peer_run(peer, problems, iterations + 2)
    return lambda: per_iteration(run, lambda x: network(255 * x), iterations)


def peer_run(peer: Callable, problems: list[Problem], iterations: int) -> Callable[[Callable], Tensor]:
    """The peer on images in [0, 1], as a function of the network; the threshold 2 disables early stopping."""
    images = torch.stack([problem.image for problem in problems]) / 255
    labels = torch.stack([problem.labels.view(images.shape[-2:]) for problem in problems])
    return lambda network: peer(network, images, labels, adv_threshold=2.0, max_iter=iterations, γ=STEP / 255)


def load_peer(path: Path | None) -> Callable | None:
    if path is None:
        return None
    sys.path.insert(0, str(path))
    from dag.attack.adv_lib import without_plots

    try:
        with without_plots(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as dag.attack.adv_lib
            from adv_lib.attacks.segmentation.dense_adversary import dag
    except ImportError as error:
        raise SystemExit(f"--peer {path}: adv-lib cannot be imported from there: {error}") from error
    return dag


# Equality.


def plain_loop(network: Segmenter, problem: Problem, iterations: int) -> tuple[Tensor, list[int]]:
    """Algorithm 1 as published, with score maps of the size of the image and a loss."""
    r, active = torch.zeros_like(problem.image), []
    for _ in range(iterations + 1):
        x = (problem.image + r)[None].requires_grad_()
        f = network(x)[0].flatten(1).T
        correct = f.argmax(1) == problem.labels
        active.append(int(correct.sum()))
        if active[-1] == 0 or len(active) > iterations:
            break
        loss = f.gather(1, problem.adversarial[:, None]) - f.gather(1, problem.labels[:, None])
        (gradient,) = torch.autograd.grad(loss[correct].sum(), x)
        r = r + STEP * gradient[0] / gradient.abs().max()
    return r, active


def check_equality(name: str, case: Case, size: tuple[int, int] = (64, 96), iterations: int = 2) -> None:
    """Check that the engine, on the plain and the built network, reproduces the plain loop in float64.

    Raises
    ------
    SystemExit
        If it does not.
    """
    case = replace(case, size=size)
    if "short_side" in case.arguments:
        case = replace(case, arguments=case.arguments | {"short_side": min(size)})
    plain = prepared(case, arguments=case.checked, dtype=torch.float64)
    problem = problem_of(plain, image(size).double())
    r, active = plain_loop(plain, problem, iterations)
    for kind, network in (("plain", plain), ("built", built_of(deepcopy(plain)))):
        found, counts = engine(network, [problem], Rules(), iterations)["image"]
        difference = float((found - r).abs().max() / r.abs().max())
        if counts != active or not difference <= TOLERANCE:
            raise SystemExit(
                f"{name}: the engine on the {kind} network differs from the plain loop (perturbation by "
                f"{difference:.1e} of its largest value; active targets {counts}, not {active}); nothing is measured"
            )


# Measurement.


def measure(variants: dict[str, Variant], rounds: int) -> dict[str, list[float]]:
    """CPU-seconds of every variant in every round; the order is reversed in every other one."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            times[name].append(variants[name]())
    return times


def reason_against(times: dict[str, list[float]], floor: str = "F") -> str:
    """Why a measurement is invalid, or an empty string; `floor` and its repetition (with a prime) must agree."""
    one, two = times[floor], times[floor + "'"]
    spread = max((max(series) - min(series)) / median(series) for series in (one, two))
    difference = abs(median(two) / median(one) - 1)
    if spread > MOST_SPREAD:
        return f"{floor} varies by {spread:.0%}"
    if difference > MOST_DIFFERENCE:
        return f"{floor} measured twice differs by {difference:.0%}"
    return ""


def report(goals: tuple[Goal, ...], times: dict[str, list[float]], floor: str = "F") -> bool:
    """Print the ratios; returns whether they are valid."""
    reason = reason_against(times, floor)
    seconds = ", ".join(f"{name} {median(series):.3f}" for name, series in times.items())
    print(f"  CPU-seconds per iteration: {seconds}")
    print(f"  INVALID, measure again: {reason}" if reason else "  valid")
    for goal in goals:
        if goal.above not in times or goal.below not in times:
            print(f"  {goal.name}  {goal.above} / {goal.below}: skipped, no {goal.above} here")
            continue
        ratios = [a / b for a, b in zip(times[goal.above], times[goal.below], strict=True)]
        print_goal(goal, median(ratios), f" ({min(ratios):.3f} .. {max(ratios):.3f})", bool(reason))
    return not reason


def print_goal(goal: Goal, value: float, extent: str = "", invalid: bool = False) -> None:
    met = value <= goal.bound if goal.at_most else value >= goal.bound
    verdict = "invalid" if invalid else "met" if met else "MISSED"
    ratio, sign = f"{goal.above} / {goal.below}", "<=" if goal.at_most else ">="
    print(f"  {goal.name}  {ratio:44} {value:.3f}{extent}, goal {sign} {goal.bound}: {verdict}")


def run_case(name: str, case: Case, peer: Callable | None) -> bool:
    """Check, measure and report one network; returns whether the measurement is valid."""
    print(f"\n{name}", flush=True)
    check_equality(name, case)
    plain = prepared(case)
    built = built_of(deepcopy(plain))
    problems = [problem_of(plain, image(case.size))]
    images = problems[0].image[None]
    goals = case.goals
    elides = hasattr(plain, "elide")
    if not elides and any(goal.name == "P5" for goal in goals):
        print("  P5  the network has no attribute `elide`: border elision is not there")
        goals = tuple(goal for goal in goals if goal.name != "P5")
    variants: dict[str, Variant] = {
        "F": lambda: floor(plain, images, case.iterations),
        "built": engine_variant(built, problems, case.iterations),
    }
    if any("plain" in (goal.above, goal.below) for goal in goals):
        variants["plain"] = engine_variant(plain, problems, case.iterations)
    if peer is not None and case.peer_iterations:
        variants["peer"] = peer_variant(peer, plain, problems, case.peer_iterations)
        if any(goal.above == "peer on built" for goal in goals):
            variants["peer on built"] = peer_variant(peer, built, problems, case.peer_iterations)
    variants["F'"] = variants["F"]
    floor(plain, images, 1)  # warm-up; attacks exclude their first iteration
    return report(goals, measure(variants, case.rounds))


# Heads of detectors.


def run_head(rois: int = 300, active: int = 30, widths: tuple[int, ...] = (25088, 4096, 4096), rounds: int = 2) -> bool:
    """Measure fc6 and fc7 for `rois` proposals of which `active` are still attacked."""
    print(f"\nfc6 and fc7, {rois} proposals, {active} of them active", flush=True)
    torch.manual_seed(0)
    layers = [nn.Linear(*pair).requires_grad_(False) for pair in pairwise(widths)]
    values = torch.rand(rois, widths[0])
    gradient = torch.randn(rois, widths[-1])
    gradient[active:] = 0

    def every_row(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x).relu_()
        return x

    def step(head: Callable[[Tensor], Tensor]) -> tuple[Tensor, float, float]:
        """Gradient, CPU-seconds of both passes, and of the backward pass."""
        x = values.clone().requires_grad_()
        begin = time.process_time()
        scores = head(x)
        turn = time.process_time()
        (found,) = torch.autograd.grad(scores, x, gradient)
        end = time.process_time()
        return found, end - begin, end - turn

    heads = {"all rows": every_row, "active rows": lambda x: operators.perceptron(x, layers), "all rows'": every_row}
    times: dict[str, list[float]] = {name + part: [] for name in heads for part in ("", ", backward")}
    found = {}
    for number in range(rounds):
        for name in list(heads)[:: -1 if number % 2 else 1]:
            found[name], both, back = step(heads[name])
            times[name].append(both)
            times[name + ", backward"].append(back)
    difference = float((found["active rows"] - found["all rows"]).abs().max() / found["all rows"].abs().max())
    if not difference <= 1e-4:
        raise SystemExit(f"the gradient through active rows differs by {difference:.1e}; nothing is measured")
    return report(HEAD_GOALS, times, "all rows")


# Memory.


def memory(variant: str, case: Case, count: int, peer: Callable | None) -> dict[str, float]:
    """MiB saved for the backward pass, and MiB of growth of the process in two iterations, for a batch of `count`."""
    network = prepared(case)
    if variant == "built":
        built_of(network)
    problems = [replace(problem_of(network, image(case.size, k)), name=str(k)) for k in range(count)]
    images = torch.stack([problem.image for problem in problems])

    def run(iterations: int) -> None:
        ticks: list[float] = []
        if variant == "F":
            floor(network, images, iterations)
        elif variant == "peer":
            peer_run(peer, problems, iterations)(lambda x: network(255 * x))
        else:
            with suppress(_Over):
                scores = ticking(perturb.pixel_scores(network), ticks, iterations)
                engine(network, problems, TIMED, iterations + 1, scores)

    weights = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with saved_storages() as storages:
        run(1)
    run(1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    saved = sum(size for place, size in storages.items() if place not in weights)
    return {"saved": saved / 2**20, "grown": grown / 2**10}


@contextmanager
def saved_storages() -> Iterator[dict[int, int]]:
    """Address and size of every storage that autograd keeps for a backward pass."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield storages


def run_memory(name: str, case: Case, peer: Callable | None, batches: tuple[int, ...] = MEMORY_BATCHES) -> None:
    """Measure each variant in its own process, forked before this one has run an iteration."""
    print(f"\nMemory of {name}, MiB", flush=True)
    processes = multiprocessing.get_context("fork")
    for count in batches:
        found = {}
        for variant in ["F", "plain", "built"] + ["peer"] * (peer is not None):
            receiver, sender = processes.Pipe(duplex=False)
            process = processes.Process(target=_send_memory, args=(sender, variant, case, count, peer))
            process.start()
            sender.close()
            try:
                found[variant] = receiver.recv()
            except EOFError:
                raise SystemExit(f"{name}: memory of {variant} was not measured, its process ended") from None
            finally:
                process.join()
        for kind, label in (("saved", "saved for backward"), ("grown", "growth of the process")):
            values = ", ".join(f"{variant} {sizes[kind]:.0f}" for variant, sizes in found.items())
            print(f"  {count} at once, {label}: {values}")
            for variant in list(found)[1:]:
                bound = Goal(f"P7  {kind}", variant, "F", 1.0)
                value = found[variant][kind] / found["F"][kind]
                if variant == "peer":
                    print(f"  {bound.name}  peer / F {value:.3f}")
                else:
                    print_goal(bound, value)


def _send_memory(sender, *arguments) -> None:
    sender.send(memory(*arguments))


# The queue.


def run_queue(images: int, batch: int = 8) -> None:
    """Measure executed passes and full slots with images that take a known number of iterations."""
    counts = np.random.default_rng(0).lognormal(np.log(54) - 0.18, 0.6, images).round().clip(1, 200)
    sizes: list[int] = []

    def scores(x: Tensor, problems: list[Problem]) -> list[Tensor]:
        sizes.append(len(problems))
        return [torch.stack([one.sum(), one.sum() * 0])[None] for one in x]  # a step subtracts 1; the other class has 0

    waiting = (Problem(torch.full((1, 1, 1), n - 0.5), torch.tensor([0]), torch.tensor([1])) for n in counts)
    results = list(dense_adversaries(waiting, scores, rules=Rules(), iterations=200, step=1, batch=batch))
    useful = sum(len(attack.active) for _, attack in results)
    print(f"\nQueue of {images} images, {batch} at once")
    print_goal(Goal("P8", "executed passes", "useful ones", 1.02), sum(sizes) / useful)
    print_goal(Goal("P8", "full slots", "slots", 0.95, False), sum(sizes) / (batch * len(sizes)))


def main(arguments: list[str] | None = None) -> int:
    """Measure; the exit status is 1 if a measurement is invalid."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--light", action="store_true", help="only networks on MobileNetV3, memory, queue")
    half.add_argument("--heavy", action="store_true", help="only FCN on ResNet50 and VGG16, and the head of a detector")
    parser.add_argument("--peer", type=Path, help="folder in which adv-lib is installed; default: no comparison")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    peer = load_peer(options.peer)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {processor()}, {time.strftime('%F')}")
    print(f"peer: {options.peer if peer else 'none given, skipped'}")
    valid = []
    if not options.heavy:
        name = next(iter(LIGHT))
        run_memory(name, LIGHT[name], peer)
        valid += [run_case(name, case, peer) for name, case in LIGHT.items()]
        run_queue(QUEUE)
    if not options.light:
        valid += [run_case(name, case, peer) for name, case in HEAVY.items()]
        valid.append(run_head())
    print(f"\n{sum(os.times()[:4]):.0f} CPU-seconds, including child processes")
    return 0 if all(valid) else 1


def processor() -> str:
    """Name of the CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
