"""Attacks on a GPU: images per second of the engine, of a plain loop, and of the network alone.

    python benchmarks/gpu.py [--precision tf32] [--batch 8] [--profile] [--tune]

FCN-8s on VGG16 at 375 x 500 with every pixel a target, and Faster R-CNN on VGG16 at 600 x 800 with 3000 proposals.
All targets stay active, the worst case of an iteration.  Weights are random, nothing is downloaded.

floor     one forward and one backward pass of the unmodified network, one image, with a fixed gradient
plain     Algorithm 1 as published: one image, all scores, a loss, the host synchronises after every pass
network   both passes of the body, or of trunk and head, of the network that `build` makes, whole batch, no attack
eager     `dag.attack.engine.dense_adversaries`, whole batch; --profile profiles it
innermost the same in channels-last memory format
compiled  the same with torch.compile on the body or trunk
graphed   the same with its passes recorded as a CUDA graph

The last three are not part of the package; this benchmark shows whether they are worthwhile.  Their scores are compared
with those of `eager` before they are timed.  `start` is the time until the end of a mode's first pass.  With --tune
cuDNN measures its algorithms once per shape and process instead of using its heuristics
(`torch.backends.cudnn.benchmark`).  Times are wall-clock times after synchronisation.  The goals are G1: `network`
takes at least 0.9 of the time of `eager`; and G2: the whole experiment of the paper, 488 PFLOP of attacks and 121 of
evaluation, in 6 hours (2 in TF32) at the rate of the detector, on an H200.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from dag.attack import perturb
from dag.attack.engine import Problem, dense_adversaries
from dag.attack.rules import Rules
from dag.networks.building import build, rewrite
from dag.networks.interface import Network, Proposals
from dag.networks.layers.precision import arithmetic

# No share of remaining targets stops the attack, so that the number of iterations is fixed.
TIMED = Rules(active="unreached", stop=-1)
MODES = ("eager", "innermost", "compiled", "graphed")
BACKEND = "inductor"  # of torch.compile
PETAFLOP, HOURS = 488 + 121, {"fp32": 6, "tf32": 2, "bf16": 2}
# Largest difference of the scores from those of `eager`, relative to the largest score, in fp32.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """A network and the settings of its measurement.

    Attributes
    ----------
    architecture, arguments
        Arguments of `dag.networks.building.build`.
    size : (H, W)
    proposals : int
        Number of proposals; 0: a segmenter, whose pixels are all targets.
    mean : float
        Assumed number of iterations per image, for images per second.
    gflop : float
        GFLOP of one iteration of the engine, if known.
    """

    architecture: str
    arguments: dict
    size: tuple[int, int]
    proposals: int
    mean: float
    gflop: float | None = None


CASES = {
    "FCN-8s-VGG16 375 x 500": Case("dag.networks.caffe.fcn:fcn8s_vgg16", {}, (375, 500), 0, 54, 438),
    "FR-VGG16 600 x 800, 3000 proposals": Case(
        "dag.networks.caffe.faster_rcnn:faster_rcnn", {"body": "vgg16"}, (600, 800), 3000, 41.4, 2028
    ),
}


def prepared(case: Case, device: str, *, built: bool) -> Network:
    """The network with random weights, which do not depend on `built`."""
    torch.manual_seed(0)
    network = build(case.architecture, case.arguments, fold=False)
    if hasattr(network, "elide"):
        network.elide = built
    return (rewrite(network) if built else network).to(device)


def problem_of(network: Network, case: Case, device: str, number: int) -> Problem:
    """Targets are all pixels, or random proposals; labels are predictions, adversarial labels the next class."""
    random = torch.Generator().manual_seed(number)
    height, width = case.size
    image = (255 * torch.rand(3, height, width, generator=random)).to(device)
    if case.proposals:
        corners = torch.rand(case.proposals, 2, generator=random) * torch.tensor([0.7 * width, 0.7 * height])
        sides = (0.05 + 0.25 * torch.rand(case.proposals, 2, generator=random)) * torch.tensor([width, height])
        where = Proposals(torch.cat([corners, corners + sides], 1).to(device))
    else:
        where = torch.arange(height * width, device=device)
    problem = Problem(image, where, where, where=where, name=str(number))
    with torch.no_grad():
        labels = scores_of(network)(image[None], [problem])[0].argmax(1)
    return replace(problem, labels=labels, adversarial=(labels + 1) % len(network.labels))


def scores_of(network: Network) -> Callable:
    return (perturb.proposal_scores if network.task == "detection" else perturb.pixel_scores)(network)


def all_scores(network: Network, x: Tensor, problems: list[Problem]) -> Tensor:
    """Whole score maps, or the scores of the proposals."""
    if network.task == "segmentation":
        return network(x)
    return network.scores(network.features(x), [problem.where for problem in problems])


def compiled(network: Network, x: Tensor) -> None:
    """Apply torch.compile to the body or the trunk."""
    name = "body" if network.task == "segmentation" else "pass_trunk"
    setattr(network, name, torch.compile(getattr(network, name), backend=BACKEND))


def graphed(network: Network, x: Tensor) -> None:
    """Record the passes of the body or the trunk, for inputs of the shape of the images `x`, as a CUDA graph."""
    if network.task == "segmentation":
        network.body = torch.cuda.make_graphed_callables(network.body, (x.clone().requires_grad_(),))
        return
    straight, seen = network.pass_trunk, []
    network.pass_trunk = lambda inputs: (seen.append(inputs), straight(inputs))[1]
    network.features(x)
    sample = torch.zeros_like(seen[0]).requires_grad_()
    trunk = torch.cuda.make_graphed_callables(lambda inputs: straight(inputs)[0], (sample,))
    network.pass_trunk = lambda inputs: (trunk(inputs),) * 2


def innermost(network: Network, x: Tensor) -> None:
    """Convert weights, and hence all maps, to channels-last memory format."""
    network.to(memory_format=torch.channels_last)


CHANGES = {
    "eager": lambda network, x: None,
    "innermost": innermost,
    "compiled": compiled,
    "graphed": graphed,
}


class _Over(Exception):
    """Enough iterations have been measured."""


def wait(device: str) -> float:
    """Wait for the device and return the time."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(step: Callable[[], object], device: str, iterations: int, warm: int = 3) -> float:
    """Mean seconds of a step, after `warm` steps of warm-up."""
    for _ in range(warm):
        step()
    begin = wait(device)
    for _ in range(iterations):
        step()
    return (wait(device) - begin) / iterations


