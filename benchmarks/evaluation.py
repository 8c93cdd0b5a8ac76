"""How long the scores of one pass over VOC2007 test take: `python benchmarks/evaluation.py`, goal 10 CPU-seconds.

4952 images with 1 to 5 objects and 30 detections each, made up; matching, average precision, and the bootstrap that a
table needs.
"""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from dag.data import voc
from dag.evaluate import metrics

IMAGES, DETECTIONS, RESAMPLES, GOAL_SECONDS = 4952, 30, 1000, 10


def scene(rng: np.random.Generator) -> tuple[voc.Objects, SimpleNamespace]:
    """Objects of one image, and detections near them."""
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


def main(images: int = IMAGES) -> float:
    """Print the times; returns those of matching and average precision in CPU-seconds."""
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
        f"goal {GOAL_SECONDS} s: {'met' if scored < GOAL_SECONDS else 'missed'}"
    )
    return scored


if __name__ == "__main__":
    main()
