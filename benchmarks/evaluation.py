"""Overhead of the evaluation, without the networks: `python benchmarks/evaluation.py`.

Goals, at 375 x 500 pixels, with victims of negligible cost:

E1  600 predictions per second on two free cores: 6 victims, float and 8-bit pixels
E2  on a GPU, predictions take at most 1.15 times as long as the forward passes alone (`make gpu-check`)
E3  writing a perturbation takes at most 20 CPU-ms and no more disk space than before
E4  sums, multiples and controls take at most 10 % of the CPU time, with 15 CPU-ms for a forward pass
E5  the memory of a job does not grow with the number of images in a shard
    computing the scores of one pass over VOC2007 test takes at most 10 CPU-seconds

*Before* is the loop that the package had until 2026-11-26: sequential, victim by victim and perturbation by
perturbation, read from gzipped HDF5, pixels computed on the host.  Its label maps must be identical, or the benchmark
aborts.  CPU times are process times, so that other load on the machine matters little; predictions per second are
wall-clock rates.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from dag.attack import arithmetic, combinations
from dag.data import voc
from dag.evaluate import cells, metrics, predict
from dag.networks.interface import Segmenter
from dag.workflow import store

SCORED, DETECTIONS, RESAMPLES, GOAL_SECONDS = 4952, 30, 1000, 10
SIZE, IMAGES, PERTURBATIONS, VICTIMS, PIXELS = (375, 500), 12, 6, 6, ("float", "8-bit")
GZIP = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}


class AtOnce(Segmenter):
    """A segmenter of negligible cost, whose label maps consist of blobs, like those of VOC."""

    labels = tuple(range(21))

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        rows, columns = torch.meshgrid(*(torch.arange(side) // 90 for side in size), indexing="ij")
        self.blobs = ((rows * 3 + columns) % 5).to(torch.uint8)

    def label_map(self, images: torch.Tensor) -> torch.Tensor:
        offset = images[:, 0, ::50, ::50].mean((1, 2)).to(torch.uint8) % 16
        return self.blobs + offset[:, None, None]


def cpu(function: Callable[[], object], times: int = 5) -> float:
    """Median CPU-milliseconds of a call."""
    found = []
    for _ in range(times):
        begin = time.process_time()
        function()
        found.append(1000 * (time.process_time() - begin))
    return float(np.median(found))


def before(
    networks: dict[str, Segmenter], images: dict[str, NDArray], files: dict[str, Path], target: Path
) -> dict[tuple, NDArray]:
    """Predictions by the former loop, which reads and writes gzipped HDF5 files."""
    found = {}
    with h5py.File(target, "w") as stored:
        for victim, network in networks.items():
            for name, path in files.items():
                for pixels in PIXELS:
                    with h5py.File(path) as file:
                        for image_id, image in images.items():
                            seen = torch.from_numpy(arithmetic.apply(image, file[image_id][()], pixels))[None]
                            label_map = network.label_map(seen)[0].cpu().numpy()
                            key = f"{victim}/{name}/{pixels}/{image_id}"
                            stored.create_dataset(key, data=label_map, chunks=label_map.shape, **GZIP)
                            found[victim, name, pixels, image_id] = label_map
    return found


def evaluation(folder: Path, size: tuple[int, int], images: int, perturbations: int, victims: int) -> bool:
    """E1, E3 and E4."""
    rng, shape = np.random.default_rng(0), (3, *size)
    ids = [f"{number:06d}" for number in range(images)]
    pictures = {image_id: rng.integers(0, 256, shape).astype(np.float32) for image_id in ids}
    noise = {
        f"r{number}": {image_id: rng.normal(0, 1.5, shape).astype(np.float32) for image_id in ids}
        for number in range(perturbations)
    }
    old, new = {}, {}
    for name, arrays in noise.items():
        old[name], new[name] = folder / f"{name}.old.h5", folder / f"{name}.h5"
        with h5py.File(old[name], "w") as file:
            for image_id, r in arrays.items():
                file.create_dataset(image_id, data=r, chunks=shape, **GZIP)
        write(new[name], arrays)
    networks = {f"v{number}": AtOnce(size) for number in range(victims)}
    made = [
        cell
        for victim in networks
        for cell in cells.cells_of(folder / "cells", victim, "0000", new, list(PIXELS), {"victim": victim})
    ]
    count = len(made) * images
    begin, clock = time.process_time(), time.perf_counter()
    expected = before(networks, pictures, old, folder / "predictions.old.h5")
    old_cost, old_rate = 1000 * (time.process_time() - begin) / count, count / (time.perf_counter() - clock)
    begin, clock = time.process_time(), time.perf_counter()
    predict.predict(networks, pictures.__getitem__, ids, made)
    cost, rate = 1000 * (time.process_time() - begin) / count, count / (time.perf_counter() - clock)
    for cell in made:
        for image_id in ids:
            label_map = store.read(cell.path, image_id)[0]
            if not np.array_equal(label_map, expected[cell.victim, cell.perturbation, cell.pixels, image_id]):
                raise SystemExit(f"{cell.path}: the label map of image {image_id} has changed; nothing is measured")
    print(
        f"E1  {count} predictions: before {old_cost:.2f} CPU-ms each, {old_rate:.0f} a second; "
        f"now {cost:.2f} CPU-ms, {rate:.0f} a second; goal 600 a second, or as much CPU time on one core: "
        f"{verdict(max(rate, 1000 / cost) >= 600)}"
    )
    one = {ids[0]: next(iter(noise.values()))[ids[0]]}
    old_write = cpu(lambda: write_gzip(folder / "one.old.h5", one))
    new_write = cpu(lambda: write(folder / "one.h5", one))
    plain = cpu(lambda: write(folder / "plain.h5", one, compress=False))
    raw = one[ids[0]].nbytes
    sizes = [(folder / name).stat().st_size / raw for name in ("one.old.h5", "one.h5", "plain.h5")]
    print(
        f"E3  writing a perturbation: before {old_write:.0f} CPU-ms, {sizes[0]:.3f} of its bytes; now {new_write:.0f} "
        f"CPU-ms, {sizes[1]:.3f}; temporary {plain:.0f} CPU-ms, {sizes[2]:.3f}; goal 20 CPU-ms: "
        f"{verdict(new_write <= 20 and sizes[1] <= sizes[0])}"
    )
    two = list(new.values())[:2]
    derived = {
        "sum of two": lambda path: combinations.combine(two, path, "x"),
        "multiple": lambda path: combinations.scaled(two[0], path, p=0.004, code="x"),
        "permuted draw": lambda path: combinations.control(
            two[0], path, kind="permuted", name="r", draw=1, seed=1, code="x"
        ),
    }
    costs = {name: cpu(lambda f=f, name=name: f(folder / f"{name}.h5"), 1) / images for name, f in derived.items()}
    dearest, uses = max(costs.values()), victims * len(PIXELS)
    network = 15  # CPU-ms of a forward pass of a small network of the miniature; all others take more
    share = dearest / (dearest + uses * (cost + network))
    print(
        f"E4  CPU-ms an image: {', '.join(f'{name} {value:.0f}' for name, value in costs.items())}; the "
        f"slowest takes {100 * share:.0f} % of the time with its {uses} predictions; goal 10 %: {verdict(share <= 0.1)}"
    )
    return max(rate, 1000 / cost) >= 600 and new_write <= 20 and share <= 0.1


def write(path: Path, arrays: dict[str, NDArray], compress: bool = True) -> None:
    path.unlink(missing_ok=True)
    with store.writing(path, "perturbations", list(arrays), {"of": path.name}, every=1, compress=compress) as shard:
        for image_id, r in arrays.items():
            shard.put(image_id, r, {"perceptibility": 0.006, "largest": 7.5})


def write_gzip(path: Path, arrays: dict[str, NDArray]) -> None:
    with h5py.File(path, "w") as file:
        for image_id, r in arrays.items():
            dataset = file.create_dataset(image_id, data=r, chunks=r.shape, **GZIP)
            dataset.attrs.update({"perceptibility": 0.006, "largest": 7.5})


def memory(folder: Path, size: tuple[int, int], images: int = 32, first: int = 8, perturbations: int = 20) -> float:
    """E5: growth of the process in MB from the first images of a shard to the last."""
    noise = np.random.default_rng(0).normal(0, 1.5, (3, *size)).astype(np.float32)
    ids, peaks = [f"{number:06d}" for number in range(images)], []
    sources = {f"r{number}": folder / f"m{number}.h5" for number in range(perturbations)}
    for path in sources.values():
        write(path, dict.fromkeys(ids, noise), compress=False)

    def watched(items: Iterable, total: int) -> Iterator:
        for number, item in enumerate(items, 1):
            if number in (first, total):
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            yield item

    made = cells.cells_of(folder / "memory", "v", "0000", sources, list(PIXELS), {})
    predict.predict({"v": AtOnce(size)}, lambda _: np.abs(noise), ids, made, progress=watched)
    shard = images * perturbations * noise.nbytes / 2**20
    print(
        f"E5  {images} images with {perturbations} perturbations, {shard:.0f} MB: {peaks[0]:.0f} MB after {first} "
        f"images, {peaks[1]:.0f} MB at the end; goal, growth below a tenth of the perturbations: "
        f"{verdict(peaks[1] - peaks[0] < 0.1 * shard)}"
    )
    return peaks[1] - peaks[0]


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def scene(rng: np.random.Generator) -> tuple[voc.Objects, SimpleNamespace]:
    """Random objects of one image, and detections near them."""
    count = rng.integers(1, 6)
    corners = rng.uniform(0, 250, (count, 2))
    boxes = np.hstack([corners, corners + rng.uniform(20, 200, (count, 2))]).astype(np.float32)
    labels = rng.integers(1, 21, count)
    near = rng.integers(0, count, DETECTIONS)
    right = rng.random(DETECTIONS) < 0.7
    found = SimpleNamespace(
        boxes=(boxes[near] + rng.normal(0, 8, (DETECTIONS, 4))).astype(np.float32),
        labels=np.where(right, labels[near], rng.integers(1, 21, DETECTIONS)),
        scores=rng.random(DETECTIONS),
    )
    return voc.Objects(boxes, labels, rng.random(count) < 0.1), found


def scores(images: int = SCORED) -> float:
    """Time the scores of random images, 1 to 5 objects and 30 detections each; returns CPU-s without the bootstrap."""
    rng = np.random.default_rng(0)
    truths, detections = zip(*(scene(rng) for _ in range(images)), strict=True)
    begin = time.process_time()
    matches = metrics.match_detections(truths, detections)
    matched = time.process_time() - begin
    metrics.detection_scores(matches)
    scored = time.process_time() - begin
    begin = time.process_time()
    metrics.detection_scores(matches, metrics.bootstrap_weights(images, RESAMPLES, 0))
    print(
        f"{images} images: matching {matched:.2f} s, average precision {scored - matched:.2f} s, "
        f"bootstrap of {RESAMPLES} resamples {time.process_time() - begin:.1f} s; "
        f"goal {GOAL_SECONDS} s: {verdict(scored < GOAL_SECONDS)}"
    )
    return scored


def main() -> None:
    torch.set_num_threads(1)
    print(f"{time.strftime('%F')}, torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        memory(Path(folder), SIZE)
        evaluation(Path(folder), SIZE, IMAGES, PERTURBATIONS, VICTIMS)
    scores()


if __name__ == "__main__":
    main()
