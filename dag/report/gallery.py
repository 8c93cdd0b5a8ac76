"""A gallery: every image of an image set with its perturbations and predictions, as a folder of files.

The page (`report/gallery.html`, `.css`, `.js`) is opened from the disk, where a browser reads no JSON.  So data
are scripts: `data.js` holds what filters, orders and cards need, of all images; `details/{shard}.js`, loaded when an
image is opened, the rest.  Pictures are small and few, images x (2 + perturbations) files, and bear the number of the
image in its shard, not its id, which may hold any character:

    pictures/{shard}/{number}.webp                   the image
    pictures/{shard}/{number}.png                    all its label maps: a row per perturbation, a column per network
    pictures/{shard}/{perturbation}/{number}.webp    perturbed image | magnified perturbation

Label maps are stored without loss in the colours of their classes.  Boxes are no pictures at all: the page draws them,
legibly at any size.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from html import escape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dag.attack.arithmetic import apply
from dag.data.classes import OTHER, VOC, VOID, ClassList
from dag.data.readers import VOC_LAYOUT, Reader
from dag.data.truths import Objects, predicted
from dag.evaluate.cells import detections_of, read_manifest
from dag.evaluate.metrics import match_detections
from dag.workflow import store
from dag.workflow.names import parse

SIDE = 200  # pixels of the longer side of a picture, at most
MAGNIFY = 10  # grey levels of a picture per grey level of a perturbation
SCORE = 0.5  # detections below are neither drawn nor counted as found
OVERLAP = 0.5  # IoU with the object that is found
SAMPLES, LEVELS = 24, "0123456789abcdefghijklmnopqrstuvwxyz"  # of a small curve: its points, and the digits for them
QUALITY = 80  # of WebP


def draw_shard(
    folder: Path,
    images: Sequence[tuple[Path, str]],
    pairs: Mapping[str, Sequence[str]],
    perturbations: Mapping[str, Path],
    manifest: Path,
    tasks: Mapping[str, str],
    reader: Reader = VOC_LAYOUT,
    classes: ClassList = VOC,
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[dict, dict]:
    """Draw the pictures of one shard and collect the metadata of its images.

    Parameters
    ----------
    folder : Path
        Of the pictures; it is replaced, and appears only when all are there.
    images : sequence of (root, image id)
        Of the shard.
    pairs : mapping
        {perturbation: victims that see it}, in order.
    perturbations : mapping
        The shard of every perturbation.
    manifest : Path
        Of the cells of this shard, see `dag.evaluate.cells`.
    tasks : mapping
        {victim: "segmentation" or "detection"}, in order.
    reader : Reader
        Of the image set.
    classes : ClassList
        Its classes with their colours.

    Returns
    -------
    records : dict
        `classes` that have a colour in the pictures.  `images`, one dict per image: id, width, height, classes (of its
        truth), labelled (whether it has a label map), objects (how many are to be found; None where none are
        annotated), clean ({victim: `right_foreground` or `found`}, victims with a truth only).  `perturbations`, for
        each a list with one dict per image: status, iterations, targets, curve (`small_curve`), all None but for a
        source; perceptibility, largest; seen ({victim: as clean}).
    details : dict
        `images`, one dict per image: truth (rows x_min, y_min, x_max, y_max, class, 1 if difficult else 0; None where
        there are no annotations), clean ({detector: rows of `boxes`}).  `perturbations`, for each a list with one dict
        per image: active (|T_m| at every forward pass, or None), seen (as clean).

    Raises
    ------
    ValueError
        If a shard is missing or damaged, or does not hold an image.
    """
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    for name in pairs:
        (partial / name).mkdir(parents=True)
    segmenters = [victim for victim in tasks if tasks[victim] == "segmentation"]
    cells = read_manifest(manifest)
    records: dict = {"images": [], "perturbations": {name: [] for name in pairs}}
    coloured: set[int] = set()
    details: dict = {"images": [], "perturbations": {name: [] for name in pairs}}
    with ExitStack() as stack:
        shown = {victim: ["none", *(name for name in pairs if victim in pairs[name])] for victim in tasks}
        predictions = {
            (victim, name): stack.enter_context(store.reading(cells[victim, name, "float"], "predictions"))
            for victim, names in shown.items()
            for name in names
        }
        made = {name: stack.enter_context(store.reading(perturbations[name], "perturbations")) for name in pairs}
        for number, (root, image_id) in enumerate(progress(images)):
            image, truth = reader.image((root, image_id)), _truths(reader, (root, image_id))
            height, width = image.shape[1:]
            size = picture_size(height, width)
            _photo(image, size).save(partial / f"{number}.webp", quality=QUALITY)

            seen: dict[str, dict] = {name: {} for name in ("none", *pairs)}
            for (victim, name), file in predictions.items():
                array, _ = store.get(file, image_id)
                seen[name][victim] = array if tasks[victim] == "segmentation" else detections_of(array)
            maps = [{"": truth["segmentation"]} | seen["none"], *(seen[name] for name in pairs)]
            if segmenters or truth["segmentation"] is not None:
                sheet = [[line.get(column) for column in ("", *segmenters)] for line in maps]
                _sheet(sheet, size, classes).save(partial / f"{number}.png", optimize=True)
            coloured.update(*(_classes(drawn) for line in maps for drawn in (*line.values(), truth["detection"])))

            wanted = _wanted(truth, seen["none"], reader.annotated)
            clean = _measures(wanted, seen["none"], tasks, classes)
            records["images"].append(_about(image_id, image, truth, classes) | {"clean": clean})
            details["images"].append({"truth": _objects(truth["detection"]), "clean": _boxes(seen["none"], tasks)})
            for name, file in made.items():
                r, known = store.get(file, image_id)
                strip = np.concatenate([_photo(apply(image, r, "float"), size), _noise(r, size)], axis=1)
                Image.fromarray(strip).save(partial / name / f"{number}.webp", quality=QUALITY)
                attack = known if "status" in known else {}
                active = [int(count) for count in attack["active"]] if attack else None
                records["perturbations"][name].append(
                    {key: attack.get(key) for key in ("status", "iterations", "targets")}
                    | {"curve": small_curve(active, attack["targets"]) if attack else None}
                    | {key: known[key] for key in ("perceptibility", "largest")}
                    | {"seen": _measures(wanted, seen[name], tasks, classes)}
                )
                details["perturbations"][name].append({"active": active, "seen": _boxes(seen[name], tasks)})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return records | {"classes": sorted(coloured)}, details


def picture_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the pictures of an image: its own, or as many pixels as `SIDE` allows."""
    scale = min(1, SIDE / max(height, width))
    return max(1, round(scale * height)), max(1, round(scale * width))


