"""One image from Python: the example of docs/attacks.md runs, and agrees with the job of the workflow."""

import re
from pathlib import Path

import numpy as np
import pytest
import test_perturb
import torch
import yaml
from PIL import Image

import dag
from dag.attack.methods import Method, method_of
from dag.attack.single import settings_of
from dag.data import mini, voc
from dag.networks.building import build
from dag.networks.mini.fcn import fcn

ROOT = Path(__file__).parents[2]


def made(seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    image, label_map, *_ = mini.make_image(np.random.default_rng(seed))
    return image, label_map


def test_the_example_of_the_documentation(tmp_path, monkeypatch, capsys):
    example = re.search(r"```python\n(import numpy.*?)```", (ROOT / "docs" / "attacks.md").read_text(), re.S)[1]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    entry = yaml.safe_load((ROOT / "config" / "networks.yaml").read_text())["networks"]["mini-fcn-vgg"]
    Path("resources/weights").mkdir(parents=True)
    torch.save(fcn(**entry["arguments"]).state_dict(), "resources/weights/mini-fcn-vgg.pt")
    image, label_map = made()
    Image.fromarray(image.astype(np.uint8)).save("image.jpg")
    Image.fromarray(np.where(np.isin(label_map, entry["arguments"]["labels"]), label_map, 255).astype(np.uint8)).save(
        "mask.png"
    )
    exec(compile(example, "docs/attacks.md", "exec"), {})
    assert "torch.Size([1, 3, 96, 128])" in capsys.readouterr().out


@pytest.mark.parametrize("attack", ["dag", "cospgd"])
def test_it_is_the_attack_of_the_workflow(tmp_path, attack):
    folder = tmp_path / "voc"
    mini.make_voc(folder, {"Main/test": test_perturb.IDS}, seed=5)
    image_id = test_perturb.IDS[0]
    image, truth = voc.read_image(folder, image_id), voc.read_label_map(folder, image_id)
    settings = settings_of(attack, "segmentation", None if attack == "dag" else 4.0)
    settings |= {"iterations": 3, "start": "zero"}
    network = test_perturb.network("segmentation")
    mine = dag.attack_image(
        network,
        image.transpose(1, 2, 0),
        truth,
        attack,
        eps=None if attack == "dag" else 4.0,
        iterations=3,
        start="zero",
    )
    ((r, known),) = test_perturb.perturbed(
        "segmentation", folder, [image_id], tmp_path / "a.h5", settings=settings
    ).values()
    if attack == "dag":  # the adversarial labels are drawn from another seed
        assert mine.active[0] == known["active"][0]
    else:
        np.testing.assert_allclose(mine.perturbation[0].numpy(), r, rtol=0, atol=1e-4)
        assert abs(r).max() <= 4


def test_a_budget_makes_the_steps():
    assert method_of(settings_of("segpgd", "segmentation", 2)) == Method(
        "segpgd", "all", "sign", budget="linf", eps=2, start="uniform", stop="iterations"
    )
    assert settings_of("segpgd", "segmentation", 2)["step"] == 0.5
    assert settings_of("dag", "detection", 8) | {} == settings_of({"budget": "linf", "eps": 8}, "detection")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": np.zeros((3, 96, 128))}, "image has the shape (3, 96, 128); give RGB as (height, width, 3)"),
        ({"image": np.full((96, 128, 3), -1.0)}, "image has values outside 0..255"),
        ({"truth": np.zeros((9, 9), int)}, "truth has the shape (9, 9), the image (96, 128)"),
        ({"attack": "fgsm2"}, "there is no attack 'fgsm2'; known are dag, "),
        ({"attack": "sea-8"}, "'sea-8' is the worst of several attacks"),
        ({"attack": {"ensemble": ["a"]}}, "ensemble is for the workflow; attack with one network and one attack"),
        ({"attack": {"worst_of": ["pgd-8", "mce-8"]}}, "worst_of is for the workflow; attack with one network"),
        ({"attack": {"eps": 8}}, "eps is the radius of a budget; give both"),
    ],
)
def test_mistakes(changes, says):
    image, label_map = made()
    arguments = {"image": image, "truth": label_map, "attack": "dag"} | changes
    network = build("dag.networks.mini.fcn:fcn", {"body": "alex", "labels": [0, *mini.LABELS], "width": 16})
    with pytest.raises(ValueError, match=re.escape(says)):
        dag.attack_image(network, arguments["image"], arguments["truth"], arguments["attack"])
