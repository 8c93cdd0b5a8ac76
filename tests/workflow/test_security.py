"""What comes from outside is data: weights, shards and the configuration can neither run anything nor write elsewhere.

Hostile archives are in test_download.py (test_hostile_tar, test_hostile_zip, test_link_in_a_zip, test_hostile_member),
a pickle in a state dict in test_interface.py (test_weight_files_run_no_code), text in HTML and LaTeX in test_claims.py
and test_tables.py.
"""

import contextlib
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from dag.networks import darknet
from dag.networks.caffe import caffemodel, initialisation
from dag.networks.tflite import read_graph
from dag.report import collect as gathered
from dag.workflow import store

ROOT = Path(__file__).parents[2]
# in a shell, in a format of Python, in a path of Snakemake, and in HTML
ODD = """it's "a" $(touch made) `touch made`; touch made #{seed} <b>&amp;"""
# what may be in a path of the configuration; {} and <> are refused there
FILE = ODD.replace("{seed}", "").replace("<b>", "")


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


# Weights

READERS = {
    "caffemodel": caffemodel.read_blobs,
    "weights": darknet.read_weights,
    "cfg": darknet.read_cfg,
    "tflite": read_graph,
}


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("kind", READERS)
def test_a_pickle_under_another_name_is_not_run(tmp_path, kind, form):
    path, made = tmp_path / f"file.{kind}", tmp_path / "made"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Evil(made)))
    else:
        torch.save({"state": Evil(made)}, path)
    if kind == "weights":
        # plain numbers, whatever is in the file
        with contextlib.suppress(ValueError):
            assert darknet.read_weights(path).dtype == np.float32
    else:
        with pytest.raises(ValueError, match=path.name):
            READERS[kind](path)
    assert not made.exists()


def test_a_pickle_among_the_weights_to_begin_with_is_not_run(tmp_path):
    torch.save({"state": Evil(tmp_path / "made")}, tmp_path / "initial.pth")
    with pytest.raises(ValueError, match="initial.pth: "):
        initialisation._inherit({}, tmp_path / "initial.pth", None)
    assert not (tmp_path / "made").exists()


# Shards


def test_odd_strings_in_a_shard_are_strings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    header = {"source": ODD, "network": {"name": ODD, "task": "segmentation"}, "settings": {ODD: [ODD, "\u202e\n"]}}
    with store.writing(tmp_path / "a.h5", "perturbations", ["1"], header) as shard:
        shard.put("1", np.zeros((3, 2, 2), np.float32), {"status": ODD})
    found = store.read_header(tmp_path / "a.h5", "perturbations")
    assert {key: found[key] for key in header} == header
    assert store.read(tmp_path / "a.h5", "1")[1]["status"] == ODD
    # what is no name of a source is no row of a table
    with pytest.raises(ValueError, match="is not the name of a perturbation"):
        gathered.records([tmp_path / "a.h5"], {})
    assert os.listdir(tmp_path) == ["a.h5"]


def test_a_pickle_in_an_attribute_stays_bytes(tmp_path):
    path, bomb = tmp_path / "a.h5", np.void(pickle.dumps(Evil(tmp_path / "made")))
    with store.writing(path, "perturbations", ["1"], {"source": "a"}) as shard:
        shard.put("1", np.zeros((3, 2, 2), np.float32), {"status": "converged"})
    with h5py.File(path, "r+") as file:
        file["1"].attrs["status"] = bomb
    with pytest.raises(ValueError, match="a.h5: "):
        store.read(path, "1")
    with h5py.File(path, "r+") as file:
        file.attrs["header"] = bomb
    with pytest.raises(ValueError, match="a.h5: "):
        store.read_header(path)
    assert not (tmp_path / "made").exists()


# The configuration


