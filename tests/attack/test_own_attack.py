"""An attack of a user's own: the example of docs/attacks.md runs as it stands there, and mistakes are named."""

import re
from pathlib import Path

import numpy as np
import pytest
import test_perturb
import torch

from dag.attack import perturb
from dag.attack.engine import AttackError, Problem
from dag.attack.methods import method_of
from dag.attack.own import own_attacks
from dag.data import mini

ROOT = Path(__file__).parents[2]
IDS = test_perturb.IDS


def example() -> str:
    """The function that docs/attacks.md shows."""
    text = (ROOT / "docs" / "attacks.md").read_text()
    return re.search(r"```python\n(import torch\n.*?)```", text, re.S)[1]


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "attack.py").write_text(example())
    monkeypatch.chdir(tmp_path)
    return tmp_path


SETTINGS = {
    "function": "own/attack.py:one_step",
    "arguments": {"eps": 8.0},
    "targets": "all",
    "budget": "linf",
    "eps": 8,
}


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_the_example_is_one_step_of_the_built_in_attack(own, tmp_path, task):
    root = tmp_path / "voc"
    mini.make_voc(root, {"Main/test": IDS}, seed=5)
    base = test_perturb.SEGMENTATION if task == "segmentation" else test_perturb.DETECTION
    mine = test_perturb.perturbed(task, root, IDS, tmp_path / "mine.h5", settings=base | SETTINGS)
    built_in = {"objective": "ce", "targets": "all", "steps": "sign", "budget": "linf", "eps": 8, "stop": "iterations"}
    settings = base | built_in | {"iterations": 1, "step": 8}
    theirs = test_perturb.perturbed(task, root, IDS, tmp_path / "theirs.h5", settings=settings)
    for image_id, (r, known) in mine.items():
        other, about = theirs[image_id]
        # signs of gradients that vanish up to rounding may differ
        assert (r != other).mean() < 1e-3
        assert abs(int(known["active"][-1]) - int(about["active"][-1])) <= 1e-3 * max(1, known["targets"])


def linear(x, problems):
    return [one.mean(0).flatten()[:, None] * torch.tensor([1.0, -1.0]) for one in x]


@pytest.mark.parametrize(
    ("body", "settings", "says"),
    [
        ("return x[0]", {}, "returned (3, 2, 2); return a tensor r of the shape (1, 3, 2, 2)"),
        ("return x.numpy()", {}, "returned ndarray; return a tensor r of the shape"),
        ("return x * float('nan')", {}, "returned values that are not finite"),
        ("return 0 * x + 9", {"budget": "linf", "eps": 8}, "of linf norm 9, above the budget eps = 8; project it"),
        ("return 0 * x + 3", {"budget": "l2", "eps": 10}, "of l2 norm 10.39, above the budget eps = 10"),
        ("return x / undefined", {}, "f failed on the image: NameError: name 'undefined' is not defined"),
    ],
)
def test_what_an_attack_must_not_do(tmp_path, body, settings, says):
    (tmp_path / "a.py").write_text(f"def f(network, x, scores, labels):\n    {body}\n")
    settings = {"function": f"{tmp_path}/a.py:f"} | settings
    one = Problem(torch.full((3, 2, 2), 100.0), torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=re.escape(says)) as found:
        list(own_attacks(None, [one], linear, settings, method_of(settings)))
    assert (found.type is AttackError) is ("undefined" not in says)  # what fails is not a matter of one image


@pytest.mark.parametrize(
    ("budget", "eps", "body"),
    [
        ("linf", 2.1, "0 * x + 2.1"),  # above 2.1 in float32
        ("linf", 8, "255 * ((x / 255 + 8 / 255) - x / 255)"),
        ("l2", 10.0, "0 * x + 10.0001 / 12**0.5"),
    ],
)
def test_what_rounding_adds_to_a_budget_is_cut(tmp_path, budget, eps, body):
    (tmp_path / "a.py").write_text(f"def f(network, x, scores, labels):\n    return {body}\n")
    settings = {"function": f"{tmp_path}/a.py:f", "budget": budget, "eps": eps}
    one = Problem(torch.full((3, 2, 2), 101.0), torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64))
    ((_, found),) = own_attacks(None, [one], linear, settings, method_of(settings))
    r = found.perturbation.double()
    size = float(r.abs().max() if budget == "linf" else r.norm())
    assert eps - 2e-5 <= size <= eps


