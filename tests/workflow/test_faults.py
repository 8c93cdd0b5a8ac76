"""What can go wrong in a job: one sentence that says what, where and what to do, and nothing half done.

Here the real scripts are run as Snakemake runs them, with a `snakemake` made by hand.  What is covered elsewhere:

======================================  ==============================================================
weights half downloaded or damaged      test_download.py: test_continues_after_cuts and others; the readers:
                                        test_interface.py::test_bad_weight_files, test_caffemodel.py::
                                        test_cut_anywhere, test_darknet.py::test_weights_that_do_not_fit_are_rejected,
                                        test_deeplab_mobilenet.py::test_foreign_and_truncated_files_are_rejected;
                                        in a job: here
NaN in the weights                      test_interface.py::test_bad_weight_files; in a job: here
network that yields NaN                 test_perturb.py::test_a_network_that_yields_nan_is_named
image missing                           test_perturb.py::test_a_missing_image_is_named; in a job: here
JPEG corrupt                            test_voc.py::test_damaged_images_are_refused; in the workflow:
                                        test_workflow.py::test_a_job_that_fails_says_why_on_the_terminal
unknown class, box outside the image    test_voc.py::test_wrong_annotations_are_refused; in a job: here
label map of the wrong size             test_voc.py::test_wrong_label_maps_are_refused; in a job: here
image without objects                   test_perturb.py::test_an_image_without_objects_keeps_its_place
shard truncated, foreign, bits flipped  test_store.py
disk full                               test_store.py, test_download.py::test_disk_is_full_before_and_while_writing
results folder read-only                here
memory of the GPU too small             test_engine.py::test_an_image_that_does_not_fit_alone_is_named; else: here
time limit, scancel (SIGTERM)           test_job.py; with what is kept: here; in Slurm: test_slurm.py
Ctrl-C, two runs in one folder, a shard that is given up: test_workflow.py
======================================  ==============================================================
"""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dag.attack import perturb
from dag.data import mini
from dag.evaluate import cells, predict
from dag.networks.building import build
from dag.workflow import plan, store

ROOT = Path(__file__).parents[2]
IDS = ["000001", "000002", "000003"]
SIZE = (96, 128)
FCN = {"body": "alex", "labels": [0, *mini.LABELS], "width": 16}
CLASSES = yaml.safe_load((ROOT / "config/classes.yaml").read_text())["classes"]["voc"]
# What `dag.workflow.jobs.network` tells a job of a network.
TOLD = {
    "name": "net",
    "arguments": {},
    "files": {},
    "code": "",
    "task": "segmentation",
    "classes": CLASSES,
    "defences": [],
}

# A segmenter that takes its time and says whenever it is shown an image of the miniature.
SLOW = """
import time

import torch
from torch.nn import functional as F

from dag.networks.interface import Segmenter


class Slow(Segmenter):
    def __init__(self, labels, seconds):
        super().__init__()
        self.labels, self.seconds = tuple(labels), seconds
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = torch.nn.Conv2d(3, len(labels), 8, 8)

    def body(self, images):
        if tuple(images.shape[-2:]) == (96, 128):
            print("seen", flush=True)
            time.sleep(self.seconds)
        return self.layer(images)

    def upsample(self, scores, size):
        return F.interpolate(scores, size, mode="bilinear")


slow = Slow
"""
# Takes from root the right to write where nobody may (PR_CAPBSET_DROP, CAP_DAC_OVERRIDE) and runs what follows.
WEAK = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
# no target of Slow is ever done
ATTACK = {"rules": "authors", "options": {"active": "unreached"}, "iterations": 9, "step": 1e-6}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    mini.make_voc(folder, {"Main/test": IDS}, seed=5)
    return folder


@pytest.fixture
def root(images, tmp_path) -> Path:
    """A VOC folder to damage."""
    return Path(shutil.copytree(images, tmp_path / "voc"))


class Script:
    """A script of a rule in a process of its own."""

    def __init__(self, name: str, folder: Path, *, weak: bool = False, **given):
        self.log = folder / f"{name}.txt"
        self.log.unlink(missing_ok=True)
        given = {"log": [str(self.log)], "threads": 1} | given
        (folder / "snakemake.pickle").write_bytes(pickle.dumps(given))
        command = (
            "import pickle, runpy; from types import SimpleNamespace as S; "
            f"given = pickle.load(open({str(folder / 'snakemake.pickle')!r}, 'rb')); "
            f"runpy.run_path({str(next((ROOT / 'scripts').glob(f'*/{name}.py')))!r}, {{'snakemake': S(**given)}})"
        )
        self.process = subprocess.Popen(
            [*([sys.executable, "-c", WEAK] if weak else []), sys.executable, "-c", command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, count: int) -> None:
        """Until the network has seen so many images."""
        deadline = time.monotonic() + 60
        while self.text().count("seen") < count:
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.02)

    def ended(self) -> int:
        return self.process.wait(60)