def small_curve(active: Sequence[int], targets: int) -> str:
    """The curve of active targets as at most `SAMPLES` digits of base 36, evenly spaced from its start to its end.

    The digit z stands for all `targets`; an active target never gets a 0.
    """
    if not len(active) or not targets:
        return ""
    which = np.linspace(0, len(active) - 1, min(SAMPLES, len(active))).round().astype(int)
    return "".join(LEVELS[int(np.ceil(35 * active[k] / targets))] for k in which)


def right_foreground(truth: NDArray, prediction: NDArray, classes: ClassList = VOC) -> float | None:
    """Share of the pixels of classes, neither background nor void, that have their right label; None without such."""
    objects = np.isin(truth, classes.foreground)
    return float((truth == prediction)[objects].mean()) if objects.any() else None


def found(truth: Objects, detections: Mapping[str, NDArray], classes: ClassList = VOC) -> int | None:
    """Number of objects, not difficult, that have a detection of their class with `SCORE` and `OVERLAP`; None without.

    By the rules of VOC's evaluation, see `dag.evaluate.metrics.match_detections`.
    """
    if truth.difficult.all():
        return None
    kept = detections["scores"] >= SCORE
    seen = SimpleNamespace(**{key: values[kept] for key, values in detections.items()})
    matches = match_detections([truth], [seen], OVERLAP, classes)
    return int(matches.hits.sum())


