"""What made the results is gathered from the shards, truthfully and the same every time."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import dag
from dag.evaluate import cells
from dag.report.provenance import PACKAGES, checkout, provenance
from dag.workflow import digests, store

ROOT = Path(__file__).parents[2]
NETWORK = {"name": "net", "task": "segmentation", "architecture": "a:b", "arguments": {}, "code": "n"}


def header(shard: str, **more) -> dict:
    made_by = {"network": NETWORK, "weights": {"state_dict": "w"}, "code": "c"}
    contents = {"image": f"bytes {shard}"}
    return (
        made_by
        | {"image_set": {"name": "set", "size": 3, "shard_size": 2}, "contents": contents, "shard": shard}
        | more
    )


def write(path: Path, kind: str, ids: list[str], head: dict) -> str:
    """A shard of zeros; returns its key."""
    with store.writing(path, kind, ids, head) as shard:
        for image_id in ids:
            shard.put(image_id, np.zeros((2, 2), np.uint8), {"perceptibility": 0.0, "largest": 0.0})
    return store.key(head)


@pytest.fixture
def results(tmp_path):
    """Two shards of a source and the cells of a table on them: paths, and keys by what they are of."""
    keys = {"source": [], "cells": []}
    sources, manifests = [], []
    for shard, ids in {"0000": ["b", "a"], "0001": ["c"]}.items():
        source = tmp_path / "perturbations" / f"{shard}.h5"
        keys["source"].append(write(source, "perturbations", ids, header(shard, source="net@soft")))
        sources.append(source)
        wanted = cells.cells_of(tmp_path, "net", shard, {"none": None, "net@soft": source}, ["float"], header(shard))
        keys["cells"] += [write(cell.path, "predictions", ids, cell.header) for cell in wanted]
        manifests.append(tmp_path / f"{shard}.json")
        cells.write_manifest(manifests[-1], wanted)
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n")
    return sources, {"table": {"manifests": manifests, "files": [table]}}, keys


def test_what_is_gathered(results):
    sources, products, keys = results
    found = provenance({"experiment": "e", "seed": 7}, "digest", sources, products)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["experiment"] == "e" and found["configuration"] == {"experiment": "e", "seed": 7}
    assert found["project"]["version"] == dag.__version__ and found["project"]["code"] == "digest"
    assert found["networks"] == {"net": NETWORK | {"weights": {"state_dict": "w"}}}
    ids = hashlib.sha256(b"a\nb\nc\n").hexdigest()
    contents = store.key(["bytes 0000", "bytes 0001"])
    assert found["image_sets"] == {"set": {"images": 3, "sha256": ids, "contents": contents}}
    attack, predictions = found["shards"]
    assert attack == {
        "kind": "perturbations", "of": "net@soft", "image_set": "set", "shards": 2,
        "keys": store.key(sorted(keys["source"])), "code": ["c"], "versions": [store.versions()],
    }  # fmt: skip
    assert (predictions["of"], predictions["shards"]) == ("net", 4)
    table = found["products"]["table"]
    assert table["cells"] == store.key(sorted(keys["cells"])) == predictions["keys"]
    assert table["files"] == {"table.csv": hashlib.sha256(b"a,b\n1,2\n").hexdigest()}
    assert set(found["packages"]) == {"python", *PACKAGES}


def test_it_is_the_same_every_time_and_in_any_order_of_shards(results):
    sources, products, _ = results
    first = provenance({"experiment": "e"}, "digest", sources, products)
    assert json.dumps(provenance({"experiment": "e"}, "digest", sources, products)) == json.dumps(first)
    products["table"]["manifests"].reverse()
    assert provenance({"experiment": "e"}, "digest", sources[::-1], products) == first


def test_two_tables_that_share_a_cell_count_it_once(results):
    sources, products, _ = results
    both = products | {"other": products["table"]}
    found = provenance({"experiment": "e"}, "digest", sources, both)
    assert found["products"]["other"] == found["products"]["table"]
    assert [entry["shards"] for entry in found["shards"]] == [2, 4]


def test_shaped_examples_are_on_record(results, tmp_path):
    """Their network and the images that they start from, the names of their arrays aside."""
    sources, products, _ = results
    path = tmp_path / "figure.h5"
    key = write(path, "shapes", ["d.circle.image"], header("", images=["d"]))
    found = provenance(
        {"experiment": "e"}, "digest", sources, products | {"f": {"manifests": [], "files": [], "shapes": [path]}}
    )
    (entry,) = [entry for entry in found["shards"] if entry["kind"] == "shapes"]
    assert (entry["of"], entry["shards"], entry["keys"]) == ("net", 1, store.key([key]))
    assert found["image_sets"]["set"].items() >= {
        "images": 4, "sha256": hashlib.sha256(b"a\nb\nc\nd\n").hexdigest()
    }.items()  # fmt: skip


def test_shards_of_two_networks_of_one_name_are_refused(results, tmp_path):
    sources, products, _ = results
    other = tmp_path / "perturbations" / "0002.h5"
    write(other, "perturbations", ["d"], header("0002", source="net", weights={"state_dict": "x"}))
    with pytest.raises(ValueError, match=r"0002.h5: made by another network net, or with other weights, than"):
        provenance({"experiment": "e"}, "digest", [*sources, other], products)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git on this machine: no commit is found out")
def test_the_commit_of_a_checkout(tmp_path):
    def git(*arguments):
        command = ["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x", "-c", "commit.gpgsign=false"]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    unknown = {"commit": None, "clean": None}
    (tmp_path / "dag").mkdir()
    for name in ("Snakefile", "dag/a.py", "README"):
        (tmp_path / name).write_text("")
    assert checkout(tmp_path) == unknown
    git("init", "--quiet")
    assert checkout(tmp_path) == unknown
    # inside the repository of something else
    git("add", "README")
    git("commit", "--quiet", "--message", "x")
    assert checkout(tmp_path) == unknown
    git("add", ".")
    git("commit", "--quiet", "--message", "y")
    clean = {"commit": git("rev-parse", "HEAD"), "clean": True}
    assert checkout(tmp_path) == clean
    (tmp_path / "README").write_text("text")
    (tmp_path / "mine.yaml").write_text("")
    assert checkout(tmp_path) == clean
    (tmp_path / "dag" / "b.py").write_text("")
    assert checkout(tmp_path) == clean | {"clean": False}


def test_without_git_the_commit_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout(ROOT) == {"commit": None, "clean": None}


def test_the_digest_of_the_package_is_that_of_all_its_modules(tmp_path):
    shutil.copytree(ROOT / "dag", tmp_path / "dag", ignore=shutil.ignore_patterns("__pycache__"))
    before = digests.package_digest(tmp_path)
    file = tmp_path / "dag" / "networks" / "mini" / "rfcn.py"
    file.write_text(file.read_text() + "\n# a comment\n")
    digests.outline.cache_clear()
    assert digests.package_digest(tmp_path) == before
    file.write_text(file.read_text() + "\nnew = 1\n")
    digests.outline.cache_clear()
    assert digests.package_digest(tmp_path) != before