def image_set(root: Path) -> dict:
    part = {"root": str(root), "list": str(root / "ImageSets/Main/test.txt")}
    return {"name": "test", "parts": [part], "size": len(IDS), "sha256": None, "shard_size": 10} | {"classes": CLASSES}


def perturb_script(root: Path, folder: Path, network: dict, settings: dict = ATTACK) -> Script:
    network = TOLD | network
    told = {"network": network, "others": [], "settings": settings}
    params = told | {"image_set": image_set(root), "seed": 1, "code": ""}
    return Script(
        "perturb",
        folder,
        params=SimpleNamespace(**params),
        wildcards=SimpleNamespace(source="net", shard="0000"),
        output=[str(folder / "0000.h5")],
    )


def slow(folder: Path, seconds: float) -> dict:
    (folder / "slow.py").write_text(SLOW)
    return {"architecture": f"{folder}/slow.py:slow", "arguments": {"labels": FCN["labels"], "seconds": seconds}}


# One fault at a time, through the script of `perturb`


def weights(folder: Path, damage) -> dict:
    """Entry of a network whose weight file is damaged."""
    network = build("dag.networks.mini.fcn:fcn", FCN, fold=False)
    path = folder / "weights.pt"
    state = network.state_dict()
    if damage == "nan":
        next(iter(state.values()))[0] = torch.nan
    torch.save(state, path)
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    return {"architecture": "dag.networks.mini.fcn:fcn", "arguments": FCN, "files": {"state_dict": str(path)}}


def half_downloaded(root, folder):
    return weights(folder, "cut"), f"{folder}/weights.pt: cannot be loaded as weights of "


def nan_weights(root, folder):
    return weights(folder, "nan"), "dag.networks.mini.fcn:fcn: weight .* has values that are not finite; delete "


def no_image(root, folder):
    (root / "JPEGImages/000002.jpg").unlink()
    return slow(folder, 0), "JPEGImages/000002.jpg: no such file; check the image id or unpack the data again"


def unknown_class(root, folder):
    path = root / "Annotations/000001.xml"
    path.write_text(re.sub("<name>.*?</name>", "<name>unicorn</name>", path.read_text()))
    return detector(), "000001.xml: 'unicorn' is not a class of the image set; use one of aeroplane, "


def box_outside(root, folder):
    path = root / "Annotations/000001.xml"
    path.write_text(re.sub("<xmax>.*?</xmax>", "<xmax>500</xmax>", path.read_text()))
    return detector(), "000001.xml: box .* is outside the 128 x 96 image; correct the file"


def small_mask(root, folder):
    path = root / "SegmentationClass/000001.png"
    with Image.open(path) as mask:
        mask.resize((64, 48), Image.Resampling.NEAREST).save(path)
    return slow(folder, 0), "000001.png: label map is 64 x 48 and its image 128 x 96; use matching files"


def other_class(root, folder):
    """In the last image, and found before the first is attacked."""
    path = root / "SegmentationClass/000003.png"
    with Image.open(path) as mask:
        mask.putpixel((5, 5), 20)
        mask.save(path)
    return slow(folder, 0), "000003.png: shows tvmonitor, which the network does not know; choose another network"


def detector() -> dict:
    arguments = {"body": "alex", "labels": FCN["labels"], "width": 16}
    return {"architecture": "dag.networks.mini.faster_rcnn:faster_rcnn", "arguments": arguments, "task": "detection"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [half_downloaded, nan_weights, no_image, unknown_class, box_outside, small_mask, other_class]
)
def test_a_fault_is_one_sentence_in_the_log(fault, root, tmp_path):
    network, sentence = fault(root, tmp_path)
    settings = ATTACK | {"nms": 0.9, "limit": 200, "overlap": 0.1, "confidence": 0.1}
    script = perturb_script(root, tmp_path, network, settings)
    assert script.ended() == 1
    error, *rest = [line for line in script.text().splitlines() if line != "seen"]
    assert rest == ([plan.OF_ONE_IMAGE] if fault not in (half_downloaded, nan_weights) else [])
    assert error.startswith("Error: ") and re.search(sentence, error) and "seen" not in script.text()
    assert not (tmp_path / "0000.h5").exists()


