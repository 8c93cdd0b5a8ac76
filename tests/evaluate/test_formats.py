"""Images of VOC written in other formats: the same perturbations, predictions and scores, bit for bit."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from dag.attack import perturb
from dag.data import image_sets, voc
from dag.data.classes import VOC, VOID, ClassList, match
from dag.data.readers import reader_of
from dag.evaluate import cells, predict, score
from dag.networks.building import build
from dag.workflow import configuration, plan, store

IMAGES = 2
ENTRY = {"names": list(VOC.names), "background": "background", "void": [255]}


def runs(mask: np.ndarray) -> dict:
    """Uncompressed run lengths, the first of pixels outside."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    counts = np.diff(np.concatenate([[0], edges]))
    return {"size": list(mask.shape), "counts": [int(count) for count in counts]}


def annotations(task: str, root, ids: list[str]) -> dict:
    """Objects as boxes, label maps as one region a class; void is a crowd."""
    images, found = [], []
    for number, image_id in enumerate(ids):
        height, width = voc.read_image(root, image_id).shape[1:]
        images.append({"id": number, "file_name": f"{image_id}.jpg", "height": height, "width": width})
        if task == "detection":
            objects = voc.read_objects(root, image_id)
            for box, label, difficult in zip(objects.boxes.tolist(), objects.labels, objects.difficult, strict=True):
                x, y, right, bottom = box
                shape = {"bbox": [x, y, right - x + 1, bottom - y + 1], "iscrowd": int(difficult)}
                found.append({"image_id": number, "category_id": int(label), "id": len(found)} | shape)
        else:
            label_map = voc.read_label_map(root, image_id)
            for label in sorted({*np.unique(label_map).tolist()} - {0}):
                shape = {"segmentation": runs(label_map == label), "iscrowd": int(label == VOID)}
                category = 1 if label == VOID else label
                found.append({"image_id": number, "category_id": category, "id": len(found)} | shape)
    categories = [{"id": label, "name": name} for label, name in enumerate(VOC.names) if label]
    return {"images": images, "annotations": found, "categories": categories}


def written(task: str, kind: str, root, ids: list[str], folder) -> dict:
    """An image set in a format, as a job is told it."""
    part = {"root": str(root / "JPEGImages"), "list": str(folder / "ids.txt")}
    (folder / "ids.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    if kind == "voc":
        part["root"] = str(root)
    if kind == "coco":
        part["list"] = str(folder / "annotations.json")
        (folder / "annotations.json").write_text(json.dumps(annotations(task, root, ids)))
    if kind == "masks":
        part["masks"] = str(folder)
        for image_id in ids:
            Image.fromarray(voc.read_label_map(root, image_id)).save(folder / f"{image_id}.png")
    return {"name": kind, "format": kind, "classes": ENTRY, "parts": [part], "size": len(ids), "sha256": None}


def run(network, told: dict, task: str, settings: dict, folder) -> tuple[dict, dict, dict]:
    """Perturbations, predictions and scores."""
    reader = reader_of(told)
    images, matched = reader.images(), match(network.classes, ClassList.of(told["classes"]))
    known = {"reader": reader, "match": matched, "seed": 7, "name": "net", "header": {"of": told["name"]}}
    perturb.perturb(network, images, folder / "r.h5", settings=settings, **known)
    sources = {"none": None, "net": folder / "r.h5"}
    made = cells.cells_of(folder, "net", "0000", sources, ["float"], {"of": told["name"]})
    places = {image_id: (root, image_id) for root, image_id in images}
    matches = {"net": matched}
    predict.predict({"net": network}, lambda name: reader.image(places[name]), list(places), made, matches=matches)
    cells.write_manifest(folder / "m.json", made)
    entry = {"label": "", "task": task, "classes": ENTRY}
    (scored,) = score.score([folder / "m.json"], images, {"net": entry}, resamples=5, seed=0, reader=reader)
    arrays = [
        {image_id: store.read(path, image_id)[0] for image_id in places}
        for path in (folder / "r.h5", made[0].path, made[1].path)
    ]
    return arrays[0], {"clean": arrays[1], "perturbed": arrays[2]}, scored


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("task", "formats"), [("segmentation", ("coco", "masks")), ("detection", ("coco",))])
def test_every_format_gives_the_same(task, formats, shared, tmp_path):
    root, folder = shared / "voc/VOC2012", "Segmentation" if task == "segmentation" else "Main"
    ids = image_sets.read_ids(root / f"ImageSets/{folder}/sample.txt")[:IMAGES]
    weights = shared / "weights"
    if task == "segmentation":
        files = {"tflite": weights / "deeplabv3_mnv2_dm05_pascal_quant.tflite"}
        network = build("dag.networks.deeplab_mobilenet:deeplab_mobilenet", {}, files)
    else:
        files = {kind: weights / f"MobileNetV2-YOLO-Fastest-voc.{kind}" for kind in ("cfg", "weights")}
        network = build("dag.networks.darknet:yolo", {"score_threshold": 0.005}, files)
    config = {"variants": {}, "networks": {"net": {"task": task}}}
    settings = plan.attack(config | {"attacks": _attacks()}, "net") | {"iterations": 2, "rules": "algorithm-1"}
    found = {}
    for kind in ("voc", *formats):
        (tmp_path / kind).mkdir()
        found[kind] = run(network, written(task, kind, root, ids, tmp_path / kind), task, settings, tmp_path / kind)
    perturbations, predictions, scored = found["voc"]
    assert scored["cells"][0]["score"] > 0 and any(np.any(array) for array in perturbations.values())
    for kind in formats:
        for image_id in ids:
            assert np.array_equal(found[kind][0][image_id], perturbations[image_id])
            for when in ("clean", "perturbed"):
                assert np.array_equal(found[kind][1][when][image_id], predictions[when][image_id])
        assert found[kind][2] == scored


def _attacks() -> dict:
    return yaml.safe_load((configuration.ROOT / "config/config.yaml").read_text())["attacks"]
