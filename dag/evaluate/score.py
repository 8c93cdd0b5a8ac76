"""Scores of the victims of a table under every perturbation, from stored predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from dag.data.classes import ClassList
from dag.data.readers import VOC_LAYOUT, Reader
from dag.evaluate.cells import detections_of, predictions, read_manifest
from dag.evaluate.coco import coco_scores, match_coco
from dag.evaluate.draws import pooled
from dag.evaluate.metrics import (
    bootstrap_weights,
    confusion_matrix,
    detection_scores,
    segmentation_scores,
)
from dag.evaluate.truth import Truth, truths_of
from dag.evaluate.worst import worst_confusions, worst_detections
from dag.workflow.names import CONTROLS, parse
from dag.workflow.seeds import generator

# Score and companion by task, and further fields of every cell.
METRICS = {"segmentation": ("mIoU", "foreground mIoU"), "detection": ("mAP", "area mAP")}
COCO_AP = "COCO AP"  # the other companion of detectors
ALSO = {"segmentation": ("image mIoU", "pixel accuracy"), "detection": ("objects found",)}


def score(
    manifests: list[Path],
    images: list[tuple[Path, str]],
    networks: dict[str, dict],
    *,
    resamples: int,
    seed: int,
    missing: Iterable[str] = (),
    worst: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    draws: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    ensembles: Mapping[str, Sequence[str]] | None = None,
    companion: str = METRICS["detection"][1],
    reader: Reader = VOC_LAYOUT,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[dict]:
    """Score every cell of a table.

    Parameters
    ----------
    manifests : list of Path
        One per shard, in order; see `dag.evaluate.cells`.
    images : list of (root, image id)
        The whole image set in order, without what is `missing`.
    networks : dict
        Victims in order: {name: {"label", "task", "classes", ...}}, the latter as in the configuration; default: VOC.
    resamples, seed : int
        Of the bootstrap over images.  All cells and victims of an image set share the resamples,
        so differences between cells are paired.
    missing : iterable of str
        Ids of the images whose shards are given up: recorded, not scored.
    worst : mapping, optional
        {victim: {name: perturbations}}: the worst of several perturbations is a cell of its own under this name,
        see `dag.evaluate.worst`.
    draws : mapping, optional
        {victim: {source: perturbations}}: the attack was repeated, and the cell of the source is the mean over these
        draws, whose spread is part of its errors, see `dag.evaluate.draws`.
    ensembles : mapping, optional
        {perturbation: networks} of those that were made from other networks than their names say: their cells say
        `made_from`.
    companion : str
        Second metric of detectors, "area mAP" or "COCO AP".
    reader : Reader
        Of the image set.

    Returns
    -------
    list of dict
        One per victim: victim, label, task, images (their number), missing (ids), metric, companion_metric, truth
        ("annotated", or "clean" if the clean prediction was taken for it), ignored ({class that the network does not
        know: pixels or objects that do not count}) and `cells`: for each cell perturbation, pixels, score, score_se,
        companion, companion_se, drop, drop_se, drop_low, drop_high (against `none`, paired, with its 95 % interval),
        beyond, per_class, also (further metrics: {name: {value, se}}; all in percent, None where a class is absent),
        passes (forward passes of the attack, mean over images; None if not counted), perceptibility (mean over images)
        and linf (largest |r|, grey levels).  The mean over the draws of a control is a cell of its own, `x.permuted`.
        `beyond` says by how much the score lies
        below that under the mean of each of its controls: {control: {difference, low, high}}, paired.  The worst of
        several perturbations also says `chosen`: {perturbation: number of images}; its choice is made once, for all
        images, and kept in the resamples.  The mean over several draws of an attack says `draws`, their number.
    """
    shards = [read_manifest(manifest) for manifest in manifests]
    weights = _weights(len(images), resamples, seed)
    truths = truths_of(reader, images, networks, shards)
    values: dict[str, dict] = {victim: {} for victim in networks}
    compared: dict[tuple[str, str, str], tuple[NDArray | list, dict]] = {}
    members = {
        (victim, name) for victim, groups in (worst or {}).items() for names in groups.values() for name in names
    }
    for victim, name, pixels in progress(list(shards[0])):
        task = networks[victim]["task"]
        outputs, known = predictions([shard[victim, name, pixels] for shard in shards], images)
        seen = _compared(task, truths[victim], outputs)
        values[victim][name, pixels] = _values(task, truths[victim], seen, weights, companion) | _size(known)
        if (victim, name) in members:
            compared[victim, name, pixels] = seen, known
    for victim, groups in (worst or {}).items():
        task = networks[victim]["task"]
        for (name, names), pixels in product(groups.items(), dict.fromkeys(pixels for *_, pixels in shards[0])):
            rng = generator("worst", seed, victim, name)
            seen, known = zip(*(compared[victim, member, pixels] for member in names), strict=True)
            chosen = _worst(task, truths[victim], seen, rng)
            picked = [one[image] for image, one in enumerate(map(seen.__getitem__, chosen))]
            picked = np.stack(picked) if task == "segmentation" else picked
            values[victim][name, pixels] = (
                _values(task, truths[victim], picked, weights, companion)
                | _size([known[attack][image] for image, attack in enumerate(chosen)])
                | {"passes": sum(values[victim][member, pixels]["passes"] for member in names)}
                | {"chosen": {member: int((chosen == attack).sum()) for attack, member in enumerate(names)}}
            )
    for victim, groups in (draws or {}).items():
        for (name, names), pixels in product(groups.items(), dict.fromkeys(pixels for *_, pixels in shards[0])):
            parts = [values[victim][draw, pixels] for draw in names]
            values[victim][name, pixels] = {key: _mean([part[key] for part in parts]) for key in parts[0]} | {
                key: pooled([part[key] for part in parts], generator("draws", seed))
                for key in ("score", "companion", *ALSO[networks[victim]["task"]])
            }
            values[victim][name, pixels]["draws"] = len(names)
    for of_victim in values.values():
        for name, pixels in of_victim:
            if name in (ensembles or {}):
                of_victim[name, pixels]["made_from"] = list(ensembles[name])
    return [
        {
            "victim": victim,
            "label": entry["label"],
            "task": entry["task"],
            "images": len(images),
            "missing": list(missing),
            "metric": METRICS[entry["task"]][0],
            "companion_metric": _companion(entry["task"], companion, reader.classes),
            "truth": "annotated" if reader.annotated else "clean",
            "ignored": truths[victim].ignored,
            "cells": _cells(values[victim], reader.classes),
        }
        for victim, entry in networks.items()
    ]


def resampled_scores(
    manifests: list[Path],
    images: list[tuple[Path, str]],
    networks: dict[str, dict],
    *,
    resamples: int,
    seed: int,
    reader: Reader = VOC_LAYOUT,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[tuple[str, str, str], tuple[NDArray, dict]]:
    """Score of every cell in every resample, for comparisons of many cells.

    Parameters
    ----------
    manifests, images, networks, resamples, seed, reader
        As of `score`, with the same resamples.

    Returns
    -------
    dict
        By (victim, perturbation, pixels): the scores in percent, float64 (1 + resamples,), the plain one first, and
        perceptibility (mean over images), linf and passes.
    """
    shards = [read_manifest(manifest) for manifest in manifests]
    weights = _weights(len(images), resamples, seed)
    truths = truths_of(reader, images, networks, shards)
    found = {}
    for cell in progress(list(shards[0])):
        task, truth = networks[cell[0]]["task"], truths[cell[0]]
        seen, known = predictions([shard[cell] for shard in shards], images)
        values = _values(task, truth, _compared(task, truth, seen), weights)
        found[cell] = values["score"], _size(known)
    return found


def clean_scores(
    manifests: list[Path],
    images: list[tuple[Path, str]],
    networks: dict[str, dict],
    threshold: float = 0.5,
    reader: Reader = VOC_LAYOUT,
) -> NDArray:
    """Score of every victim on every single clean image.

    Parameters
    ----------
    manifests, images, networks, reader
        As of `score`.
    threshold : float
        Detections with a lower score do not count, as they are not drawn.

    Returns
    -------
    ndarray, float64 (victims, images)
        In percent: foreground mIoU (mIoU where there is no background), or F1 = 2 TP / (2 TP + FP + FN) of the
        detections; NaN where an image has nothing to find.
    """
    shards = [read_manifest(manifest) for manifest in manifests]
    alone, truths = np.ones((1, 1), np.int64), truths_of(reader, images, networks, shards)
    found = []
    for victim, entry in networks.items():
        outputs, _ = predictions([shard[victim, "none", "float"] for shard in shards], images)
        task, pairs = entry["task"], zip(map(truths[victim].only, range(len(images))), outputs, strict=True)
        if task == "segmentation":
            values = [_values(task, one, _compared(task, one, [seen]), alone) for one, seen in pairs]
            found.append([value["companion"][0] for value in values])
        else:
            found.append([_f1(one, seen[seen[:, 5] >= threshold]) for one, seen in pairs])
    return np.array(found, np.float64)


def _companion(task: str, companion: str, classes: ClassList) -> str:
    if task == "detection":
        return companion
    return "image mIoU" if classes.ground is None else METRICS[task][1]


def _f1(truth: Truth, rows: NDArray) -> float:
    """F1 of stored detections of one image in percent; NaN without objects that count."""
    matches = truth.matches([SimpleNamespace(**detections_of(rows))])
    objects = matches.counts.sum()
    return 200 * matches.hits.sum() / (len(matches.hits) + objects) if objects else np.nan


def _cells(values: dict, classes: ClassList) -> list[dict]:
    """Cells of one victim in their reported form, means of the draws of controls included."""
    values = values | _means_of_draws(values)
    cells = []
    for (name, pixels), value in values.items():
        drop = values["none", pixels]["score"] - value["score"]
        cells.append(
            {
                "perturbation": name,
                "pixels": pixels,
                "score": _number(value["score"][0]),
                "score_se": _error(value["score"]),
                "companion": _number(value["companion"][0]),
                "companion_se": _error(value["companion"]),
                "drop": _number(drop[0]),
                "drop_se": _error(drop),
                **dict(zip(("drop_low", "drop_high"), _interval(drop), strict=True)),
                "beyond": {
                    control: _difference(values[f"{name}.{control}", pixels]["score"] - value["score"])
                    for control in CONTROLS
                    if (f"{name}.{control}", pixels) in values
                },
                "also": {
                    metric: {"value": _number(value[metric][0]), "se": _error(value[metric])}
                    for metric in (*ALSO["segmentation"], *ALSO["detection"])
                    if metric in value
                },
                "passes": _number(value["passes"]),
                "perceptibility": value["perceptibility"],
                "linf": value["linf"],
                **{key: value[key] for key in ("chosen", "draws", "made_from") if key in value},
                "per_class": {
                    name: _number(part) for name, part in zip(classes.names, value["per_class"], strict=True)
                },
            }
        )
    return cells


def _weights(images: int, resamples: int, seed: int) -> NDArray:
    if images == 1:  # all resamples are equal, so errors are unknown
        resamples = 0
    return bootstrap_weights(images, resamples, int(generator("bootstrap", seed).integers(2**31)))


def _compared(task: str, truth: Truth, predictions: list[NDArray]) -> NDArray | list[SimpleNamespace]:
    """Per-image statistics for the scores: confusion matrices, or detections."""
    if task == "segmentation":
        count, pairs = len(truth.classes.names), zip(truth.images, predictions, strict=True)
        return np.stack([confusion_matrix(*pair, classes=count, other=truth.other) for pair in pairs])
    return [SimpleNamespace(**detections_of(rows)) for rows in predictions]


def _values(
    task: str, truth: Truth, compared: NDArray | list[SimpleNamespace], weights: NDArray, companion: str = ""
) -> dict:
    """All metrics, the plain value first and then one per resample, and per-class values."""
    weights = np.concatenate([np.ones((1, weights.shape[1]), weights.dtype), weights])
    if task == "segmentation":
        values = segmentation_scores(compared, weights, truth.classes.ground)
    else:
        values = detection_scores(truth.matches(compared), weights)
        if companion == COCO_AP:
            values["companion"] = coco_scores(match_coco(truth.images, compared), weights)[COCO_AP]
    return values | {"per_class": values["per_class"][0]}


def _worst(task: str, truth: Truth, compared: Sequence, rng: np.random.Generator) -> NDArray:
    """The attack (of those compared) that is taken for every image."""
    if task == "segmentation":
        return worst_confusions(np.stack(compared), rng)
    alone = [[truth.only(image).matches([found]) for image, found in enumerate(seen)] for seen in compared]
    scores = [[detection_scores(image)["score"][0] for image in images] for images in alone]
    false = [[image.scores[~image.hits].sum() for image in images] for images in alone]

    def of_set(chosen: NDArray) -> float:
        seen = [compared[attack][image] for image, attack in enumerate(chosen)]
        return float(detection_scores(truth.matches(seen))["score"][0])

    # The mAP of a set is not a mean over images either: keep the lowest single attack if it is lower.
    single = [np.full(len(truth.images), attack) for attack in range(len(compared))]
    return min([worst_detections(np.array(scores), np.array(false)), *single], key=of_set)


def _size(attributes: list[dict]) -> dict:
    return {
        "perceptibility": float(np.mean([entry["perceptibility"] for entry in attributes])),
        "linf": float(np.max([entry["largest"] for entry in attributes])),
        "passes": float(np.mean([entry.get("passes", np.nan) for entry in attributes])),  # NaN: not counted
    }


def _means_of_draws(values: dict) -> dict:
    """Cells `x.permuted`: the mean over the draws, in every resample."""
    draws: dict[tuple[str, str], list[dict]] = {}
    for (name, pixels), value in values.items():
        if "chosen" not in value and parse(name).control in CONTROLS and parse(name).draw:
            draws.setdefault((name.rpartition("-")[0], pixels), []).append(value)
    return {key: {name: _mean([value[name] for value in group]) for name in group[0]} for key, group in draws.items()}


def _mean(parts: list) -> NDArray | float:
    mean = np.mean(parts, axis=0)
    return float(mean) if np.ndim(mean) == 0 else mean


def _error(values: NDArray) -> float | None:
    """Standard error: standard deviation over the resamples in which the score exists."""
    resampled = values[1:][np.isfinite(values[1:])]
    return float(np.std(resampled, ddof=1)) if len(resampled) > 1 else None


def _interval(values: NDArray) -> tuple[float | None, float | None]:
    """Percentile interval that holds 95 % of the resamples in which the score exists."""
    resampled = values[1:][np.isfinite(values[1:])]
    return tuple(np.quantile(resampled, (0.025, 0.975)).tolist()) if len(resampled) > 1 else (None, None)


def _difference(values: NDArray) -> dict[str, float | None]:
    low, high = _interval(values)
    return {"difference": _number(values[0]), "low": low, "high": high}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