def test_a_folder_that_may_not_be_written_to(tmp_path):
    source, results = tmp_path / "a.h5", tmp_path / "results"
    with store.writing(source, "perturbations", ["1"], {"source": "a"}) as shard:
        shard.put("1", np.zeros((3, 2, 2), np.float32), {"perceptibility": 0.0, "largest": 0.0})
    results.mkdir()
    results.chmod(0o555)
    script = Script(
        "combine",
        tmp_path,
        weak=sys.platform == "linux",
        input=[str(source), str(source)],
        output=[str(results / "sum.h5")],
        params=SimpleNamespace(code=""),
    )
    assert script.ended() == 1
    assert re.fullmatch(
        rf"Error: {results}/sum.h5: cannot be written \(Permission denied\); make its folder writable and .*\n",
        script.text(),  # and not that the shard can be given up
    )


# Stopped by a scheduler


@pytest.mark.slow
def test_an_attack_that_is_stopped_names_its_image_and_keeps_what_is_finished(images, tmp_path):
    passes = ATTACK["iterations"] + 1
    script = perturb_script(images, tmp_path, slow(tmp_path, 0.1))
    script.wait_for(passes + 4)
    script.process.send_signal(signal.SIGTERM)
    assert script.ended() != 0
    *_, last = script.text().splitlines()
    assert last == (
        "Stopped by SIGTERM, net was attacking image 000002 (96 x 128 pixels); what is finished is kept: "
        "start again to go on"
    )
    assert not (tmp_path / "0000.h5").exists()
    again = perturb_script(images, tmp_path, slow(tmp_path, 0.1))
    assert again.ended() == 0
    assert again.text().count("seen") == 2 * passes
    assert store.read_header(tmp_path / "0000.h5")["ids"] == IDS


@pytest.mark.slow
def test_an_evaluation_that_is_stopped_names_its_image_and_keeps_what_is_finished(images, tmp_path):
    def predict() -> Script:
        network = TOLD | slow(tmp_path, 0.5)
        params = {
            "folder": str(tmp_path),
            "cells": {"net": ["none"]},
            "networks": {"net": network},
            "code": "",
            "seed": 1,
        }
        return Script(
            "predict",
            tmp_path,
            params=SimpleNamespace(**params, image_set=image_set(images), pixels=["float"]),
            wildcards=SimpleNamespace(shard="0000"),
            output=[str(tmp_path / "cells.json")],
        )

    script = predict()
    script.wait_for(3)
    script.process.send_signal(signal.SIGTERM)
    assert script.ended() != 0
    assert script.text().splitlines()[-1] == (
        "Stopped by SIGTERM, net was seeing image 000003 (96 x 128 pixels) under none; what is finished is kept: "
        "start again to go on"
    )
    assert not (tmp_path / "cells.json").exists()
    again = predict()
    assert again.ended() == 0 and again.text().count("seen") == 1
    (shard,) = cells.read_manifest(tmp_path / "cells.json").values()
    assert store.read_header(shard)["ids"] == IDS


# Memory of the GPU


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_targets_that_do_not_fit_into_the_memory_name_the_image(images, tmp_path):
    network = build(detector()["architecture"], detector()["arguments"])
    network.features = out_of_memory
    settings = {"rules": "algorithm-1", "iterations": 1, "step": 0.5, "nms": 0.9, "limit": 9, "overlap": 0.1}
    with pytest.raises(ValueError, match=r"a.h5: net cannot attack image 000001 \(96 x 128 pixels\): .* memory"):
        perturb.perturb(
            network,
            [(images, IDS[0])],
            tmp_path / "a.h5",
            settings=settings | {"confidence": 0.1},
            seed=1,
            name="net",
            header={},
        )


def test_an_image_that_does_not_fit_into_the_memory_of_a_victim_is_named(tmp_path):
    network = build("dag.networks.mini.fcn:fcn", FCN)
    shown = []

    def body(batch):
        shown.append(batch)
        return out_of_memory() if len(shown) == 2 else original(batch)

    original, network.body = network.body, body
    (cell,) = cells.cells_of(tmp_path, "net", "0000", {"none": None}, ["float"], {})
    pictures = dict.fromkeys("ab", np.zeros((3, *SIZE), np.float32))
    with pytest.raises(ValueError, match=r"0000.h5: net cannot be shown image b \(96 x 128 pixels\): .* memory"):
        predict.predict({"net": network}, pictures.__getitem__, ["a", "b"], [cell])
    # with more memory it goes on after what is done
    assert predict.predict({"net": network}, pictures.__getitem__, ["a", "b"], [cell]) == {"net": 1} and len(shown) == 3