def engine(scores: Callable, problems: list[Problem], device: str, iterations: int, warm: int = 3) -> float:
    """Seconds of one iteration of the engine; results are read one iteration late, as on a GPU, even on a CPU."""
    ticks, passes = [], 0

    def counted(x: Tensor, todo: list[Problem]) -> list[Tensor]:
        nonlocal passes
        passes += 1
        if passes in (warm + 1, warm + iterations + 1):
            ticks.append(wait(device))
            if len(ticks) == 2:
                raise _Over
        return scores(x, todo)

    with suppress(_Over):
        options = {"rules": TIMED, "iterations": warm + iterations + 1, "batch": len(problems), "late": True}
        list(dense_adversaries(problems, counted, **options))
    return (ticks[1] - ticks[0]) / iterations


def plain_step(network: Network, problem: Problem) -> Callable[[], None]:
    """An iteration of Algorithm 1 as published, on one image."""
    r = torch.zeros_like(problem.image)

    def step() -> None:
        nonlocal r
        x = (problem.image + r)[None].requires_grad_()
        f = all_scores(network, x, [problem])
        f = f[0].flatten(1).T if network.task == "segmentation" else f
        active = f.argmax(1) != problem.adversarial
        active.any().item()  # termination check
        loss = f.gather(1, problem.adversarial[:, None]) - f.gather(1, problem.labels[:, None])
        (gradient,) = torch.autograd.grad(loss[active].sum(), x)
        r = r + 0.5 * gradient[0] / gradient.abs().max().item()

    return step


