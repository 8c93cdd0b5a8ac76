"""Defences: transformations of images in front of a network.

A defence maps a network and arguments from the configuration to a network of the same task that receives transformed
images.  Common defences are implemented: rounding, JPEG and blur (Dziugaite et al., 2016; Guo et al., ICLR 2018),
Gaussian noise (as in randomised smoothing, Cohen et al., ICML 2019) and random resizing (Xie et al., ICLR 2018).

Random numbers come from torch's CPU generator, so that a defended network gives the same result on every device for a
given seed; the evaluation seeds every pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dag.data.pictures import through_jpeg
from dag.networks.interface import Detections, Detector, Network, Proposals, Segmenter, is_stochastic, objectness_of

Transform = Callable[[Tensor], Tensor]


def rounding(network: Network) -> Network:
    """Round images to integer grey levels, as in an 8-bit file.  Without gradient."""
    return defended(network, torch.round)


def jpeg(network: Network, quality: int) -> Network:
    """Compress images as JPEG with a quality from 1 to 100.  Without gradient."""
    if not 1 <= quality <= 100:
        raise ValueError(f"the defence jpeg has the quality {quality}; give one from 1 to 100")

    def compressed(images: Tensor) -> Tensor:
        files = [through_jpeg(np.rint(image), quality) for image in images.detach().cpu().numpy()]
        return torch.from_numpy(np.stack(files)).to(images)

    return defended(network, compressed)


def blur(network: Network, sigma: float) -> Network:
    """Convolve images with a Gaussian of standard deviation `sigma` pixels, replicating the border.

    The kernel is truncated at 4 sigma.
    """
    _check_positive("blur", sigma=sigma)
    reach = int(4 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).float()

    def blurred(images: Tensor) -> Tensor:
        channels = images.shape[1]
        weight = kernel.to(images).expand(channels, 1, -1)
        images = _extended(_extended(images, 2, reach), 3, reach)
        images = F.conv2d(images, weight[..., None], groups=channels)
        return F.conv2d(images, weight[..., None, :], groups=channels)

    return defended(network, blurred)


def noise(network: Network, sigma: float) -> Network:
    """Add Gaussian noise of standard deviation `sigma` grey levels to images and clip them to 0..255."""
    _check_positive("noise", sigma=sigma)

    def noisy(images: Tensor) -> Tensor:
        return (images + sigma * torch.randn(images.shape).to(images)).clamp(0, 255)

    return defended(network, noisy, stochastic=True)


def resizing(network: Network, least: float, most: float) -> Network:
    """Resize images by a factor drawn uniformly from [`least`, `most`]; predictions are mapped back to the image."""
    _check_positive("resizing", least=least, most=most)
    if least > most:
        raise ValueError(f"the defence resizing has factors from {least} to {most}; give the smaller one first")
    kind = _ResizedSegmenter if network.task == "segmentation" else _ResizedDetector
    return kind(network, least, most)


def defended(network: Network, transform: Transform, stochastic: bool = False) -> Network:
    """Wrap a network so that it receives `transform(images)`.

    Parameters
    ----------
    network : Network
        A segmenter or a detector.
    transform : callable
        From images (B, 3, H, W) in 0..255 to images of the same shape and range.
    stochastic : bool
        Whether `transform` draws random numbers, with torch.
    """
    return (_Segmenter if network.task == "segmentation" else _Detector)(network, transform, stochastic)


class _Segmenter(Segmenter):
    def __init__(self, network: Segmenter, transform: Transform, stochastic: bool):
        super().__init__()
        self.network, self.transform, self.labels = network, transform, tuple(network.labels)
        self.stochastic = stochastic or is_stochastic(network)

    def body(self, images: Tensor) -> Tensor:
        return self.network.body(self.transform(images))

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return self.network.upsample(scores, size)

    def label_map(self, images: Tensor) -> Tensor:
        return self.network.label_map(self.transform(images))


class _Detector(Detector):
    def __init__(self, network: Detector, transform: Transform, stochastic: bool):
        super().__init__()
        self.network, self.transform, self.labels = network, transform, tuple(network.labels)
        self.stochastic = stochastic or is_stochastic(network)
        self.independent = getattr(network, "independent", False)

    def features(self, images: Tensor):
        return self.network.features(self.transform(images))

    def propose(self, features, *, nms: float, limit: int) -> list[Proposals]:
        return self.network.propose(features, nms=nms, limit=limit)

    def scores(self, features, proposals: list[Proposals]) -> Tensor:
        return self.network.scores(features, proposals)

    def probabilities(self, scores: Tensor) -> Tensor:
        return self.network.probabilities(scores)

    def confidence(self, features, proposals: list[Proposals]) -> Tensor:
        return self.network.confidence(features, proposals)

    def objectness(self, features, proposals: list[Proposals]) -> Tensor | None:
        return objectness_of(self.network, features, proposals)

    def detect(self, images: Tensor) -> list[Detections]:
        return self.network.detect(self.transform(images))


class _ResizedSegmenter(Segmenter):
    """`body` resizes scores to the image, because it draws the size of the resized image."""

    stochastic = True

    def __init__(self, network: Segmenter, least: float, most: float):
        super().__init__()
        self.network, self.range, self.labels = network, (least, most), tuple(network.labels)

    def body(self, images: Tensor) -> Tensor:
        return _resized(self.network(_drawn(images, *self.range)), images.shape[-2:])

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        return scores


class _ResizedDetector(Detector):
    """`features` are those of the resized images, the size of these, and the size of the images."""

    stochastic = True

    def __init__(self, network: Detector, least: float, most: float):
        super().__init__()
        self.network, self.range, self.labels = network, (least, most), tuple(network.labels)

    def features(self, images: Tensor):
        resized = _drawn(images, *self.range)
        return self.network.features(resized), resized.shape[-2:], images.shape[-2:]

    def propose(self, features, *, nms: float, limit: int) -> list[Proposals]:
        inner, size, whole = features
        found = self.network.propose(inner, nms=nms, limit=limit)
        return [replace(one, boxes=_boxes(one.boxes, size, whole)) for one in found]

    def scores(self, features, proposals: list[Proposals]) -> Tensor:
        return self.network.scores(features[0], self._inside(features, proposals))

    def probabilities(self, scores: Tensor) -> Tensor:
        return self.network.probabilities(scores)

    def confidence(self, features, proposals: list[Proposals]) -> Tensor:
        return self.network.confidence(features[0], self._inside(features, proposals))

    def objectness(self, features, proposals: list[Proposals]) -> Tensor | None:
        return objectness_of(self.network, features[0], self._inside(features, proposals))

    def detect(self, images: Tensor) -> list[Detections]:
        resized = _drawn(images, *self.range)
        sizes = resized.shape[-2:], images.shape[-2:]
        return [Detections(_boxes(one.boxes, *sizes), one.labels, one.scores) for one in self.network.detect(resized)]

    @staticmethod
    def _inside(features, proposals: list[Proposals]) -> list[Proposals]:
        """Convert proposals to coordinates of the resized image."""
        _, size, whole = features
        return [replace(one, boxes=_boxes(one.boxes, whole, size)) for one in proposals]


def _check_positive(defence: str, **arguments: float) -> None:
    for name, value in arguments.items():
        if not value > 0:
            raise ValueError(f"the defence {defence} has {name} = {value}; give a number above 0")


def _extended(images: Tensor, dimension: int, reach: int) -> Tensor:
    """Images with their first and last row (dimension 2) or column (3) repeated `reach` times."""
    first, last = (images.narrow(dimension, place, 1) for place in (0, images.shape[dimension] - 1))
    times = [reach if axis == dimension else 1 for axis in range(4)]
    return torch.cat([first.repeat(times), images, last.repeat(times)], dimension)


def _drawn(images: Tensor, least: float, most: float) -> Tensor:
    """Images resized by a factor drawn uniformly from [`least`, `most`], the same for the whole batch."""
    factor = least + (most - least) * float(torch.rand(()))
    return _resized(images, tuple(max(1, round(factor * length)) for length in images.shape[-2:]))


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _boxes(boxes: Tensor, size: tuple[int, int], other: tuple[int, int]) -> Tensor:
    """Convert boxes with inclusive ends from coordinates of images of one `size` (H, W) to those of the `other`."""
    (height, width), (high, wide) = size, other
    factor = boxes.new_tensor([wide / width, high / height] * 2)
    last = boxes.new_tensor([0, 0, 1, 1])
    return ((boxes + last) * factor - last).clamp(min=0).minimum(boxes.new_tensor([wide, high] * 2) - 1)
