"""Building a network from its entry in the configuration."""

import copy
import io
import pickle
import traceback
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from dag.networks import building

FCN = "dag.networks.mini.fcn:fcn"
ARGUMENTS = {"body": "alex", "labels": [0, 1, 2]}


def noisy(network):
    """Statistics as after training: the defaults (mean 0, variance 1) would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in [
                (module.running_mean, -1, 1),
                (module.running_var, 0.2, 2),
                (module.weight, 0.5, 1.5),
                (module.bias, -1, 1),
            ]:
                tensor.data.uniform_(low, high, generator=generator)
    return network


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        (FCN, {"body": "vgg", "skip": True}),
        ("dag.networks.mini.deeplab:deeplab", {"body": "rn101"}),
        ("dag.networks.mini.faster_rcnn:faster_rcnn", {"body": "zf"}),
    ],
)
def test_folded_networks_are_equal_in_double_precision(architecture, arguments):
    plain = noisy(building.build(architecture, {**arguments, "labels": [0, 1, 2]}, fold=False)).double()
    folded = building.fold_batch_norm(copy.deepcopy(plain))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    image = 255 * torch.rand(1, 3, 40, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    outputs = []
    for network in (plain, folded):
        x = image.clone().requires_grad_()
        y = network(x) if network.task == "segmentation" else network.features(x).maps
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        outputs.append((y.detach(), gradient))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10 * float(one.abs().max()))


def test_a_built_network_is_frozen_and_ready(tmp_path):
    network = noisy(building.build(FCN, ARGUMENTS, fold=False))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    built = building.build(FCN, ARGUMENTS, {"state_dict": tmp_path / "weights.pt"})
    assert not built.training and not any(parameter.requires_grad for parameter in built.parameters())
    image = torch.full((1, 3, 32, 32), 100.0)
    torch.testing.assert_close(built(image), network(image), rtol=1e-4, atol=1e-4)


def test_an_architecture_in_a_file(tmp_path):
    code = "from dag.networks.mini.fcn import fcn\ndef mine(labels):\n    return fcn('alex', labels)\n"
    (tmp_path / "mine.py").write_text(code)
    assert building.build(f"{tmp_path}/mine.py:mine", {"labels": [0, 1]}).labels == (0, 1)


@pytest.mark.parametrize(
    "architecture", ["dag.networks.mini.fcn:nothing", "dag.networks.nothing:fcn", "nowhere/file.py:build"]
)
def test_unknown_architectures(architecture):
    with pytest.raises(ValueError, match="cannot be found .*; give package.module:function"):
        building.build(architecture)


def test_bad_weight_files(tmp_path):
    path = tmp_path / "weights.pt"
    with pytest.raises(ValueError, match="no such weight file"):
        building.build(FCN, ARGUMENTS, {"state_dict": path})
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be loaded as weights of FCN"):
        building.build(FCN, ARGUMENTS, {"state_dict": path})
    weights = building.build(FCN, ARGUMENTS, fold=False).state_dict()
    name = next(iter(weights))
    weights[name][0] = float("nan")
    torch.save(weights, path)
    with pytest.raises(ValueError, match=f"weight {name} has values that are not finite"):
        building.build(FCN, ARGUMENTS, {"state_dict": path})


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def weight_file(folder: Path, kind: str) -> Path:
    """A file that is no state dict of the network, in one of several ways."""
    path, old = folder / "weights.pt", dict(_use_new_zipfile_serialization=False)
    state = building.build(FCN, ARGUMENTS, fold=False).state_dict()
    if kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated
            torch.jit.script(torch.nn.Linear(2, 3)).save(str(path))
    elif kind in ("code", "old code"):
        torch.save({"state": Evil(folder / "made.txt")}, path, **(old if kind == "old code" else {}))
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Evil(folder / "made.txt")))
    elif kind == "network":
        torch.save(torch.nn.Linear(2, 3), path)
    elif kind in ("cut", "old and cut"):
        torch.save(state, path, **(old if kind == "old and cut" else {}))
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "keys":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    elif kind == "shapes":
        torch.save({name: tensor.new_zeros((7, *tensor.shape[1:])) for name, tensor in state.items()}, path)
    else:
        path.write_bytes({"empty": b"", "page": b"<!DOCTYPE html>", "archive": zipped(b"hello")}[kind])
    return path


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("script", r"it is a TorchScript program; save network.state_dict\(\) with torch.save instead"),
        ("code", "it holds Python objects besides tensors and is not loaded, because that could run code"),
        ("old code", "it holds Python objects besides tensors and is not loaded"),
        ("pickle", "it holds Python objects besides tensors and is not loaded"),
        ("network", r"it holds Python objects .*; save network.state_dict\(\) instead of the network"),
        ("cut", "it is truncated or damaged; delete it and download or train it again"),
        ("old and cut", "it is truncated or damaged; delete it and download or train it again"),
        ("tensor", "it holds a Tensor and not a state dict"),
        ("keys", "are not in the file, the first is "),
        ("shapes", "have another shape, the first is "),
        ("empty", "it is empty; delete it"),
        ("page", "it was not written by torch.save"),
        ("archive", "it was not written by torch.save"),
    ],
)
def test_a_weight_file_that_cannot_be_loaded_is_one_sentence(tmp_path, kind, match):
    """No code in it is run, and torch's advice to load it all the same is nowhere to be read."""
    path = weight_file(tmp_path, kind)
    with pytest.raises(ValueError, match=f"weights.pt: cannot be loaded as weights of FCN: .*{match}") as error:
        building.build(FCN, ARGUMENTS, {"state_dict": path})
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert "weights_only" not in "".join(traceback.format_exception(error.value)).replace("weights_only=True", "")
    assert not (tmp_path / "made.txt").exists()


