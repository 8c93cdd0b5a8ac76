"""Build networks: call the function, load and check the weights, rewrite the network for speed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dag.data.classes import VOC, ClassList
from dag.networks import state_files
from dag.networks.contract import check_interface
from dag.networks.interface import Network
from dag.networks.layers.convolutions import lean


def build(
    architecture: str,
    arguments: dict | None = None,
    files: dict | None = None,
    fold: bool = True,
    task: str | None = None,
    classes: ClassList = VOC,
    source: bool = True,
) -> Network:
    """Build a network in evaluation mode, with frozen, finite weights.

    Parameters
    ----------
    architecture : str
        "package.module:function" or "path/to/file.py:function", the path absolute or relative to the working
        directory; the function returns a `Network`.  A network from outside the project is checked, see
        `dag.networks.contract`.
    arguments : dict, optional
        Keyword arguments of the function.
    files : dict of str to path, optional
        Weight files by role.  The role `state_dict` is loaded into the network; every other role is passed to
        the function as a keyword argument.
    fold : bool
        Rewrite the network for speed, see `rewrite`; not for training.
    task : str, optional
        "segmentation" or "detection", the task in the configuration.
    classes : ClassList
        Classes of the network's ids.
    source : bool
        Whether perturbations are made from it; a network that only sees them needs no gradient.

    Raises
    ------
    ValueError
        If the architecture cannot be found or called, a file does not fit, a weight is not finite, the task is
        another one, or the network does not follow `dag.networks.interface`.
    """
    files = _existing(files or {})
    state_dict = files.pop("state_dict", None)
    network = _called(architecture, (), arguments or {}, files)
    if state_dict is not None:
        load_weights(network, state_dict)
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{architecture}: weight {name} has values that are not finite; "
                "delete the weight file and download or train it again"
            )
    if task is not None and getattr(network, "task", task) != task:
        raise ValueError(f"{architecture} does {network.task} and its entry says {task}; correct the task there")
    network.classes = classes
    network.eval()
    network.requires_grad_(False)
    if not architecture.startswith("dag.networks."):
        check_interface(network, architecture, source)
    elif beyond := [label for label in network.labels if label >= len(classes.names)]:
        raise ValueError(
            f"{architecture}: it has a column for class id {beyond[0]}, and the last of its classes is "
            f"{len(classes.names) - 1}, {classes.names[-1]}; name its list by `classes` of its entry"
        )
    return rewrite(network) if fold else network


def build_told(network: Mapping, fold: bool = True, source: bool = True) -> Network:
    """Build a network from the parameters of a job, see `dag.workflow.jobs.network`, with its defences if it has any.

    `fold`, `source` and errors as of `build`; also if a defence cannot be called or its result does not follow
    `dag.networks.interface`.
    """
    defences, files, classes = network["defences"], network["files"], ClassList.of(network["classes"])
    built = build(
        network["architecture"],
        network["arguments"],
        {role: path for role, path in files.items() if ":" not in role},
        fold,
        task=network["task"],
        classes=classes,
        source=source and not defences,
    )
    for defence in defences:
        name = defence["name"] + ":"
        own = _existing({role.removeprefix(name): path for role, path in files.items() if role.startswith(name)})
        built = _called(defence["function"], (built,), defence["arguments"], own)
        built.classes = classes
        built.eval()
        built.requires_grad_(False)
    if defences:
        check_interface(built, network["name"], source)
    return built


def _existing(files: dict) -> dict[str, Path]:
    """Weight files by role; raises ValueError if one is missing."""
    for role, path in files.items():
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such weight file ({role}); download or train it first")
    return {role: Path(path) for role, path in files.items()}


def _called(name: str, networks: tuple, arguments: dict, files: dict[str, Path]) -> nn.Module:
    """Call the function of an architecture, or of a defence of a network."""
    function, keywords = function_of(name), {**arguments, **files}
    try:
        inspect.signature(function).bind(*networks, **keywords)
    except TypeError as error:
        raise ValueError(f"{name}: {error}; `arguments` and `files` of the network's entry are passed to it") from error
    try:
        network = function(*networks, **keywords)
    except pickle.UnpicklingError:  # with torch's advice to run the code in the file
        names = ", ".join(path.name for path in files.values())
        raise ValueError(
            f"{name}: one of its files ({names}) holds Python objects besides tensors or was not written by "
            "torch.save; save network.state_dict() instead of the network"
        ) from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} returns a {type(network).__name__}; return a Segmenter or a Detector")
    return network


def rewrite(network: Network) -> Network:
    """Rewrite a network for speed, in place; see `fold_batch_norm` and `dag.networks.layers.convolutions.lean`."""
    fold_batch_norm(network)
    lean(network)
    inner = getattr(network, "channels_last", False)  # a network from outside may lack it
    return network.to(memory_format=torch.channels_last) if inner else network


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold every batch normalisation into the convolution before it, in place; see `Network.normalised`.

    Equal up to rounding.  An iteration of the attack takes 0.86 of the time on the VGG networks of the
    miniature and 0.97 on the ZF networks.
    """
    # a network from outside need not derive from `Network`
    pairs = network.normalised() if isinstance(network, Network) else Network.normalised(network)
    for block, first, second in list(pairs):
        convolution, norm = block._modules[first], block._modules[second]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            block._modules[first] = fuse_conv_bn_eval(convolution, norm).requires_grad_(False)
            block._modules[second] = nn.Identity()
    return network


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict written by `torch.save`; no code in the file is executed.

    Raises
    ------
    ValueError
        If the file cannot be read, or its tensors do not fit the network.
    """
    found: dict = {}
    try:
        found = state_files.read(path)
        network.load_state_dict(found)
    except Exception as error:
        reason = _misfit(network.state_dict(), found) if found else None
        if reason is None:
            reason = " ".join(
                line.strip() for line in str(error).strip().splitlines()[:2]
            )  # the second names the layer
            reason = reason if len(reason) < 400 else reason[:400] + " ..."
        raise ValueError(f"{path}: cannot be loaded as weights of {type(network).__name__}: {reason}") from error


def _misfit(own: dict, found: dict) -> str | None:
    """Differences between a state dict and that of a network, with advice; None if it fits."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items() if hasattr(tensor, "shape")}
    other = [name for name in own if name in shapes and shapes[name] != tuple(own[name].shape)]
    if other:
        return (
            f"{len(other)} of its {len(own)} tensors have another shape, the first is {other[0]}, "
            f"{shapes[other[0]]} in the file and {tuple(own[other[0]].shape)} in the network; "
            "name the file of a network of this width and with these classes, or correct `arguments` of its entry"
        )
    missing, strange = [name for name in own if name not in found], [name for name in found if name not in own]
    if missing:
        return (
            f"{len(missing)} of its {len(own)} tensors are not in the file, the first is {missing[0]}; "
            "name the file of a network of this architecture"
        )
    if strange:
        return f"it lacks {len(strange)} tensors of the file, the first is {strange[0]}; name its architecture"
    return None


def function_of(architecture: str):
    module_name, _, function_name = architecture.partition(":")
    try:
        if module_name.endswith(".py"):
            name = str(Path(module_name).resolve())
            spec = importlib.util.spec_from_file_location(name, name)
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # dataclasses look up their module there
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        if function_name not in vars(module):
            raise ImportError(f"there is no {function_name} in it")
    except (ImportError, OSError) as error:
        raise ValueError(
            f"{architecture!r} cannot be found ({error}); give package.module:function of an "
            "installed package or one on PYTHONPATH, or path/to/file.py:function with a path from the working directory"
        ) from error
    return vars(module)[function_name]
