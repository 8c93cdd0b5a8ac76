"""Stored perturbations and predictions, gathered for tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dag.data.readers import VOC_LAYOUT, Reader, reader_of
from dag.data.truths import Objects, predicted
from dag.evaluate.cells import detections_of, read_manifest
from dag.report.wording import UNANNOTATED, row_label
from dag.workflow import plan, store
from dag.workflow.files import read_json
from dag.workflow.names import parse


def records(shards: Sequence[Path], networks: Mapping[str, Mapping]) -> list[dict]:
    """What is known of every attacked image, by source.

    Parameters
    ----------
    shards : sequence of Path
        Perturbation shards of sources.
    networks : mapping
        {name: {"label", "task"}}.

    Returns
    -------
    list of dict
        One per source, in order of first appearance: source, label, task, settings of the attack, `missing`
        (ids of its image sets that are in no shard: they were given up), and `records`, one dict per image: image,
        status, iterations, targets, available, active (|T_m| at every forward pass), perceptibility, largest.
    """
    sources: dict[str, dict] = {}
    found: dict[str, dict[str, tuple[dict, set[str]]]] = {}
    labels = {name: entry["label"] for name, entry in networks.items()}
    for shard in shards:
        header = store.read_header(shard, "perturbations")
        entry = sources.setdefault(
            header["source"],
            {
                "source": header["source"],
                "label": row_label(header["source"], labels, {}),
                "task": header["network"]["task"],
                "settings": header["settings"],
                "records": [],
            },
        )
        attributes = store.read_attributes(shard, "perturbations")
        entry["records"] += [{"image": image_id} | known for image_id, known in attributes.items()]
        sets = found.setdefault(header["source"], {})
        sets.setdefault(header["image_set"]["name"], (header["image_set"], set()))[1].update(attributes)
    return [
        entry | {"missing": [image_id for pair in found[name].values() for image_id in _missing(*pair)]}
        for name, entry in sources.items()
    ]


def planted(files: Sequence[Path], networks: Mapping[str, Mapping]) -> list[dict]:
    """Rows of `dag.attack.planted.find_planted`, with the `network`, the `image_set` and the `label` of the source.

    Parameters
    ----------
    files : sequence of Path
        {image_set}/planted/{network}.json
    networks : mapping
        {name: {"label", "task"}}.
    """
    labels = {name: entry["label"] for name, entry in networks.items()}
    return [
        row
        | {
            "network": file.stem,
            "image_set": file.parent.parent.name,
            "label": row_label(row["source"], labels, {}),
        }
        for file in map(Path, files)
        for row in read_json(file)
    ]


def _missing(image_set: Mapping, found: set[str]) -> list[str]:
    """Ids of an image set that were not found; its list is read if there are any."""
    if len(found) == image_set["size"]:
        return []
    return [image_id for _, image_id in reader_of(image_set).images() if image_id not in found]


def best(images: Sequence[tuple[Path, str]], scores: NDArray, count: int) -> list[tuple[Path, str]]:
    """The images on which the victims do best, best first; the effect of a perturbation plays no part.

    Parameters
    ----------
    images : sequence of (root, image id)
    scores : ndarray (victims, images)
        On the clean images, see `dag.evaluate.score.clean_scores`; the mean over the victims counts.
        An image that is NaN for one of them is left out.
    count : int
        How many; of equal images the earlier ones.

    Raises
    ------
    ValueError
        If no image is left.
    """
    mean = np.mean(scores, axis=0)
    order = [k for k in np.argsort(-mean, kind="stable") if np.isfinite(mean[k])]
    if not order:
        raise ValueError("no image has something to find for every victim; name images by their ids instead")
    return [images[k] for k in order[:count]]


def choice(entry: Mapping, images: int, reader: Reader = VOC_LAYOUT) -> str:
    """In words, how the images of an entry of `figures` were chosen out of so many, and what they are compared with."""
    return _chosen(entry, images) + ("" if reader.annotated else f" {UNANNOTATED.capitalize()}.")


def _chosen(entry: Mapping, images: int) -> str:
    if not isinstance(entry["images"], int):
        return "Images named in the configuration."
    if entry.get("choose") == "clean":
        return (
            f"Chosen among {images} images by the predictions on the clean image only: "
            "those on which the victims do best (foreground mIoU, F1 of the drawn detections)."
        )
    return f"Chosen evenly spaced among {images} images."


def shaped_examples(shard: Path) -> list[dict]:
    """Shaped examples in the form of the rows of `dag.report.figures.examples`.

    Parameters
    ----------
    shard : Path
        Of `dag.attack.shapes.shape`.

    Returns
    -------
    list of dict
        label, outcome, image, perturbation, truth (the wanted map), before and after, and all attributes.
    """
    rows: dict[str, dict] = {}
    with store.reading(shard, "shapes") as file:
        for name in store.read_attributes(shard, "shapes"):
            array, known = store.get(file, name)
            example, _, part = name.rpartition(".")
            rows.setdefault(example, dict(known))["truth" if part == "wanted" else part] = array
    for row in rows.values():
        start = "uniform noise" if row["start"] == "noise" else row["start"]
        row["label"] = f"{row['class']} as {row['shape']} on {start}"
        reached = f"{100 * row['reached']:.1f} % as wanted"
        row["outcome"] = f"{row['status']} ({row['iterations']} iterations), {reached}"
    return list(rows.values())


def example_blocks(
    images: Sequence[tuple[Path, str]],
    panels: Sequence[Mapping],
    perturbations: Mapping[str, Sequence[Path]],
    manifests: Sequence[Path],
    networks: Mapping[str, Mapping],
    symbols: Mapping[str, str],
    reader: Reader = VOC_LAYOUT,
) -> list[dict]:
    """Everything that example panels show, see `dag.report.figures.examples.transfer_examples`.

    Parameters
    ----------
    images : sequence of (root, image id)
    panels : sequence of mapping
        {"perturbation": name, "victims": names}.
    perturbations : mapping
        Shards of every perturbation by its name.
    manifests : sequence of Path
        Of the cells, one per shard; see `dag.evaluate.cells`.
    networks : mapping
        {name: {"label", "task"}}.
    symbols : mapping
        Short names of the sources.
    reader : Reader
        Of the image set.

    Returns
    -------
    list of dict
        One per image and panel, images outermost: label, status where there is one source, image,
        perturbation and victims, a list of {label, truth, before, after}.  A single victim that is
        not the source is part of the label.
    """
    labels = {name: entry["label"] for name, entry in networks.items()}
    shards = [read_manifest(path) for path in manifests]
    blocks = []
    for root, image_id in images:
        for panel in panels:
            name = panel["perturbation"]
            r, known = _find(perturbations[name], image_id, "perturbations")
            sources = parse(name).sources
            label = row_label(name, labels, symbols)
            if len(panel["victims"]) == 1 and panel["victims"] != [plan.network_of(source) for source in sources]:
                label += f" → {labels[panel['victims'][0]]}"
            block = {
                "label": f"{label} on {image_id}",
                "image": reader.image((root, image_id)),
                "perturbation": r,
                "victims": [],
            }
            if len(sources) == 1:
                block["status"] = known["status"]
            for victim in panel["victims"]:
                seen = {"label": labels[victim]}
                for when, perturbation in (("before", "none"), ("after", name)):
                    paths = [shard[victim, perturbation, "float"] for shard in shards]
                    array, _ = _find(paths, image_id, "predictions")
                    seen[when] = array if networks[victim]["task"] == "segmentation" else detections_of(array)
                    if when == "before":
                        truth = reader.truth(networks[victim]["task"], (root, image_id))
                        seen["truth"] = _drawn(predicted(array) if truth is None else truth)
                block["victims"].append(seen)
            blocks.append(block)
    return blocks


def _drawn(truth: NDArray | Objects) -> NDArray | dict[str, NDArray]:
    return {"boxes": truth.boxes, "labels": truth.labels} if isinstance(truth, Objects) else truth


def _find(shards: Sequence[Path], image_id: str, kind: str) -> tuple[NDArray, dict]:
    """Array and attributes of an image, in whichever shard it lies."""
    for shard in shards:
        with store.reading(shard, kind) as file:
            if image_id in file:
                return store.get(file, image_id)
    raise ValueError(f"image {image_id} is in none of {', '.join(map(str, shards))}; is it in the image set?")
