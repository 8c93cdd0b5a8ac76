"""The image sets of docs/images.md, as they are written there, on four images of one's own."""

import json
import re
from html import unescape
from pathlib import Path
from textwrap import dedent

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from test_workflow import jobs, snakemake

from dag.workflow.configuration import ROOT

TEXT = (ROOT / "docs/images.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.M | re.S)
CLASSES = yaml.safe_load(BLOCKS[1])["classes"]
SETS = {entry["mine"].get("format", "voc"): entry["mine"] for entry in map(yaml.safe_load, map(dedent, BLOCKS[2:]))}
IDS = ["a", "b", "c", "d"]
SIZE = 48, 64

NETWORKS = """
import torch
from torch import nn

from dag.networks.interface import Detections, Detector, Proposals, Segmenter


def layer(outputs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Conv2d(3, outputs, 16, 16)
        made.weight.data *= 30  # sure of what it says
        return made


class Maps(Segmenter):
    def __init__(self, labels):
        super().__init__()
        self.labels, self.layer = tuple(labels), layer(len(labels))

    def body(self, images):
        return self.layer(nn.functional.pad(images / 255, (0, -images.shape[-1] % 16, 0, -images.shape[-2] % 16)))

    def upsample(self, scores, size):
        return scores.repeat_interleave(16, 2).repeat_interleave(16, 3)[..., : size[0], : size[1]]


class Boxes(Detector):
    def __init__(self, labels):
        super().__init__()
        self.labels, self.layer = tuple(labels), layer(len(labels))

    def features(self, images):
        maps = self.layer(images / 255)
        y, x = torch.meshgrid(torch.arange(maps.shape[2]), torch.arange(maps.shape[3]), indexing="ij")
        corners = 16 * torch.stack([x, y, x, y], -1).flatten(0, 1).float()
        return maps.flatten(2).transpose(1, 2), corners + torch.tensor([0, 0, 15, 15])

    def propose(self, features, *, nms, limit):
        rows, boxes = features
        return [Proposals(boxes[:limit], torch.arange(len(boxes))[:limit]) for _ in rows]

    def scores(self, features, proposals):
        return torch.cat([rows[one.index] for rows, one in zip(features[0], proposals)])

    def detect(self, images):
        rows, boxes = self.features(images)
        found = []
        for scores in rows.softmax(2):
            best, columns = scores.max(1)
            order = best.argsort(descending=True)
            found.append(Detections(boxes[order], torch.tensor(self.labels)[columns[order]], best[order]))
        return found
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Roads with a car and a person, annotated in every format."""
    folder = tmp_path_factory.mktemp("own")
    names = CLASSES["street"]["names"]
    for part in (
        "photos",
        "labels",
        "VOC/JPEGImages",
        "VOC/Annotations",
        "VOC/SegmentationClass",
        "VOC/ImageSets/Main",
    ):
        (folder / part).mkdir(parents=True)
    images, annotations = [], []
    for number, image_id in enumerate(IDS):
        rng = np.random.default_rng(number)
        labels = np.zeros(SIZE, np.uint8)
        x = 4 + 4 * number
        labels[16:32, x : x + 16], labels[34:44, 40:50] = 1, 2
        labels[:4] = 255
        pixels = rng.integers(0, 80, (*SIZE, 3)) + 80 * (labels[..., None] == [1, 2, 0])
        picture = Image.fromarray(pixels.astype(np.uint8))
        picture.save(folder / f"photos/{image_id}.PNG")
        picture.save(folder / f"VOC/JPEGImages/{image_id}.png")
        for part in ("labels", "VOC/SegmentationClass"):
            Image.fromarray(labels).save(folder / part / f"{image_id}.png")
        images.append({"id": number, "file_name": f"{image_id}.PNG", "height": SIZE[0], "width": SIZE[1]})
        objects = ""
        for label, (left, top, width, height) in ((1, (x, 16, 16, 16)), (2, (40, 34, 10, 10))):
            right, bottom = left + width, top + height
            outline = [[left, top, right, top, right, bottom, left, bottom]]
            entry = {"id": len(annotations), "image_id": number, "category_id": label, "segmentation": outline}
            annotations.append(entry | {"bbox": [left, top, width, height]})
            edges = zip(("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, right, bottom), strict=True)
            box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
            objects += f"<object><name>{names[label]}</name><bndbox>{box}</bndbox></object>"
        (folder / f"VOC/Annotations/{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
    (folder / "VOC/ImageSets/Main/mine.txt").write_text("".join(f"{image_id}\n" for image_id in IDS))
    categories = [{"id": label, "name": name} for label, name in enumerate(names) if label]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "networks.py").write_text(NETWORKS)
    return folder


def overlay() -> dict:
    networks = {
        name: {
            "label": name, "task": task, "classes": "street", "architecture": f"networks.py:{name.capitalize()}",
            "arguments": {"labels": [0, 1, 2]}, "files": {},
        }
        for name, task in (("maps", "segmentation"), ("boxes", "detection"))
    }  # fmt: skip
    tables = {
        f"table_{kind}": {
            "title": kind, "description": "", "layout": "white-box", "image_set": kind,
            "sources": ["maps"] if kind == "masks" else ["maps", "boxes"],
        }
        for kind in SETS
    }  # fmt: skip
    gallery = {"kind": "gallery", "title": "G", "description": "", "image_set": "images"}
    return {
        "experiment": "own", "classes": CLASSES, "image_sets": SETS, "networks": networks, "tables": tables,
        "attacks": {
            "segmentation": {"iterations": 2}, "detection": {"iterations": 2, "rules": "algorithm-1", "limit": 20},
        },
        "permutations": 1, "pixels": ["float"], "bootstrap": 3, "products": [*tables, "gallery_own"],
        "figures": {"gallery_own": gallery | {"perturbations": ["maps", "boxes"], "victims": ["maps", "boxes"]}},
    }  # fmt: skip


@pytest.mark.slow
def test_every_format_makes_a_report(workflow, folder):
    code, text = snakemake(workflow, folder, "all", overlay=overlay())
    assert code == 0, text[-3000:]
    results = folder / "results/own"
    tables = {kind: pd.read_csv(results / f"tables/table_{kind}.csv") for kind in SETS}
    numbers = ["victim", "condition", "score", "drop", "perceptibility"]
    maps = {kind: table[table.victim == "maps"][numbers].reset_index(drop=True) for kind, table in tables.items()}
    # VOC's layout and label maps hold the same truth; COCO's form has a road only where nothing is, and no void
    pd.testing.assert_frame_equal(maps["voc"], maps["masks"])
    boxes = {
        kind: tables[kind][tables[kind].victim == "boxes"][numbers].reset_index(drop=True) for kind in ("voc", "coco")
    }
    pd.testing.assert_frame_equal(boxes["voc"], boxes["coco"])
    clean = tables["images"][tables["images"].condition == "ORIG"]
    assert (clean.score.fillna(100) == 100).all()
    sentence = "no truth is annotated; what counts as true is each network's own prediction on the clean image"
    assert sentence in (results / "tables/table_images.md").read_text()
    assert sentence not in (results / "tables/table_masks.md").read_text()
    page = unescape((results / "index.html").read_text())
    assert sentence in page and "aeroplane" not in page
    data = (results / "galleries/gallery_own/data.js").read_text()
    assert all(f'["{name}",' in data for name in CLASSES["street"]["names"]) and "aeroplane" not in data


@pytest.mark.slow
def test_the_first_example_is_planned(workflow, folder):
    """One class, four photos, a detector of torchvision: planning asks for nothing more."""
    mine = folder / "mine"
    mine.mkdir()
    content = json.loads((folder / "annotations.json").read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] == 1]
    content["categories"] = [{"id": 1, "name": "License plate"}]
    (mine / "annotations.json").write_text(json.dumps(content))
    (mine / "photos").symlink_to(folder / "photos")
    (mine / "mine.pt").touch()
    code, text = snakemake(workflow, mine, "all", "--dry-run", overlay=yaml.safe_load(BLOCKS[0]))
    assert code == 0, text[-3000:]
    assert jobs(text)["perturb"] == 1 and jobs(text)["write_index"] == 1
    authors = yaml.safe_load(BLOCKS[0]) | {"attacks": {"detection": {"rules": "authors"}}}
    code, text = snakemake(workflow, mine, "all", "--dry-run", overlay=authors)
    assert code != 0 and "'mine' knows license plate alone; set attacks.detection.rules: algorithm-1, or" in text
