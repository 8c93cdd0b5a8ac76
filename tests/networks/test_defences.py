"""Defences: what a network behind one sees, against SciPy, PIL and boxes by hand, and what it may be used for."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from test_contract import Good, changed
from test_networks import make
from torch import Tensor

from dag.networks import building, defences
from dag.networks.contract import check_interface
from dag.networks.interface import Detections, Detector, Proposals, Segmenter
from dag.workflow.names import DEFENCES, DEFENDED_SOURCES

ARGUMENTS = {
    "rounding": {},
    "jpeg": {"quality": 75},
    "blur": {"sigma": 1.5},
    "noise": {"sigma": 8.0},
    "resizing": {"least": 0.8, "most": 1.2},
}


class Echo(Segmenter):
    """Scores are the image itself, in grey levels."""

    labels = (0, 7, 12)

    def body(self, images: Tensor) -> Tensor:
        return images

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return scores


class Bright(Detector):
    """Finds the box around all that is brighter than 128."""

    labels = (0, 7)

    def features(self, images: Tensor) -> Tensor:
        return images

    def propose(self, features, *, nms: float, limit: int) -> list[Proposals]:
        return [Proposals(torch.stack([around(image) for image in features[i : i + 1]])) for i in range(len(features))]

    def scores(self, features, proposals: list[Proposals]) -> Tensor:
        (one,) = proposals
        return one.boxes[:, :2]

    def detect(self, images: Tensor) -> list[Detections]:
        return [Detections(around(image)[None], torch.tensor([7]), torch.tensor([0.5])) for image in images]


def around(image: Tensor) -> Tensor:
    y, x = (image[0] > 128).nonzero(as_tuple=True)
    return torch.stack([x.min(), y.min(), x.max(), y.max()]).float()


def images(count: int = 1, shape: tuple[int, int] = (21, 34)) -> Tensor:
    return 255 * torch.rand(count, 3, *shape, generator=torch.Generator().manual_seed(4))


def behind(name: str, network) -> torch.nn.Module:
    return getattr(defences, name)(network, **ARGUMENTS[name]).eval().requires_grad_(False)


def test_every_defence_of_the_configuration_is_there():
    assert set(ARGUMENTS) == set(DEFENCES)
    assert all(DEFENCES[name].format(**ARGUMENTS[name]) for name in DEFENCES)


def test_rounding():
    x = images()
    assert np.array_equal(behind("rounding", Echo())(x), np.rint(x.numpy()))


def test_blur_is_a_gaussian_filter():
    x = images(2)
    expected = gaussian_filter(x.double().numpy(), (0, 0, 1.5, 1.5), mode="nearest", truncate=4)
    np.testing.assert_allclose(behind("blur", Echo())(x), expected, rtol=0, atol=1e-3)
    # a reach beyond the image
    small = images(1, (3, 4))
    expected = gaussian_filter(small.double().numpy(), (0, 0, 4, 4), mode="nearest", truncate=4)
    np.testing.assert_allclose(defences.blur(Echo(), 4)(small), expected, rtol=0, atol=1e-3)


def test_jpeg_is_the_file():
    x = images(2, (16, 24))
    seen = behind("jpeg", Echo())(x)
    for one, image in zip(seen, x, strict=True):
        file = io.BytesIO()
        pixels = image.numpy().round().astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(file, "JPEG", quality=75, subsampling=2)
        assert np.array_equal(one.numpy().transpose(1, 2, 0), np.asarray(Image.open(file)))


def test_noise_has_its_size_and_stays_in_range():
    x = torch.full((1, 3, 200, 200), 100.0)
    torch.manual_seed(1)
    network = behind("noise", Echo())
    first, second = network(x) - x, network(x) - x
    # 120 000 values: the standard error of their deviation is 8 / sqrt(240 000) = 0.016
    assert abs(float(first.std()) - 8) < 0.1 and abs(float(first.mean())) < 0.15
    assert abs(float((first * second).mean())) < 1
    assert network(images()).min() >= 0 and network(images()).max() <= 255


def test_resizing_brings_scores_back():
    x = torch.full((1, 3, 21, 34), 50.0)
    network = defences.resizing(Echo(), 0.5, 2)
    torch.manual_seed(0)
    for _ in range(5):
        seen = network(x)
        assert seen.shape == x.shape and torch.allclose(seen, x)
    ramp = torch.arange(40.0).expand(1, 3, 30, 40)
    # a linear ramp is what it was, but for the pixels at the border
    assert torch.allclose(defences.resizing(Echo(), 2, 2)(ramp)[..., 1:-1], ramp[..., 1:-1], atol=1e-4)


@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_resizing_brings_boxes_back(factor):
    x = torch.zeros(1, 3, 24, 36)
    x[..., 8:20, 4:24] = 255  # whole pixels at half the size, too
    network = defences.resizing(Bright(), factor, factor)
    (found,) = network.detect(x)
    # at three times the size bilinear pixels next to the border exceed 128, too; none farther away does
    assert (found.boxes - torch.tensor([[4.0, 8, 23, 19]])).abs().max() <= 1 / factor + 1e-6
    features = network.features(x)
    (proposals,) = network.propose(features, nms=0.9, limit=9)
    assert torch.allclose(proposals.boxes, found.boxes)
    # and the network is asked for the score of its own box
    inner = torch.tensor([[around(features[0][0])[0], around(features[0][0])[1]]])
    assert torch.allclose(network.scores(features, [proposals]), inner, atol=1e-4)


@pytest.mark.parametrize("name", DEFENCES)
@pytest.mark.parametrize("inner", ["fcn-vgg", "fr-zf", "r-fcn-rn50"])
def test_a_victim_needs_no_gradient_and_a_source_does(name, inner):
    network = behind(name, make(inner))
    check_interface(network, name, source=False)
    if name in DEFENDED_SOURCES:
        check_interface(network, name)
        return
    with pytest.raises(ValueError, match="has no gradient to the images, which a source needs|is random, so it is no"):
        check_interface(network, name)


def test_defences_stack_and_remember_chance():
    assert defences.blur(behind("noise", changed(Good)), 1).stochastic
    assert not behind("blur", behind("jpeg", changed(Good))).stochastic


def test_random_numbers_have_to_be_torchs():
    rng = np.random.default_rng(0)

    def noisy(x: Tensor) -> Tensor:
        return x + torch.from_numpy(rng.normal(0, 50, x.shape)).to(x)

    network = defences.defended(changed(Good), noisy, stochastic=True).eval()
    with pytest.raises(ValueError, match=r"differs from pass to pass with the same torch.manual_seed\(\); draw random"):
        check_interface(network, "mine", source=False)
    network = defences.defended(changed(Good), noisy).eval()
    with pytest.raises(ValueError, match=r"must be off in evaluation mode, or the network says `stochastic = True`"):
        check_interface(network, "mine", source=False)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("jpeg", {"quality": 0}, "the defence jpeg has the quality 0; give one from 1 to 100"),
        ("blur", {"sigma": 0}, "the defence blur has sigma = 0; give a number above 0"),
        (
            "resizing",
            {"least": 2, "most": 1},
            "the defence resizing has factors from 2 to 1; give the smaller one first",
        ),
    ],
)
def test_arguments_out_of_range(name, arguments, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        getattr(defences, name)(Echo(), **arguments)


# Built as a job does

OWN = """
import torch
from dag.networks.defences import defended
from dag.networks.interface import Segmenter

