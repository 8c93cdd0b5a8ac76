"""Verify the project on a machine with a CUDA device, in less than 8 minutes: `make gpu-check VOC=... WEIGHTS=...`.

tests       the tests marked `gpu`
pocket      two trained networks, attacked and evaluated on real images on the CPU and on the device: equal
            statuses for 9 of 10 images, mean iterations within 2 %, scores within 1 point, or else within two
            standard errors of the paired difference, because an attack amplifies rounding and two CPUs differ as
            much (benchmarks/RESULTS.md)
attack      `benchmarks/gpu.py` in fp32 and in TF32, its goals G1 and G2
evaluation  E2: `dag.evaluate.predict` takes at most 1.15 times as long as its forward passes at the best batch size

VOC is a folder with VOC2007 and VOC2012, WEIGHTS one with the files of the pocket networks (config/downloads.yaml);
without them `pocket` is skipped.  Snakemake is not needed.  `--tiny --device cpu` is a dry run on a CPU that takes
seconds, to find errors before device time is spent; its times are meaningless.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import gpu
import numpy as np
import torch

from dag.attack import perturb
from dag.data import image_sets, voc
from dag.evaluate import cells, metrics, predict
from dag.networks.building import build
from dag.networks.interface import Network
from dag.workflow import layers, plan, store

ROOT = Path(__file__).resolve().parents[1]
POCKET = {
    "dl-mnv2": [("VOC2012", "Segmentation")],
    "yolo-nano": [("VOC2007", "Main"), ("VOC2012", "Main")],
}
SAME_STATUS, ITERATIONS, POINTS, E2, RESAMPLES = 0.9, 0.02, 1.0, 1.15, 500
VGG = dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"), 4)
VICTIMS = {
    "FCN-8s": ("dag.networks.caffe.fcn:fcn8s_vgg16", {}, {"widths": VGG}),
    "R-FCN-RN101": (
        "dag.networks.caffe.rfcn:rfcn",
        {"body": "resnet101"},
        {"body": "resnet50", "widths": {"conv1": 3, "rpn": 7, "conv_new_1": 9}, "short": 96, "long": 144},
    ),
}
Row = tuple[str, str, str]  # what, measured, verdict


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def synchronise(device: str) -> float:
    """Wait for the device and return the time."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def tests(device: str) -> Iterator[Row]:
    """Run only files with tests for a GPU, so that packages needed by others may be missing."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", *files]
    command += ["--collect-only"] if device == "cpu" else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-6000:], done.stderr[-2000:], sep="")
    counts = done.stdout.strip().splitlines()[-1].strip("= ") if done.stdout.strip() else "no output"
    passed = done.returncode == 0 and (device == "cpu" or ("passed" in counts and "skipped" not in counts))
    yield "gpu tests", counts, verdict(passed)


def pocket(folder: Path, data: Path, weights: Path, device: str, count: int, tiny: bool) -> Iterator[Row]:
    """The same attack and evaluation on the CPU and on the device."""
    config = layers.defaults(ROOT / "config")
    for name, lists in POCKET.items():
        entry, settings = config["networks"][name], plan.attack(config, name)
        settings = settings | ({"iterations": 3} if tiny else {})
        images = []
        for year, kind in lists:
            listed = sorted((data / year / "ImageSets" / kind).glob("*.txt"))
            if not listed:
                raise SystemExit(
                    f"{data / year / 'ImageSets' / kind}: no image list; give the folder that holds {year}"
                )
            images += [(data / year, image_id) for image_id in image_sets.read_ids(listed[0])]
        images = images[:count]
        files = {role: weights / file for role, file in entry["files"].items()}
        here, there = (
            _attacked(
                build(entry["architecture"], entry.get("arguments"), files, task=entry["task"]),
                images,
                settings,
                folder / f"{name}-{number}",
                name,
                where,
            )
            for number, where in enumerate(("cpu", device))
        )
        yield from compared(name, here, there)


def compared(name: str, here: dict, there: dict) -> Iterator[Row]:
    """Rows that compare two results of `_attacked`."""
    same = np.mean([a == b for a, b in zip(here["status"], there["status"], strict=True)])
    counts = dict(Counter(there["status"]))
    yield f"{name}: equal statuses", f"{100 * same:.0f} % {counts}", verdict(same >= SAME_STATUS)
    iterations = [np.asarray(one["iterations"], float) for one in (here, there)]
    means, apart = [float(one.mean()) for one in iterations], iterations[1] - iterations[0]
    error = float(apart.std(ddof=1)) / len(apart) ** 0.5
    met = abs(means[1] - means[0]) <= max(ITERATIONS * means[0], 2 * error)
    yield f"{name}: mean iterations", f"{means[0]:.2f} and {means[1]:.2f}, apart ± {error:.2f}", verdict(met)
    for what in ("clean", "perturbed"):
        scores = [float(one[what][0]) for one in (here, there)]
        error = float(np.std(there[what][1:] - here[what][1:]))
        met = abs(scores[1] - scores[0]) <= max(POINTS, 2 * error)
        yield f"{name}: score, {what}", f"{scores[0]:.2f} and {scores[1]:.2f}, apart ± {error:.2f}", verdict(met)


def _attacked(network: Network, images: list, settings: dict, folder: Path, name: str, device: str) -> dict:
    """Attack and evaluate a network on a device; returns statuses, iterations and scores.

    The first score is that of all images, the others are those of resamples, the same for every device.
    """
    ids = [image_id for _, image_id in images]
    source, begin = folder / "r.h5", time.perf_counter()
    perturb.perturb(
        network, images, source, settings=settings, seed=2017, name=name, header={"source": name}, device=device
    )
    known = store.read_attributes(source).values()
    made = cells.cells_of(folder, name, "0000", {"none": None, name: source}, ["float"], {"of": name})
    roots = {image_id: root for root, image_id in images}
    predict.predict(
        {name: network}, lambda image_id: voc.read_image(roots[image_id], image_id), ids, made, device=device
    )
    scores, once = {}, np.ones((1, len(ids)), np.int64)
    weights = np.concatenate([once, metrics.bootstrap_weights(len(ids), RESAMPLES, seed=0)])
    for cell in made:
        arrays = [store.read(cell.path, image_id)[0] for image_id in ids]
        if network.task == "segmentation":
            pairs = zip(images, arrays, strict=True)
            matrices = np.stack([metrics.confusion_matrix(voc.read_label_map(*image), one) for image, one in pairs])
            values = metrics.segmentation_scores(matrices, weights)
        else:
            truths = [voc.read_objects(*image) for image in images]
            detections = [argparse.Namespace(**cells.detections_of(rows)) for rows in arrays]
            values = metrics.detection_scores(metrics.match_detections(truths, detections), weights)
        scores["clean" if cell.source is None else "perturbed"] = values["score"]
    print(f"{name} on {device}: {len(ids)} images in {time.perf_counter() - begin:.1f} s", flush=True)
    statuses = [one["status"] for one in known]
    return {"status": statuses, "iterations": [one["iterations"] for one in known]} | scores


def attack(device: str, tiny: bool) -> Iterator[Row]:
    """Run `benchmarks/gpu.py` and parse the goals in its output."""
    options = ["--device", device.partition(":")[0], "--modes", "eager", "--iterations", "2" if tiny else "10"]
    if tiny:
        gpu.CASES = {
            "segmenter": gpu.Case(VICTIMS["FCN-8s"][0], {"widths": VGG}, (40, 56), 0, 54, 1),
            "detector": gpu.Case(
                "dag.networks.caffe.faster_rcnn:faster_rcnn",
                {"body": "vgg16", "widths": VGG | {"rpn": 4}, "short": 96, "long": 160}, (60, 80), 20, 41.4, 1,
            ),
        }  # fmt: skip
        options += ["--batch", "2"]
    for precision in ("fp32", "tf32"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            gpu.main([*options, "--precision", precision])
        print(printed.getvalue(), flush=True)
        case = ""
        for line in printed.getvalue().splitlines():
            if line.endswith("iterations per image"):
                case = line.partition(",")[0]
            if goal := re.match(r" +(G\d) +(.*): (met|MISSED)$", line):
                yield f"{goal[1]} {precision}, {case}", goal[2], goal[3]


def evaluation(folder: Path, device: str, tiny: bool) -> Iterator[Row]:
    """E2, with random weights: 8 perturbations of an image, float and 8-bit pixels."""
    shape, images, names = ((3, 48, 64), 2, 2) if tiny else ((3, 375, 500), 48, 8)
    rng, ids = np.random.default_rng(0), [f"{number:06d}" for number in range(images)]
    pictures = {image_id: rng.integers(0, 256, shape).astype(np.float32) for image_id in ids}
    sources = {f"r{number}": folder / f"e{number}.h5" for number in range(names)}
    for path in sources.values():
        with store.writing(path, "perturbations", ids, {"of": path.name}, every=1) as shard:
            for image_id in ids:
                r = rng.normal(0, 1.5, shape).astype(np.float32)
                shard.put(image_id, r, {"perceptibility": 0.01, "largest": 7.5})
    for victim, (architecture, arguments, narrow) in VICTIMS.items():
        torch.manual_seed(0)
        network = build(architecture, narrow if tiny else arguments).to(device)
        picture = torch.from_numpy(pictures[ids[0]]).to(device)
        times = {}
        for size in (1, 2, 4, 8):
            repeats = 2 if tiny else max(3, 24 // size)
            for _ in range(2):
                predict.outputs(network, [picture] * size, size)
            begin = synchronise(device)
            for _ in range(repeats):
                predict.outputs(network, [picture] * size, size)
            times[size] = (synchronise(device) - begin) / repeats / size
        best = min(times, key=times.get)
        made = cells.cells_of(folder / "cells", victim, "0000", sources, ["float", "8-bit"], {"of": victim})
        begin = synchronise(device)
        predict.predict({victim: network}, pictures.__getitem__, ids, made, device=device)
        each = (synchronise(device) - begin) / (len(made) * images)
        listed = ", ".join(f"{size}: {1000 * seconds:.1f}" for size, seconds in times.items())
        print(f"{victim}: ms an image by batch: {listed}; predict {1000 * each:.1f} ms", flush=True)
        ratio = each / times[best]
        measured = f"{1 / each:.0f} a second, {ratio:.2f} of the passes (batch {best})"
        yield f"E2 {victim}: predict / passes <= {E2}", measured, verdict(ratio <= E2)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--voc", default="", help="folder with VOC2007 and VOC2012")
    parser.add_argument("--weights", default="", help="folder with the files of the pocket networks")
    parser.add_argument("--images", type=int, default=24, help="real images for each of the pocket networks")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks and images: a dry run")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here: nothing is checked (dry run on the CPU: --tiny --device cpu)", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    begin, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        steps = {
            "evaluation": lambda: evaluation(folder, options.device, options.tiny),
            "attack": lambda: attack(options.device, options.tiny),
            "tests": lambda: tests(options.device),
        }
        if options.voc and options.weights:
            given = Path(options.voc), Path(options.weights)
            steps["pocket"] = lambda: pocket(folder, *given, options.device, options.images, options.tiny)
        else:
            rows.append(("pocket networks", "no VOC and WEIGHTS given", "skipped"))
        for step, run in steps.items():
            start = time.perf_counter()
            try:
                for row in run():
                    rows.append(row)
                    print("  ".join(row), flush=True)  # in case the machine is lost before the table is printed
            except Exception as error:  # the other steps still run
                rows.append((step, " ".join(f"{type(error).__name__}: {error}".split())[:160], "FAILED"))
            print(f"{step}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\n{name}, torch {torch.__version__}, {time.strftime('%F')}, {time.perf_counter() - begin:.0f} s")
    if options.tiny:
        rows = [(what, measured, "tried" if met == "MISSED" else met) for what, measured, met in rows]
    width = max(len(what) for what, _, _ in rows)
    for what, measured, met in rows:
        print(f"{what:{width}}  {met:7}  {measured}")
    return int(any(met in ("FAILED", "MISSED") for _, _, met in rows))


if __name__ == "__main__":
    sys.exit(main())