def test_weights_of_the_old_format_load(tmp_path):
    network = building.build(FCN, ARGUMENTS, fold=False)
    torch.save(network.state_dict(), tmp_path / "weights.pt", _use_new_zipfile_serialization=False)
    again = building.build(FCN, ARGUMENTS, {"state_dict": tmp_path / "weights.pt"}, fold=False)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_a_file_that_the_network_itself_cannot_load_is_one_sentence(tmp_path):
    (tmp_path / "own.py").write_text("import torch\ndef build(weights):\n    return torch.load(weights)\n")
    with pytest.raises(
        ValueError, match=r"own.py:build: one of its files \(weights.pt\) holds Python objects"
    ) as error:
        building.build(f"{tmp_path}/own.py:build", {}, {"weights": weight_file(tmp_path, "code")})
    assert "weights_only" not in "".join(traceback.format_exception(error.value))


# Networks from outside the project

OWN = """
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from dag.networks.interface import Segmenter


@dataclass(frozen=True)
class Settings:
    gain: float = 1.0


class Own(Segmenter):
    def __init__(self, labels, gain):
        super().__init__()
        self.labels = tuple(labels)
        self.layer = nn.Conv2d(3, len(labels), 1)
        self.settings = Settings(gain)

    def body(self, images):
        return self.settings.gain * self.layer(images / 255)

    def upsample(self, scores, size):
        return scores


def own(labels, gain=1.0):
    return Own(labels, gain)


def wrong(labels):
    return Own(labels, 1).layer


def forgotten(labels):
    Own(labels, 1)
"""


@pytest.fixture
def own(tmp_path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path}/own.py"


def test_a_path_is_taken_from_the_working_directory(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = building.build("own.py:own", {"labels": [0, 3], "gain": 2.0})
    assert network.settings.gain == 2 and not network.training
    # two files of one name are two modules
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "own.py").write_text(
        OWN.replace("gain: float = 1.0", "gain: float = 1.0\n    bias: float = 5")
    )
    assert hasattr(building.build("other/own.py:own", {"labels": [0, 3]}).settings, "bias")
    assert not hasattr(building.build("own.py:own", {"labels": [0, 3]}).settings, "bias")


def test_a_package_that_is_not_installed(own, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "dag_test_package").mkdir()
    (tmp_path / "dag_test_package" / "own.py").write_text(OWN)
    assert building.build("dag_test_package.own:own", {"labels": [0, 3]}).labels == (0, 3)


def test_a_network_from_outside_is_checked_and_one_of_the_project_is_not(own):
    with pytest.raises(ValueError, match=r"own.py:own: its labels are \(3, 4\); a segmenter needs"):
        building.build(f"{own}:own", {"labels": [3, 4]})
    assert building.build(FCN, {"body": "alex", "labels": [3, 4]}).labels == (3, 4)


def test_weights_are_checked_before_the_network_is_shown_an_image(own, tmp_path):
    torch.save({"layer.weight": torch.full((2, 3, 1, 1), torch.inf), "layer.bias": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="weight layer.weight has values that are not finite"):
        building.build(f"{own}:own", {"labels": [0, 4]}, {"state_dict": tmp_path / "w.pt"})


@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        ("own", {}, "own.py:own: missing a required argument: 'labels'; `arguments` and `files`"),
        (
            "own",
            {"labels": [0, 1], "width": 3},
            "own.py:own: got an unexpected keyword argument 'width'; .arguments. and .files.",
        ),
        ("wrong", {"labels": [0, 1]}, "own.py:wrong: its task is neither 'segmentation' nor 'detection'"),
        ("forgotten", {"labels": [0, 1]}, "own.py:forgotten returns a NoneType; return a Segmenter or a Detector"),
    ],
)
def test_mistakes_of_functions_from_outside(own, function, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        building.build(f"{own}:{function}", arguments)


def test_an_error_inside_the_file_is_shown_as_it_is(tmp_path):
    """It is for its author, who needs the line."""
    (tmp_path / "broken.py").write_text("import torch\ntorch.nothing()\n")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        building.build(f"{tmp_path}/broken.py:build")


def test_a_network_under_the_wrong_task_is_refused():
    assert building.build(FCN, ARGUMENTS, task="segmentation").task == "segmentation"
    with pytest.raises(ValueError, match=f"^{FCN} does segmentation and its entry says detection; correct"):
        building.build(FCN, ARGUMENTS, task="detection")