class Echo(Segmenter):
    labels = (0, 7, 12)
    def body(self, images):
        return images
    def upsample(self, scores, size):
        return scores

def shifted(network, by, weights):
    size = torch.load(weights, weights_only=True)
    return defended(network, lambda images: images * size + by)
"""


@pytest.fixture
def parameters(tmp_path, monkeypatch) -> dict:
    (tmp_path / "own.py").write_text(OWN)
    torch.save(torch.tensor(2.0), tmp_path / "factor.pt")
    monkeypatch.chdir(tmp_path)
    own = {"name": "d", "function": "own.py:shifted", "arguments": {"by": 3}}
    rounded = {"name": "r", "function": "dag.networks.defences:rounding", "arguments": {}}
    return {
        "name": "r",
        "task": "segmentation",
        "architecture": "own.py:Echo",
        "arguments": {},
        "files": {"d:weights": "factor.pt"},
        "classes": {"names": ["background", *(f"c{label}" for label in range(1, 13))], "background": "background"},
        "defences": [own, rounded],
    }


def test_a_defence_of_ones_own_with_a_file(parameters):
    x = images()
    seen = building.build_told(parameters, source=False)(x)
    assert torch.equal(seen, 2 * x.round() + 3)  # rounded first: the last of the list is the outermost
    with pytest.raises(ValueError, match="^r: network.images. has no gradient to the images, which a source needs"):
        building.build_told(parameters, source=True)
    parameters["defences"].pop()
    assert torch.equal(building.build_told(parameters, source=True)(x), 2 * x + 3)


def test_the_example_of_the_document(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    (tmp_path / "defence.py").write_text(re.search(r"```python\n(from dag.networks.defences.*?)```", text, re.S)[1])
    quantised = building.function_of(f"{tmp_path}/defence.py:quantised")
    x = torch.tensor([0.0, 60, 70, 127, 128, 255]).expand(1, 3, 1, 6)
    # steps of 85
    assert quantised(Echo(), levels=4)(x)[0, 0, 0].tolist() == [0, 85, 85, 85, 170, 255]
    network = quantised(changed(Good), levels=4).eval()
    check_interface(network, "quantised", source=False)
    with pytest.raises(ValueError, match="has no gradient to the images"):
        check_interface(network, "quantised")


def test_mistakes_in_a_defence(parameters):
    parameters["files"] = {}
    with pytest.raises(ValueError, match="own.py:shifted: missing a required argument: 'weights'; `arguments` and"):
        building.build_told(parameters, source=False)
    parameters["files"] = {"d:weights": "gone.pt"}
    with pytest.raises(ValueError, match="^gone.pt: no such weight file"):
        building.build_told(parameters, source=False)
