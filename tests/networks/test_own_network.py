"""The examples of docs/networks.md, run as they are written in a folder outside the project."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from overlays import merge
from test_plan import BASE
from test_workflow import TINY

from dag.data.classes import ClassList
from dag.networks import building
from dag.workflow import configuration

ROOT = Path(__file__).parents[2]


class Example:
    """One section of the document: its files, its commands, its overlay.

    `networks` are those of which rows and columns are computed here, all that needs no other network.
    """

    def __init__(self, title: str, networks: set[str], overlay: str, changes: dict[str, str]):
        section = (ROOT / "docs" / "networks.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
        self.files = dict(re.findall(r"^```\w+\n# (own/\S+)\n(.*?)^```$", section, re.M | re.S))
        (self.commands,) = re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
        self.name, self.overlay = overlay, yaml.safe_load(self.files[overlay])
        (self.network,) = self.overlay["networks"]
        self.networks, self.changes = networks | {self.network}, changes

    def write(self, folder: Path) -> None:
        """Write the files, with fewer steps of training."""
        steps, fewer = next(iter(self.changes.items()))
        for name, text in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text.replace(steps, fewer))

    def tiny(self) -> dict:
        """The overlay that makes the example small."""
        tables = {
            name: {
                "perturbations": [row for row in table["perturbations"] if sources(row) <= self.networks],
                "victims": [victim for victim in table["victims"] if victim in self.networks],
            }
            for name, table in self.overlay["tables"].items()
        }
        # Algorithm 1 leaves alone what is not recognised, and after three steps nothing is
        attacks = {"segmentation": {"rules": "authors"}}
        return merge(TINY, {"shard_size": 3, "attacks": attacks, "tables": tables})


SEGMENTER = Example(
    "Bring your own network",
    {"mini-fr-zf-07"},
    "own/overlay.yaml",
    {"STEPS = 400": "STEPS = 3", 'mode="bilinear"': 'mode="nearest"'},
)
DETECTOR = Example(
    "Bring your own detector",
    {"mini-fr-zf-07"},
    "own/detector.yaml",
    {"STEPS = 600": "STEPS = 3", "> 0.01": "> 0.02"},
)
examples = pytest.mark.parametrize("example", [SEGMENTER, DETECTOR], ids=["segmenter", "detector"])


def sources(row: str) -> set[str]:
    return set(row.removesuffix(".permuted").split("+")) - {"none"}


def run(folder: Path, commands: str) -> str:
    """Run commands in a shell, as a user of the project does; returns what they print."""
    environment = os.environ | {"DAG": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@examples
def test_the_overlay_fits_the_configuration(tmp_path, monkeypatch, example):
    example.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    own = example.network
    assert len(example.files) == 3 and example.name in example.files
    configuration.check(merge(BASE, example.overlay), ROOT / "config/schemas/config.schema.yaml")
    for name, table in example.overlay["tables"].items():
        # the lists of the project go on to be shown; the new network is a row, a part of sums, and a column
        assert set(BASE["tables"][name]["victims"]) | {own} == set(table["victims"])
        rows = table["perturbations"]
        assert own in rows and any(sources(row) > {own} and row.endswith(".permuted") for row in rows)


def test_the_detector_by_hand(tmp_path):
    """The check of the interface passes; with biases by hand, every cell holds a bottle, the third class."""
    code = DETECTOR.files["own/detector.py"] + "\n\ndef bare(count):\n    return Own(count)\n"
    (tmp_path / "bare.py").write_text(code)
    arguments = DETECTOR.overlay["networks"]["own-detector"]["arguments"]
    torch.manual_seed(0)
    classes = ClassList.of(DETECTOR.overlay["classes"]["own-classes"])
    network = building.build(f"{tmp_path}/bare.py:bare", arguments, task="detection", classes=classes)
    image = 255 * torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    boxes, logits = network.features(image)
    assert boxes.shape == (1, 96, 4) and logits.shape == (1, 96, 7)
    proposals = network.propose((boxes, logits), nms=0.9, limit=5)
    rows = logits[0, proposals[0].index]
    assert torch.equal(network.scores((boxes, logits), proposals), rows[:, 1:])
    sure = network.confidence((boxes, logits), proposals)
    np.testing.assert_allclose(sure, rows[:, :1].sigmoid() * rows[:, 1:].softmax(1), rtol=1e-6)
    network.layers[-1].weight.zero_()
    network.layers[-1].bias.copy_(torch.tensor([0.0] * 4 + [9, 0, 0, 9, 0, 0, 0]))
    found = network.detect(image)[0]
    # 16 pixels wide, 8 apart, cut at the border: no two overlap by half
    assert (found.labels == classes.find("bottle")).all() and (found.scores > 0.99).all()
    x, y = range(4, 96, 8), range(4, 64, 8)
    expected = [[max(0, a - 8), max(0, b - 8), min(95, a + 8), min(63, b + 8)] for a in x for b in y]
    assert sorted(found.boxes.tolist()) == sorted(expected)


@pytest.mark.parametrize("files", [{}, {"weights": "./weights.pt"}])
def test_weights_may_be_files_of_ones_own_or_none(tmp_path, files):
    SEGMENTER.write(tmp_path)
    overlay = SEGMENTER.tiny()
    overlay["networks"]["own"] = SEGMENTER.overlay["networks"]["own"] | {"files": files}
    (tmp_path / "weights.pt").touch()
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(overlay))
    shard = "results/tiny/mini-test/perturbations/own/0000.h5"
    text = run(tmp_path, f"snakemake -s $DAG/Snakefile --dry-run {shard} --configfile own.yaml")
    inputs = re.search(r"^rule perturb:\n +input: (.*)$", text, re.M)[1].split(", ")
    assert [file for file in inputs if not file.startswith("resources/mini/")] == ["weights.pt"] * len(files)


def test_a_path_has_a_slash():
    overlay = merge(SEGMENTER.overlay, {"networks": {"own": {"files": {"weights": "weights.pt"}}}})
    with pytest.raises(
        ValueError, match=r"networks.own: file 'weights.pt' is not in downloads; .*, ./weights.pt for one"
    ):
        configuration.check(merge(BASE, overlay), ROOT / "config/schemas/config.schema.yaml")


@pytest.mark.slow
@examples
def test_the_example_is_a_row_and_a_column_of_its_tables(tmp_path, example):
    example.write(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(example.tiny()))
    first, teach, second = example.commands.splitlines()
    tables = " ".join(example.overlay["tables"])
    assert first.startswith("snakemake ") and second.endswith(f" {tables} --configfile {example.name}")
    run(tmp_path, f"{first} --configfile {example.name} tiny.yaml\n{teach}\n{second} tiny.yaml")

    for name in example.overlay["tables"]:
        table = pd.read_csv(tmp_path / "results" / "tiny" / "tables" / f"{name}.csv")
        own = example.network
        assert set(table["victim"]) == set(example.tiny()["tables"][name]["victims"]) and own in set(table["victim"])
        cell = table.set_index(["perturbation", "victim"]).loc[own, own]
        assert cell["perceptibility"] > 0 and cell["white_box"]
        assert cell["column_label"] == example.overlay["networks"][own]["label"]

    # a comment changes nothing, the code the new network alone
    network = tmp_path / example.overlay["networks"][own]["architecture"].partition(":")[0]
    network.write_text("# Mine.\n" + network.read_text())
    assert "Nothing to be done" in run(tmp_path, f"{second} tiny.yaml --dry-run")
    _, (old, new) = example.changes.items()
    assert old in network.read_text()
    network.write_text(network.read_text().replace(old, new))
    text = run(tmp_path, f"{second} tiny.yaml --dry-run")
    assert re.findall(r"output: \S+/perturbations/([^/+]+)/", text) == [own]
