"""The adapter to adv-lib: its attacks run through the interface of own attacks, on both tasks."""

import importlib.util
import re
from importlib import metadata

import numpy as np
import pytest
import test_perturb
import torch
from test_perturb import root  # noqa: F401

from dag.attack import adv_lib
from dag.attack.adv_lib import attack
from dag.attack.engine import AttackError, Problem
from dag.attack.methods import method_of
from dag.attack.own import own_attacks

installed = pytest.mark.skipif(
    importlib.util.find_spec("adv_lib") is None, reason="adv-lib is not installed, see docs/attacks.md: not compared"
)
VERSION = metadata.version("adv-lib") if importlib.util.find_spec("adv_lib") else "0.2.8"


def settings(name: str, **arguments) -> dict:
    return {
        "function": "dag.attack.adv_lib:attack",
        "arguments": {"name": name, "version": VERSION} | arguments,
        "targets": "all",
    }


# Four targets of an image of 4 x 4 pixels, each the mean of a quarter minus 100 plus a height: column 0 where that is
# positive, column 1 where it is not.  So the change in the maximum norm that turns a target is its height.
HEIGHTS = torch.tensor([10.0, 20.0, 30.0, 40.0])


def quarters(x, problems):
    means = torch.stack([part.mean((1, 2, 3)) for half in x.chunk(2, 2) for part in half.chunk(2, 3)], 1)[0]
    u = means - 100 + HEIGHTS
    return [torch.stack([u, -u, torch.full_like(u, -300)], 1)]


def run(name: str, **arguments):
    labels = torch.zeros(4, dtype=torch.int64)
    one = Problem(torch.full((3, 4, 4), 100.0), labels, labels + 1)
    changes = settings(name, **arguments)
    ((_, found),) = own_attacks(None, [one], quarters, changes, method_of(changes))
    return found


def turned(found) -> int:
    """Targets that are wrong, or that rounding alone keeps right."""
    return int((quarters(100 + found.perturbation, None)[0][:, 0] < 1e-3).sum())


@installed
def test_alma_prox_finds_the_smallest_change():
    found = run("alma_prox", num_steps=1000, lr_init=0.003)
    assert found.active[0] == 4 and turned(found) == 4
    assert 40 - 1e-3 < float(found.perturbation.abs().max()) < 1.1 * 40
    assert float((100 + found.perturbation).min()) >= 0


@installed
def test_a_share_of_the_targets_is_enough():
    found = run("alma_prox", num_steps=500, adv_threshold=0.75)
    assert turned(found) == 3
    assert 30 - 1e-3 < float(found.perturbation.abs().max()) < 40


@installed
@pytest.mark.parametrize("name", adv_lib.NAMES)
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_every_attack_runs_on_both_tasks(root, tmp_path, task, name):  # noqa: F811
    base = test_perturb.SEGMENTATION if task == "segmentation" else test_perturb.DETECTION
    steps = {"max_iter": 40} if name == "dag" else {"num_steps": 40}
    steps |= {"norm": float("inf")} if name == "pdpgd" else {}
    changed = base | settings(name, adv_threshold=0.5, **steps)
    ids = test_perturb.IDS[:2]
    found = test_perturb.perturbed(task, root, ids, tmp_path / "a.h5", settings=changed)
    alone = test_perturb.perturbed(task, root, ids[1:], tmp_path / "b.h5", settings=changed)
    assert np.array_equal(alone[ids[1]][0], found[ids[1]][0])
    for image_id, (r, known) in found.items():
        perturbed = test_perturb.voc.read_image(root, image_id) + r
        assert perturbed.min() >= -1e-4 and perturbed.max() <= 255 + 1e-4
        # the package returns the best that it has seen, the image as it is if nothing was better
        assert 0 < known["targets"] >= known["active"][0] >= known["active"][1]


@installed
def test_what_the_configuration_gets_wrong():
    with pytest.raises(AttackError, match="adv-lib has no attack 'ddn' on segmentation; choose from alma_prox, asma"):
        run("ddn")
    with pytest.raises(
        AttackError, match=re.escape(f"adv-lib {VERSION} is installed, `version` of the arguments says 9")
    ):
        run("asma", version="9")
    with pytest.raises(AttackError, match="unexpected keyword argument 'steps'"):
        run("asma", steps=3)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^adv-lib is not installed; run pip install --no-deps adv-lib==0.2.8$"):
        attack(None, torch.zeros(1, 3, 2, 2), None, torch.zeros(1), name="asma", version="0.2.8")
