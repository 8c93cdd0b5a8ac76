"""The experiment on torchvision's networks, from downloads to tables: random weights, images made small inside."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
import test_paper
import torch
import yaml
from overlays import merge
from test_paper import server  # noqa: F401
from test_torchvision_models import DETECTORS, make

CONFIG = test_paper.ROOT / "config" / "torchvision.yaml"


def publish(folder: Path, address: str) -> dict:
    """Weight files of all networks, and overlays of `downloads` and `networks`."""
    downloads, networks = {}, {}
    for name, entry in test_paper.configuration()["networks"].items():
        if not name.startswith("tv-"):
            continue
        builder, file = entry["arguments"]["name"], entry["files"]["state_dict"]
        network = make(builder)
        torch.save(network.state_dict(), folder / file)
        prefix = hashlib.sha256((folder / file).read_bytes()).hexdigest()[:8]
        downloads[file] = {"urls": [f"{address}/{file}"], "sha256_prefix": prefix}
        networks[name] = {"arguments": DETECTORS.get(builder, {"short_side": 96})}
    return {"downloads": downloads, "networks": networks}


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_all_tables_of_all_networks(server, tmp_path):  # noqa: F811
    folder, address = server
    torch.set_num_threads(1)
    test_paper.publish_images(folder)
    overlay = merge(test_paper.SMOKE, publish(folder, address))
    overlay = merge(overlay, {"downloads": test_paper.local_downloads(folder, address)})
    overlay = merge(overlay, {"attacks": {"detection": {"iterations": 1, "confidence": 0.01, "limit": 50}}})
    overlay["products"] = ["table1", "table2", "table3", "table4"]
    work = tmp_path / "work"
    work.mkdir()
    done = test_paper.snakemake(work, "--cores", "2", "all", overlay=overlay, config=CONFIG)
    assert done.returncode == 0, done.stdout[-6000:]
    entries = yaml.safe_load(CONFIG.read_text())["tables"]
    for name in ("table2", "table3", "table4"):
        frame = pd.read_csv(work / "results/torchvision/tables" / f"{name}.csv")
        assert len(frame) == len(entries[name]["perturbations"]) * len(entries[name]["victims"])
        assert frame.score.between(0, 100).all() and "paper" not in frame
    records = json.loads((work / "results/torchvision/scores/table4.json").read_text())
    assert {victim["images"] for victim in records} == {2}
