"""What every network can do, whatever its family, file format or size.

A network takes images as they are: float32 RGB in [0, 255], any size, a leading batch dimension
(B, 3, H, W).  Resizing, channel order and mean subtraction are its own first, differentiable
layers, so one perturbation in the frame of the image can be shown to all of them.

The attack (`dag.attack`) needs only two things: the score vector f(X, t) before softmax of every
target t, differentiable in X, and the meaning of its columns (`labels`).  The evaluation needs
the network's normal output (`label_map`, `detect`).

Detectors without a region proposal network (single-stage ones) fit the same interface: their
decoded anchor boxes play the role of the proposals, and f(X, t) is the vector of class logits at
that anchor.  Objectness takes part in `confidence` and in `detect` and is left alone by the
attack: scores derived from it let the attack stop early with the true class still the best one.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dag.networks.convolutions import lean


@dataclass(frozen=True)
class Proposals:
    """Candidate boxes of one image before classification.

    Attributes
    ----------
    boxes : Tensor, float32 (R, 4)
        (x_min, y_min, x_max, y_max), 0-based, in the frame of the image.
    index : Tensor or None, int64 (R,)
        Single-stage networks: row of the anchor in the network's raw output.  Otherwise None.
    """

    boxes: Tensor
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Tensor) -> Proposals:
        return Proposals(self.boxes[rows], None if self.index is None else self.index[rows])


@dataclass(frozen=True)
class Detections:
    """Final scored boxes of one image after non-maximum suppression, best score first.

    Attributes
    ----------
    boxes : Tensor, float32 (D, 4)
    labels : Tensor, int64 (D,)
        VOC class ids, 1..20.
    scores : Tensor, float32 (D,)
        In [0, 1].
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class Network(nn.Module):
    """Common to both tasks.

    Attributes
    ----------
    task : str
        "segmentation" or "detection".
    labels : tuple of int
        VOC class id of each of the C score columns; 0 is background.  A single-stage detector
        has no background column.
    channels_last : bool
        The weights are kept with channels innermost, and so torch keeps all maps.  Worth it where convolutions are
        depthwise (benchmarks/RESULTS.md); VGG loses by it.
    """

    task: str
    labels: tuple[int, ...]
    channels_last = False

    def normalised(self) -> Iterator[tuple[nn.Module, str, str]]:
        """Where `build` may multiply a batch normalisation into a convolution.

        Yields a module and the names of two of its layers, of which the second reads all that the first puts out, and
        nobody else reads it.  Neighbours in an `nn.Sequential` are that in any case; a network adds others.
        """
        for block in self.modules():
            if isinstance(block, nn.Sequential):
                yield from ((block, *pair) for pair in pairwise(block._modules))


class Segmenter(Network):
    """A network that labels every pixel.

    `body` does the work at low resolution; `upsample` is linear in its input, so that an attack
    may handle it in closed form.
    """

    task = "segmentation"

    def body(self, images: Tensor) -> Tensor:
        """Low-resolution scores (B, C, h, w) of images (B, 3, H, W)."""
        raise TypeError(f"{type(self).__name__} does not define body()")

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Scores (B, C, H, W) at image resolution `size` = (H, W); linear in `scores`."""
        raise TypeError(f"{type(self).__name__} does not define upsample()")

    def forward(self, images: Tensor) -> Tensor:
        """Scores before softmax, (B, C, H, W), of images (B, 3, H, W)."""
        return self.upsample(self.body(images), images.shape[-2:])

    @torch.no_grad()
    def label_map(self, images: Tensor) -> Tensor:
        """Predicted VOC class ids, uint8 (B, H, W)."""
        columns = self(images).argmax(1)
        return torch.tensor(self.labels, dtype=torch.uint8, device=columns.device)[columns]


class Detector(Network):
    """A network that finds boxes.

    Lists have one element per image of the batch; tensors over proposals are concatenated in
    that order, R = total number of proposals.
    """

    task = "detection"

    def features(self, images: Tensor):
        """Everything that one pass of the trunk yields; handed to the other methods unopened."""
        raise TypeError(f"{type(self).__name__} does not define features()")

    def propose(self, features, *, nms: float, limit: int) -> list[Proposals]:
        """The `limit` best proposals that survive suppression at IoU > `nms`, best first."""
        raise TypeError(f"{type(self).__name__} does not define propose()")

    def scores(self, features, proposals: list[Proposals]) -> Tensor:
        """f(X, t) before softmax, (R, C); differentiable in the images."""
        raise TypeError(f"{type(self).__name__} does not define scores()")

    def probabilities(self, scores: Tensor) -> Tensor:
        """Class probabilities (R, C) of scores (R, C)."""
        return scores.softmax(1)

    def confidence(self, features, proposals: list[Proposals]) -> Tensor:
        """How sure the network is that a proposal holds an object of a class, (R, C) in [0, 1].

        Single-stage networks multiply the class probability by the objectness.
        """
        return self.probabilities(self.scores(features, proposals))

    def detect(self, images: Tensor) -> list[Detections]:
        """Detections at the network's normal test settings."""
        raise TypeError(f"{type(self).__name__} does not define detect()")