def boxes(detections: Mapping[str, NDArray]) -> list[list[float]]:
    """Rows (x_min, y_min, x_max, y_max, class, score) of the detections with `SCORE`, best first, rounded for print."""
    order = [k for k in np.argsort(-detections["scores"], kind="stable") if detections["scores"][k] >= SCORE]
    rounded = [
        ([round(float(edge), 1) for edge in detections["boxes"][k]], round(float(detections["scores"][k]), 3))
        for k in order
    ]
    return [[*box, int(detections["labels"][k]), score] for k, (box, score) in zip(order, rounded, strict=True)]


def data(
    about: Mapping[str, object],
    networks: Mapping[str, Mapping],
    labels: Mapping[str, str],
    pairs: Mapping[str, Sequence[str]],
    shards: Mapping[str, Mapping],
    classes: ClassList = VOC,
) -> dict:
    """What `data.js` holds: columns, because they are short.

    Parameters
    ----------
    about : mapping
        Strings that the page shows as they are, e.g. title.
    networks : mapping
        {victim: {"label", "task"}}, in order.
    labels : mapping
        {perturbation: display name}, in order.
    pairs : mapping
        {perturbation: victims that see it}.
    shards : mapping
        {shard: records of `draw_shard`}.
    classes : ClassList
        With their colours.

    Returns
    -------
    dict
        Images: id, shard, number (in the shard), width, height, classes, objects; clean, one list per victim.
        Perturbations, one dict each: name, label, names of its sources; status (index into `statuses`, -1 for none),
        iterations, targets, curve, p (1e-3), largest; seen, {index of the victim: list}.  Measures, clean and seen,
        are percent of the foreground pixels for segmentation, numbers of found objects for detection, None where
        there is no truth.
    """
    images = [image for records in shards.values() for image in records["images"]]
    rows = {name: [row for records in shards.values() for row in records["perturbations"][name]] for name in labels}
    statuses = list(dict.fromkeys(row["status"] for listed in rows.values() for row in listed if row["status"]))
    order = list(networks)

    def column(listed: list[dict], key: str, victim: str) -> list:
        values = [row[key].get(victim) for row in listed]
        if networks[victim]["task"] == "detection":
            return values
        return [None if value is None else round(100 * value) for value in values]

    return {
        "about": dict(about),
        "magnify": MAGNIFY,
        "score": SCORE,
        "overlap": OVERLAP,
        "classes": _printed(classes),
        "coloured": sorted(set().union(*(records["classes"] for records in shards.values()))),
        "statuses": statuses,
        "victims": [{"name": victim} | dict(networks[victim]) for victim in order],
        "images": {key: [image[key] for image in images] for key in ("id", "width", "height", "classes", "objects")}
        | {
            "shard": [shard for shard, records in shards.items() for _ in records["images"]],
            "number": [number for records in shards.values() for number in range(len(records["images"]))],
            "labelled": [int(image["labelled"]) for image in images],
            "clean": [column(images, "clean", victim) for victim in order],
        },
        "perturbations": [
            {
                "name": name,
                "label": label,
                "sources": list(parse(name).sources),
                "status": [statuses.index(row["status"]) if row["status"] else -1 for row in rows[name]],
                "p": [round(1000 * row["perceptibility"], 2) for row in rows[name]],
                "largest": [round(row["largest"], 1) for row in rows[name]],
                "seen": {order.index(victim): column(rows[name], "seen", victim) for victim in pairs[name]},
            }
            | {key: [row[key] for row in rows[name]] for key in ("iterations", "targets", "curve")}
            for name, label in labels.items()
        ],
    }