def test_targets_are_counted_before_and_after(tmp_path):
    (tmp_path / "a.py").write_text(
        "def f(network, x, scores, labels):\n    r = -2 * x\n    r[..., 0, 0] = 0\n    return r\n"
    )
    settings = {"function": f"{tmp_path}/a.py:f"}
    one = Problem(torch.full((3, 2, 2), 100.0), torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64))
    none = Problem(one.image, one.labels - 1, one.adversarial)
    ((_, found), (_, nothing)) = own_attacks(None, [one, none], linear, settings, method_of(settings))
    assert found.active == [4, 1] and found.status == "iteration limit" and found.iterations == 1
    assert nothing.status == "no targets" and not nothing.perturbation.any()


def test_perturbations_of_others_are_kept_and_counted(tmp_path):
    image, labels = torch.full((3, 2, 2), 100.0), torch.zeros(4, dtype=torch.int64)
    r = np.full((3, 2, 2), 1.5, np.float32)
    r[:, 0, 0] = -300
    np.save(tmp_path / "a.npy", r)
    np.save(tmp_path / "b.npy", r)
    one, none = Problem(image, labels, labels + 1, name="a"), Problem(image, labels - 1, labels, name="b")
    settings = {"perturbation": str(tmp_path), "unclipped": True}
    ((_, found), (_, nothing)) = own_attacks(None, [one, none], linear, settings, method_of(settings))
    # the score of column 0 is the mean grey level, that of column 1 its negative: one pixel turns
    assert found.active == [4, 3] and np.array_equal(found.perturbation[0], r)
    assert nothing.status == "no targets" and np.array_equal(nothing.perturbation[0], r)
    for changes, says in (
        ({"unclipped": False}, "a: .*a.npy: image . r reaches from -200 to 101.5, beyond 0..255"),
        ({"budget": "linf", "eps": 8}, "a: .* returned a perturbation of linf norm 300, above the budget eps = 8"),
    ):
        changed = settings | changes
        with pytest.raises(AttackError, match=says):
            list(own_attacks(None, [one], linear, changed, method_of(changed)))


def test_random_numbers_are_those_of_the_image(own, tmp_path):
    """Whatever shard and order."""
    (own / "own" / "attack.py").write_text(
        "import torch\ndef f(network, x, scores, labels):\n    return torch.rand(x.shape)\n"
    )
    root, settings = tmp_path / "voc", test_perturb.SEGMENTATION | {"function": "own/attack.py:f", "targets": "all"}
    mini.make_voc(root, {"Main/test": IDS}, seed=5)
    both = test_perturb.perturbed("segmentation", root, IDS[:2], tmp_path / "both.h5", settings=settings)
    alone = test_perturb.perturbed("segmentation", root, IDS[1:2], tmp_path / "alone.h5", settings=settings)
    other = test_perturb.perturbed("segmentation", root, IDS[1:2], tmp_path / "o.h5", settings=settings, seed=1)
    assert np.array_equal(alone[IDS[1]][0], both[IDS[1]][0])
    assert not np.array_equal(both[IDS[0]][0], both[IDS[1]][0]) and not np.array_equal(
        other[IDS[1]][0], both[IDS[1]][0]
    )


def test_a_function_that_is_not_there():
    with pytest.raises(ValueError, match="cannot be found"):
        list(own_attacks(None, [], linear, {"function": "nowhere.py:f"}, method_of({})))
    assert perturb.own_attacks is own_attacks
