"""The example of docs/networks.md, run as it is written in a folder outside the project."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from overlays import merge
from test_plan import BASE
from test_workflow import TINY

from dag.workflow import configuration

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "networks.md").read_text().partition("## Bring your own network\n")[2].partition("\n## ")[0]
FILES = dict(re.findall(r"^```\w+\n# (own/\S+)\n(.*?)^```$", SECTION, re.M | re.S))
(COMMANDS,) = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.M | re.S)
OVERLAY = yaml.safe_load(FILES["own/overlay.yaml"])

# What of the two tables is computed here: all that needs no other network than these.
NETWORKS = {"own", "mini-fr-zf-07"}


def tiny() -> dict:
    """The overlay that makes the example small."""
    tables = {
        name: {
            "perturbations": [row for row in table["perturbations"] if sources(row) <= NETWORKS],
            "victims": [victim for victim in table["victims"] if victim in NETWORKS],
        }
        for name, table in OVERLAY["tables"].items()
    }
    # Algorithm 1 leaves alone what is not recognised, and after three steps nothing is
    attacks = {"segmentation": {"rules": "authors"}}
    return merge(TINY, {"shard_size": 3, "attacks": attacks, "tables": tables})


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


def written(folder: Path) -> None:
    """The files of the example, in a folder."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text.replace("STEPS = 400", "STEPS = 3"))


def test_the_overlay_fits_the_configuration(tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert set(FILES) == {"own/network.py", "own/teach.py", "own/overlay.yaml"}
    configuration.check(merge(BASE, OVERLAY), ROOT / "config/schemas/config.schema.yaml")
    for name, table in OVERLAY["tables"].items():
        # the lists of the project go on to be shown; the new network is a row, a part of sums, and a column
        assert set(BASE["tables"][name]["victims"]) | {"own"} == set(table["victims"])
        rows = table["perturbations"]
        assert "own" in rows and any(sources(row) > {"own"} and row.endswith(".permuted") for row in rows)


@pytest.mark.parametrize("files", [{}, {"weights": "./weights.pt"}])
def test_weights_may_be_files_of_ones_own_or_none(tmp_path, files):
    written(tmp_path)
    overlay = tiny()
    overlay["networks"]["own"] = OVERLAY["networks"]["own"] | {"files": files}
    (tmp_path / "weights.pt").touch()
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(overlay))
    shard = "results/tiny/mini-test/perturbations/own/0000.h5"
    text = run(tmp_path, f"snakemake -s $DAG/Snakefile --dry-run {shard} --configfile own.yaml")
    inputs = re.search(r"^rule perturb:\n +input: (.*)$", text, re.M)[1].split(", ")
    assert [file for file in inputs if not file.startswith("resources/mini/")] == ["weights.pt"] * len(files)


def test_a_path_has_a_slash():
    overlay = merge(OVERLAY, {"networks": {"own": {"files": {"weights": "weights.pt"}}}})
    with pytest.raises(
        ValueError, match=r"networks.own: file 'weights.pt' is not in downloads; .*, ./weights.pt for one"
    ):
        configuration.check(merge(BASE, overlay), ROOT / "config/schemas/config.schema.yaml")


@pytest.mark.slow
def test_the_example_is_a_row_and_a_column_of_both_tables(tmp_path):
    written(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny()))
    first, teach, second = COMMANDS.splitlines()
    assert first.startswith("snakemake ") and second.endswith(" table3 table4 --configfile own/overlay.yaml")
    run(tmp_path, f"{first} --configfile own/overlay.yaml tiny.yaml\n{teach}\n{second} tiny.yaml")

    for name in ("table3", "table4"):
        table = pd.read_csv(tmp_path / "results" / "tiny" / "tables" / f"{name}.csv")
        assert set(table["victim"]) == set(tiny()["tables"][name]["victims"]) and "own" in set(table["victim"])
        cell = table.set_index(["perturbation", "victim"]).loc["own", "own"]
        assert cell["perceptibility"] > 0 and cell["white_box"] and cell["column_label"] == "Own"

    # a comment changes nothing, the code the new network alone
    network = tmp_path / "own" / "network.py"
    network.write_text("# Mine.\n" + network.read_text())
    assert "Nothing to be done" in run(tmp_path, f"{second} tiny.yaml --dry-run")
    network.write_text(network.read_text().replace('mode="bilinear"', 'mode="nearest"'))
    text = run(tmp_path, f"{second} tiny.yaml --dry-run")
    assert re.findall(r"output: \S+/perturbations/([^/+]+)/", text) == ["own"]
