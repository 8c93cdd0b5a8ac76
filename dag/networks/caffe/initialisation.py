"""Initial weights of the trainings by Caffe's recipes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from dag.networks import state_files
from dag.networks.caffe import caffemodel

# Learning rate and decay of a layer's weights, then of its biases, as multiples of those of the solver.
MULTIPLIERS = (1, 1, 2, 0)


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """Modules with weights or statistics of their own, by Caffe's layer names."""
    return {
        path.rpartition(".")[2]: module
        for path, module in network.named_modules()
        if any("." not in key for key in module.state_dict())
    }


def _matching(names: Iterable[str], pattern: str) -> set[str]:
    found = {name for name in names if re.fullmatch(pattern, name)}
    if not found:
        raise ValueError(f"recipe: {pattern!r} matches no layer; the network has {', '.join(names)}")
    return found


def initialise(network: nn.Module, recipe: dict, initial: Path) -> None:
    """Set the initial weights of a network, in place.

    Layers that match a key of `recipe["new"]` get normal random weights of that standard deviation, from torch's
    global generator, and zero biases.  Layers that match a key of `recipe["decimated"]` get a part of the weights of a
    larger layer.  Deconvolutions keep their bilinear interpolation.  All other layers are read from the file.

    Parameters
    ----------
    network : nn.Module
        On the CPU.
    recipe : dict
        `new`; `decimated`, whose values are the name of the larger layer and the side of its kernel; and
        `ignored`, regular expression of the layers of the file to skip.
    initial : Path
        A caffemodel, or the state dict of a network with the same layers (ending .pt).

    Raises
    ------
    ValueError
        If the file cannot be read, a layer is missing, unexpected or of another shape, or a pattern matches no layer.
    """
    found = {name: module for name, module in layers(network).items() if not isinstance(module, nn.ConvTranspose2d)}
    for pattern, deviation in recipe["new"].items():
        for name in sorted(_matching(found, pattern)):
            module = found.pop(name)
            nn.init.normal_(module.weight, 0, deviation) if deviation else nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for pattern, (source, side) in recipe.get("decimated", {}).items():
        for name in sorted(_matching(found, pattern)):
            _decimate(found.pop(name), initial, source, side)
    if initial.suffix == ".pt":
        _inherit(found, initial, recipe.get("ignored"))
    else:
        caffemodel.load(_Inherited(found), initial, ignore=recipe.get("ignored"))


def _decimate(module: nn.Conv2d, path: Path, source: str, side: int) -> None:
    """Subsample the layer `source` of a caffemodel, evenly in filters, channels and kernel positions.

    As DeepLab does with fc6 and fc7 of VGG16 (Chen et al., ICLR 2015, section 3.1).
    """
    blobs = caffemodel.read_blobs(path).get(source)
    if not blobs:
        raise ValueError(f"{path}: layer {source!r} is missing or has no weights; give a caffemodel of VGG16")
    large, bias = (torch.from_numpy(blob.copy()) for blob in blobs)
    outputs, inputs, small, _ = module.weight.shape
    large = large.reshape(bias.numel(), -1, side, side)
    if len(large) < outputs or large.shape[1] < inputs or side < small:
        raise ValueError(
            f"{path}: layer {source!r} of {tuple(large.shape)} cannot be subsampled to {tuple(module.weight.shape)}; "
            "make the network narrower"
        )
    filters, channels, places = len(large) // outputs, large.shape[1] // inputs, max(side - 1, 1) // max(small - 1, 1)
    chosen = large[::filters, ::channels, ::places, ::places]
    with torch.no_grad():
        module.weight.copy_(chosen[:outputs, :inputs, :small, :small])
        module.bias.copy_(bias.flatten()[::filters][:outputs])


class _Inherited(nn.ModuleDict):
    """The layers of a network that are read from a caffemodel."""


def _inherit(found: dict[str, nn.Module], path: Path, ignored: str | None) -> None:
    """Copy the weights of the layers `found` from the state dict of another network."""
    try:
        tensors = state_files.read(path)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as a state dict ({error}); train that network again") from error
    given: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.rpartition(".")
        given.setdefault(layer.rpartition(".")[2], {})[part] = tensor
    for name in given:
        if name not in found and not re.fullmatch(ignored or "", name):
            raise ValueError(f"{path}: layer {name!r} has no place in the network; is this the stage before it?")
    for name, module in found.items():
        if name not in given:
            raise ValueError(f"{path}: layer {name!r} is missing; is this the stage before the network?")
        try:
            module.load_state_dict(given[name])
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{path}: layer {name!r} does not fit: {reason}") from error