def passes(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    """One forward and one backward pass with a fixed gradient."""
    gradient = torch.randn_like(function(x))
    return lambda: torch.autograd.grad(function(x), x, gradient)


def check(name: str, changed: Callable, eager: list[Tensor], x: Tensor, problems: list[Problem]) -> None:
    """Check that scores equal those of the eager engine.

    Raises
    ------
    SystemExit
        If they differ.
    """
    for found, expected in zip(changed(x, problems), eager, strict=True):
        difference = float((found.detach() - expected).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE:
            raise SystemExit(f"{name}: scores differ from the eager ones by {difference:.1e}; nothing is measured")


def measure(
    case: Case, device: str, modes: tuple[str, ...], batch: int, precision: str, iterations: int
) -> tuple[dict, dict]:
    """Seconds per image and iteration of every variant, and seconds until the end of a mode's first pass."""
    plain = prepared(case, device, built=False)
    problems = [problem_of(plain, case, device, number) for number in range(batch)]
    x = torch.stack([problem.image for problem in problems]).requires_grad_()
    times, starts = {}, {}
    with arithmetic(precision, device):
        one = x[:1].detach().requires_grad_()
        times["floor"] = seconds(passes(partial(all_scores, plain, problems=problems[:1]), one), device, iterations)
        times["plain"] = seconds(plain_step(plain, problems[0]), device, iterations)
    del plain
    for mode in modes:
        if mode == "graphed" and device != "cuda":
            continue
        network = prepared(case, device, built=True)
        with arithmetic("fp32", device):
            expected = [f.detach() for f in scores_of(network)(x, problems)]
            begin = wait(device)
            CHANGES[mode](network, x.detach())
            check(mode, scores_of(network), expected, x, problems)
            starts[mode] = wait(device) - begin
        network = prepared(case, device, built=True)  # a recorded pass keeps its precision
        with arithmetic(precision, device):
            if mode == "eager":
                segments = network.task == "segmentation"
                function = network.body if segments else partial(all_scores, network, problems=problems)
                times["network"] = seconds(passes(function, x), device, iterations) / batch
            CHANGES[mode](network, x.detach())
            times[mode] = engine(scores_of(network), problems, device, iterations) / batch
    return times, starts


def profile(case: Case, batch: int, precision: str, iterations: int, rows: int = 20) -> None:
    """Print the share of time in which the device is busy, before which kernels it idles, and the longest kernels."""
    network = prepared(case, "cuda", built=True)
    problems = [problem_of(network, case, "cuda", number) for number in range(batch)]
    with arithmetic(precision, "cuda"):
        engine(scores_of(network), problems, "cuda", iterations)  # warm-up, e.g. choice of algorithms
        with torch.profiler.profile() as record:
            engine(scores_of(network), problems, "cuda", iterations)
    kernels = [event for event in record.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda event: event.time_range.start)
    end, idle, before = kernels[0].time_range.start, 0.0, Counter()
    for event in kernels:
        gap = event.time_range.start - end
        if gap > 0:
            idle += gap
            before[event.name] += gap
        end = max(end, event.time_range.end)
    span = end - kernels[0].time_range.start
    print(f"  profile: the device is busy for {100 * (1 - idle / span):.1f} % of {span / 1e3:.0f} ms; it idles before")
    for name, gap in before.most_common(5):
        print(f"    {100 * gap / span:5.2f} %  {name[:100]}")
    took = Counter()
    for event in kernels:
        took[event.name] += event.time_range.end - event.time_range.start
    print("  kernels by time")
    for name, time_of in took.most_common(rows):
        print(f"    {100 * time_of / span:5.2f} %  {name[:100]}")


def report(case: Case, times: dict[str, float], starts: dict[str, float], precision: str) -> None:
    titles = (
        f"{'s / image-iteration':>20} {'images / s':>11} {'of the floor':>13} {'plain loop / it':>16} {'start / s':>9}"
    )
    print(f"  {'':9} {titles}")
    for name, value in times.items():
        rates = f"{1 / value / case.mean:11.3f} {value / times['floor']:13.3f} {times['plain'] / value:16.2f}"
        start = f" {starts[name]:9.2f}" if name in starts else ""
        print(f"  {name:9} {value:20.5f} {rates}{start}")
    share = times["network"] / times["eager"]
    print(f"  G1  network / eager {share:.3f}, goal >= 0.9: {'met' if share >= 0.9 else 'MISSED'}")
    if case.gflop is not None:
        best = min(times[mode] for mode in MODES if mode in times)
        print(f"  {case.gflop / best / 1e3:.1f} TFLOP/s")
        if case.proposals:
            hours = PETAFLOP * 1e6 / (case.gflop / best) / 3600
            verdict = "met" if hours <= HOURS[precision] else "MISSED"
            print(f"  G2  {hours:.1f} hours for the paper, goal <= {HOURS[precision]} on an H200: {verdict}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--precision", default="fp32", choices=list(HOURS))
    parser.add_argument("--batch", type=int, default=perturb.BATCH["cuda"])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--tune", action="store_true", help="let cuDNN measure its algorithms")
    parser.add_argument("--profile", action="store_true", help="profile the eager engine, on a GPU")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES, help="eager is always measured")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: this benchmark needs one (--device cpu runs it, for days)")
    torch.backends.cudnn.benchmark = options.tune
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    how = f"{options.precision}, {options.batch} images" + ", tuned" * options.tune
    print(f"{device}, torch {torch.__version__}, {how}, {time.strftime('%F')}")
    modes = tuple(mode for mode in MODES if mode == "eager" or mode in options.modes)
    for name, case in CASES.items():
        print(f"\n{name}, {case.mean} iterations per image", flush=True)
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = measure(case, options.device, modes, options.batch, options.precision, options.iterations)
        report(case, *found, options.precision)
        if options.device == "cuda" and options.profile:
            profile(case, options.batch, options.precision, options.iterations)
        if options.device == "cuda":
            print(f"  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
