"""Building a network from its entry in the configuration."""

import copy

import pytest
import torch
from torch import nn

from dag.networks import interface

FCN = "dag.networks.fcn:fcn"
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
        ("dag.networks.deeplab:deeplab", {"body": "rn101"}),
        ("dag.networks.faster_rcnn:faster_rcnn", {"body": "zf"}),
    ],
)
def test_folded_networks_are_equal_in_double_precision(architecture, arguments):
    plain = noisy(interface.build(architecture, {**arguments, "labels": [0, 1, 2]}, fold=False)).double()
    folded = interface.fold_batch_norm(copy.deepcopy(plain))
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
    network = noisy(interface.build(FCN, ARGUMENTS, fold=False))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    built = interface.build(FCN, ARGUMENTS, {"state_dict": tmp_path / "weights.pt"})
    assert not built.training and not any(parameter.requires_grad for parameter in built.parameters())
    image = torch.full((1, 3, 32, 32), 100.0)
    torch.testing.assert_close(built(image), network(image), rtol=1e-4, atol=1e-4)


def test_an_architecture_in_a_file(tmp_path):
    code = "from dag.networks.fcn import fcn\ndef mine(labels):\n    return fcn('alex', labels)\n"
    (tmp_path / "mine.py").write_text(code)
    assert interface.build(f"{tmp_path}/mine.py:mine", {"labels": [0, 1]}).labels == (0, 1)


@pytest.mark.parametrize(
    "architecture", ["dag.networks.fcn:nothing", "dag.networks.nothing:fcn", "nowhere/file.py:build"]
)
def test_unknown_architectures(architecture):
    with pytest.raises(ValueError, match="cannot be found .*; give package.module:function"):
        interface.build(architecture)


def test_bad_weight_files(tmp_path):
    path = tmp_path / "weights.pt"
    with pytest.raises(ValueError, match="no such weight file"):
        interface.build(FCN, ARGUMENTS, {"state_dict": path})
    path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be loaded as weights of FCN"):
        interface.build(FCN, ARGUMENTS, {"state_dict": path})
    weights = interface.build(FCN, ARGUMENTS, fold=False).state_dict()
    name = next(iter(weights))
    weights[name][0] = float("nan")
    torch.save(weights, path)
    with pytest.raises(ValueError, match=f"weight {name} has values that are not finite"):
        interface.build(FCN, ARGUMENTS, {"state_dict": path})


def test_weight_files_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made.txt"), "w"))

    torch.save({"state": Evil()}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="cannot be loaded"):
        interface.build(FCN, ARGUMENTS, {"state_dict": tmp_path / "weights.pt"})
    assert not (tmp_path / "made.txt").exists()