def build(
    architecture: str,
    arguments: dict | None = None,
    files: dict | None = None,
    fold: bool = True,
    task: str | None = None,
) -> Network:
    """Make a network ready for use: evaluation mode, frozen weights, finite numbers.

    Parameters
    ----------
    architecture : str
        "package.module:function" or "path/to/file.py:function", the path absolute or from the working
        directory; the function returns a `Network`.  One from outside the project is put to the test, see
        `dag.networks.contract`.
    arguments : dict, optional
        Keyword arguments of the function.
    files : dict of str to path, optional
        Weight files by role.  `state_dict` is loaded into the network here; every other role is
        handed to the function as a keyword argument.
    fold : bool
        Fold batch normalisation into the convolutions and more, see `rewrite`; not for training.
    task : str, optional
        "segmentation" or "detection", what the configuration takes the network for.

    Raises
    ------
    ValueError
        If the architecture cannot be found or called, a file does not fit, a weight is not finite, or
        the network does not do what this module says.
    """
    files = {role: Path(path) for role, path in (files or {}).items()}
    for role, path in files.items():
        if not path.is_file():
            raise ValueError(f"{path}: no such weight file ({role}); download or train it first")
    state_dict = files.pop("state_dict", None)
    function, arguments = _function(architecture), {**(arguments or {}), **files}
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{architecture}: {error}; it gets `arguments` and `files` of the network's entry") from error
    network = function(**arguments)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{architecture} returns a {type(network).__name__}; return a Segmenter or a Detector")
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
    network.eval()
    network.requires_grad_(False)
    if not architecture.startswith("dag.networks."):
        from dag.networks.contract import check_interface  # which imports this module

        check_interface(network, architecture)
    return rewrite(network) if fold else network


def rewrite(network: Network) -> Network:
    """Let a network compute the same with less work, in place: `fold_batch_norm`, `dag.networks.convolutions`."""
    fold_batch_norm(network)
    lean(network)
    inner = getattr(network, "channels_last", False)  # a network from outside may lack it
    return network.to(memory_format=torch.channels_last) if inner else network


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Multiply every batch normalisation that follows a convolution into it, in place; see `Network.normalised`.

    Equal up to rounding; one iteration of the attack takes 0.86 of the time on the VGG networks of
    the miniature and 0.97 on the ZF ones.
    """
    # a network from outside may be no `Network`
    pairs = network.normalised() if isinstance(network, Network) else Network.normalised(network)
    for block, first, second in list(pairs):
        convolution, norm = block._modules[first], block._modules[second]
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            block._modules[first] = fuse_conv_bn_eval(convolution, norm).requires_grad_(False)
            block._modules[second] = nn.Identity()
    return network


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict written by `torch.save`; no code in the file is executed."""
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])  # the second names the layer
        raise ValueError(f"{path}: cannot be loaded as weights of {type(network).__name__}: {reason}") from error


def _function(architecture: str):
    module_name, _, function_name = architecture.partition(":")
    try:
        if module_name.endswith(".py"):
            name = str(Path(module_name).resolve())
            spec = importlib.util.spec_from_file_location(name, name)
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # a dataclass looks for its module there
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        if function_name not in vars(module):
            raise ImportError(f"there is no {function_name} in it")
    except (ImportError, OSError) as error:
        raise ValueError(
            f"architecture {architecture!r} cannot be found ({error}); give package.module:function of what is "
            "installed or on PYTHONPATH, or path/to/file.py:function with a path from the working directory"
        ) from error
    return vars(module)[function_name]