def snakemake(folder: Path, overlay: dict, *arguments: str) -> tuple[int, str]:
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    options = ["--configfile", folder / "overlay.yaml", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    options += ["--workflow-profile", ROOT / "profiles/default", "--cores", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *map(str, options), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
    )  # fmt: skip
    return done.returncode, done.stdout


def made(folder: Path) -> list[Path]:
    """What any of the hostile texts would have made."""
    return [path for path in folder.parent.rglob("*made*") if path.name in ("made", "made.bin")]


def network(**entry) -> dict:
    base = {"label": "", "task": "segmentation", "architecture": "dag.networks.mini.fcn:fcn", "files": {}}
    return {"networks": {"net": base | entry}}


@pytest.mark.parametrize(
    ("overlay", "place"),
    [
        ({"experiment": "a; touch made"}, "experiment: 'a; touch made' does not match"),
        ({"experiment": "../made"}, "experiment: "),
        ({"experiment": "made\n"}, "experiment: "),
        ({"networks": {"$(touch made)": network()["networks"]["net"]}}, "networks: "),
        (network(architecture="$(touch made).py:f"), "networks.net.architecture: "),
        ({"image_sets": {"`touch made`": {"parts": [{"root": "a", "list": "b"}], "size": 1}}}, "image_sets: "),
        ({"downloads": {"../../made": {"urls": ["x"]}}}, "downloads: '../../made' does not match"),
        ({"downloads": {"a;touch made": {"urls": ["x"]}}}, "downloads: "),
        ({"tables": {"a; touch made": {}}}, "tables: "),
        ({"variants": {"$(touch made)": {}}}, "variants: "),
        ({"seed": "$(touch made)"}, "seed: "),
        ({"voc": "{__import__('os').system('touch made')}"}, "voc: "),
        ({"voc": "<made>"}, "voc: "),
        ({"given_up": ["$(touch made)/0000"]}, "given_up: "),
    ],
)
def test_names_that_are_more_than_names_are_refused(overlay, place):
    from test_plan import changed, message

    assert message(changed(overlay)).startswith(f"configuration, {place}")


@pytest.mark.slow
def test_texts_of_the_configuration_are_not_run(tmp_path):
    """Paths, addresses and labels may be anything: a dry run, then real rules in a folder with such a name."""
    folder = tmp_path / f"work {FILE}"
    own, voc = tmp_path / f"weights {FILE}", tmp_path / f"voc {FILE}"
    for place in (folder, own, *(voc / year / "ImageSets" / part for year, part in (
        ("VOC2007", "Main"), ("VOC2012", "Main"), ("VOC2012", "Segmentation")
    ))):  # fmt: skip
        place.mkdir(parents=True)
    (voc / "VOC2007/ImageSets/Main/trainval.txt").write_text("000001\n")
    (voc / "VOC2012/ImageSets/Main/trainval.txt").write_text("2008_000001\n")
    (voc / "VOC2012/ImageSets/Segmentation/val.txt").write_text("2008_000001\n$(touch${IFS}made)\n")
    (own / "a.bin").write_bytes(b"bytes")
    overlay = {
        "experiment": "odd",
        "title": ODD,
        "description": ODD,
        "weights": str(own),
        "voc": str(voc),
        "downloads": {
            "a.bin": {"urls": [ODD], "sha256": hashlib.sha256(b"bytes").hexdigest()},
            "b.bin": {"urls": [ODD, f"file://{own}/{ODD}"], "sha256": "0" * 64},
        },
        "image_sets": {"table4-110": {"size": 1, "sha256": None}},
        "networks": {"mini-fcn-alex": {"label": ODD}} | network(files={"state_dict": f"./{FILE}"})["networks"],
        "tables": {"table_mine": {
            "title": ODD, "description": ODD, "layout": "transfer", "image_set": "mini-test",
            "perturbations": ["net"], "victims": ["net", "mini-fcn-alex"],
        }},
        "products": ["table_mine"],
    }  # fmt: skip
    (folder / FILE).write_bytes(b"")
    code, text = snakemake(folder, overlay, "--dry-run", "all")
    assert code == 0, text
    code, text = snakemake(folder, overlay, "resources/checked/a.bin", "resources/image_sets/table4-110.txt")
    assert code == 0, text
    assert (folder / "resources/checked/a.bin").read_bytes() == b"bytes"
    assert (folder / "resources/image_sets/table4-110.txt").read_text() == "$(touch${IFS}made)\n"
    code, text = snakemake(folder, overlay, "resources/checked/b.bin")
    assert code == 1 and "Error: " in text and "b.bin" in text
    assert not made(folder)
    assert json.loads(json.dumps(overlay)) == overlay