def script(call: str, content: object) -> str:
    """JSON as a script that hands it to the function or assigns it to the variable that `call` names, on one line.

    What could end a script element or a line of a script is escaped, so that ids may hold anything.
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f"{call}({text});\n"


def page(template: str, title: str) -> str:
    """The page; everything else on it is made from `data.js` in the browser."""
    return template.replace("{{title}}", escape(title))


def _truths(reader: Reader, image: tuple[Path, str]) -> dict:
    """Label map and objects of an image, None where not annotated: VOC has more images with boxes than label maps."""
    return {
        task: reader.truth(task, image) if reader.has(task, image) else None for task in ("segmentation", "detection")
    }


def _wanted(truth: Mapping, clean: Mapping, annotated: bool) -> Callable[[str, str], NDArray | Objects | None]:
    """Function from a victim and its task to its reference: annotations, or its prediction on the clean image."""

    def wanted(victim: str, task: str) -> NDArray | Objects | None:
        if annotated:
            return truth[task]
        seen = clean[victim]
        return predicted(seen if task == "segmentation" else _rows(seen))

    return wanted


def _rows(detections: Mapping[str, NDArray]) -> NDArray:
    return np.column_stack([detections["boxes"], detections["labels"], detections["scores"]]).astype(np.float32)


def _about(image_id: str, image: NDArray, truth: Mapping, known: ClassList) -> dict:
    label_map, objects = truth["segmentation"], truth["detection"]
    classes = set() if label_map is None else {*np.unique(label_map).tolist()} - {known.ground, VOID}
    classes |= set() if objects is None else {*objects.labels.tolist()}
    return {
        "id": image_id,
        "height": image.shape[1],
        "width": image.shape[2],
        "classes": sorted(classes),
        "labelled": label_map is not None,
        "objects": None if objects is None else int((~objects.difficult).sum()),
    }


def _classes(drawn: NDArray | Mapping | Objects | None) -> list[int]:
    """Classes of a label map, of detections that are drawn, or of objects."""
    if drawn is None:
        return []
    if isinstance(drawn, np.ndarray):
        return np.flatnonzero(np.bincount(drawn.ravel(), minlength=VOID + 1)).tolist()
    return drawn.labels.tolist() if isinstance(drawn, Objects) else drawn["labels"][drawn["scores"] >= SCORE].tolist()


def _measures(wanted: Callable, seen: Mapping, tasks: Mapping[str, str], classes: ClassList) -> dict:
    """How well each victim still recognises an image, victims without a truth left out."""
    measure = {"segmentation": right_foreground, "detection": found}
    return {
        victim: measure[tasks[victim]](truth, prediction, classes)
        for victim, prediction in seen.items()
        if (truth := wanted(victim, tasks[victim])) is not None
    }


def _boxes(seen: Mapping, tasks: Mapping[str, str]) -> dict:
    return {victim: boxes(prediction) for victim, prediction in seen.items() if tasks[victim] == "detection"}


def _objects(objects: Objects | None) -> list[list[float]] | None:
    if objects is None:
        return None
    rows = zip(objects.boxes.tolist(), objects.labels.tolist(), objects.difficult.tolist(), strict=True)
    return [[*box, label, int(difficult)] for box, label, difficult in rows]


def _photo(image: NDArray, size: tuple[int, int]) -> Image.Image:
    """An image (3, H, W) in a picture of `size`."""
    picture = Image.fromarray(np.rint(image.transpose(1, 2, 0)).astype(np.uint8))
    return picture.resize(size[::-1], Image.Resampling.LANCZOS)


def _noise(r: NDArray, size: tuple[int, int]) -> Image.Image:
    """A perturbation, magnified; grey is 0.  Pixels are picked, not averaged: averages would make it look smaller."""
    grey = np.clip(128 + MAGNIFY * r, 0, 255).transpose(1, 2, 0)
    return Image.fromarray(np.rint(grey).astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)


def _sheet(rows: Sequence[Sequence[NDArray | None]], size: tuple[int, int], classes: ClassList) -> Image.Image:
    """Label maps in rows and columns, in the colours of their classes; void where there is none."""
    empty = Image.fromarray(np.full(size, VOID, np.uint8))
    pictures = [
        [
            empty
            if label_map is None
            else Image.fromarray(label_map.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
            for label_map in row
        ]
        for row in rows
    ]
    sheet = Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in pictures], axis=0))
    sheet.putpalette(classes.colour_map().tobytes())
    return sheet


def _printed(classes: ClassList) -> dict[int, list[str]]:
    """Name and colour of every class and of what else label maps hold."""
    colours, known = classes.colour_map(), range(len(classes.names))
    special = [label for label in (OTHER, VOID) if label not in known]
    return {label: [classes.name(label), "#" + bytes(colours[label % 256]).hex()] for label in (*known, *special)}
