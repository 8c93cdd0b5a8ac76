"""Interface of all networks.

The input of a network is a batch of unprocessed images (B, 3, H, W): float32 RGB in [0, 255], of any size.
Resizing, channel reordering and mean subtraction are its first, differentiable layers, so that the same
perturbation, in image coordinates, can be added to the input of every network.

The attack (`dag.attack.engine`) needs the score vector f(X, t) of every target t, before softmax and differentiable
in X, and the class of each column (`labels`).  The evaluation needs the predictions (`label_map`, `detect`).

Single-stage detectors have the same interface: their decoded anchor boxes are the proposals, and f(X, t) is
the vector of class logits at an anchor.  Objectness is part of `confidence` and `detect` but not of f: an attack on
scores that include it stops early, while the true class still ranks first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dag.data.classes import VOC, ClassList


@dataclass(frozen=True)
class Proposals:
    """Candidate boxes of one image.

    Attributes
    ----------
    boxes : Tensor, float32 (R, 4)
        (x_min, y_min, x_max, y_max), 0-based, in image coordinates.
    index : Tensor or None, int64 (R,)
        Single-stage networks: row of the anchor in the raw output.  Otherwise None.
    anchor : Tensor or None, int64 (R,)
        Two-stage networks: anchor of the region proposal network that the box was decoded from.  Otherwise None.
    """

    boxes: Tensor
    index: Tensor | None = None
    anchor: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Tensor) -> Proposals:
        return Proposals(*(None if one is None else one[rows] for one in (self.boxes, self.index, self.anchor)))


@dataclass(frozen=True)
class Detections:
    """Final scored boxes of one image after non-maximum suppression, best score first.

    Attributes
    ----------
    boxes : Tensor, float32 (D, 4)
    labels : Tensor, int64 (D,)
        Class ids, see `Network.classes`; never background.
    scores : Tensor, float32 (D,)
        In [0, 1].
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def rows_of(found: Detections) -> NDArray[np.float32]:
    """Detections in the format in which they are stored, (D, 6): x_min, y_min, x_max, y_max, class id, score."""
    columns = [found.boxes, found.labels[:, None].float(), found.scores[:, None]]
    return torch.cat([column.float().cpu() for column in columns], dim=1).numpy()


class Network(nn.Module):
    """Base class for both tasks.

    Attributes
    ----------
    task : str
        "segmentation" or "detection".
    classes : ClassList
        Class list that class ids index.  `build` sets it to the list named by `classes` in the network's entry, by
        default that of VOC.
    labels : tuple of int
        Class id of each of the C score columns.  A single-stage detector has no column for background.
    channels_last : bool
        Whether weights, and hence all maps, are in channels-last memory format.  Faster for depthwise convolutions
        (benchmarks/RESULTS.md), slower for VGG.
    stochastic : bool
        Whether a pass draws random numbers, with torch, so that the output for an image varies.  The evaluation
        seeds every pass of such a network; a source of perturbations must not be stochastic.
    """

    task: str
    classes: ClassList = VOC
    labels: tuple[int, ...]
    channels_last = False
    stochastic = False

    def normalised(self) -> Iterator[tuple[nn.Module, str, str]]:
        """Pairs of layers that `build` folds if they are a convolution and a normalisation.

        Yields a module and the names of two of its layers.  The second must be the only consumer of the first's output,
        as is the case for neighbours in an `nn.Sequential`; networks add other pairs.
        """
        for block in self.modules():
            if isinstance(block, nn.Sequential):
                yield from ((block, *pair) for pair in pairwise(block._modules))


def is_stochastic(network: nn.Module) -> bool:
    """Whether a network declares itself stochastic; custom networks may lack the attribute."""
    return getattr(network, "stochastic", False)


def objectness_of(network: Network, features, proposals: list[Proposals]) -> Tensor | None:
    """`Detector.objectness`; None for custom networks that lack the method."""
    method = getattr(network, "objectness", None)
    return None if method is None else method(features, proposals)


def background_column(network: Network) -> int | None:
    """Score column of the background, or None."""
    ground = network.classes.ground
    return network.labels.index(ground) if ground in network.labels else None


class Segmenter(Network):
    """A network that labels every pixel.

    `body` computes scores at low resolution.  `upsample` is linear in them, so that an attack can compute the
    scores of individual pixels, see `dag.networks.layers.upsampling`.
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
        """Predicted class ids, uint8 (B, H, W)."""
        columns = self(images).argmax(1)
        # a blocking copy would synchronise with the device
        return torch.tensor(self.labels, dtype=torch.uint8).to(columns.device, non_blocking=True)[columns]


class Detector(Network):
    """A network that detects objects.

    Lists have one element per image of the batch.  Tensors over proposals are concatenated in that order; R is
    the total number of proposals.

    Attributes
    ----------
    independent : bool
        Whether detections in an image do not depend on the other images of the batch, for a given batch size.
        On a GPU the evaluation passes several variants of an image at a time to such a detector, and one to others.
    """

    task = "detection"
    independent = False

    def features(self, images: Tensor):
        """Output of one pass of the trunk over images (B, 3, H, W), passed to the other methods."""
        raise TypeError(f"{type(self).__name__} does not define features()")

    def propose(self, features, *, nms: float, limit: int) -> list[Proposals]:
        """The `limit` best proposals after non-maximum suppression at IoU > `nms`, best first."""
        raise TypeError(f"{type(self).__name__} does not define propose()")

    def scores(self, features, proposals: list[Proposals]) -> Tensor:
        """f(X, t) before softmax, (R, C); differentiable in the images."""
        raise TypeError(f"{type(self).__name__} does not define scores()")

    def probabilities(self, scores: Tensor) -> Tensor:
        """Class probabilities (R, C) of scores (R, C)."""
        return scores.softmax(1)

    def confidence(self, features, proposals: list[Proposals]) -> Tensor:
        """Probability that a proposal is an object of a class, (R, C) in [0, 1].

        Single-stage networks multiply the class probability by the objectness.
        """
        return self.probabilities(self.scores(features, proposals))

    def objectness(self, features, proposals: list[Proposals]) -> Tensor | None:
        """Objectness logits (R,), differentiable in the images; None if the network has none."""
        return None

    def detect(self, images: Tensor) -> list[Detections]:
        """Detections with the network's default test settings."""
        raise TypeError(f"{type(self).__name__} does not define detect()")
