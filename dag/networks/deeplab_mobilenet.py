"""Segmentation networks such as DeepLabv3 on MobileNetV2, imported from a uint8 or float32 TFLite file.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017; Sandler et
al., "MobileNetV2", CVPR 2018.  The graph of the file is executed operator by operator with dequantised
float32 weights.  Activations are not rounded to 8 bits, because rounding has no gradient.  On a few
images this changes whole objects, so label maps agree with the 8-bit original on only about 98.5 %
of the pixels (tests/networks/test_deeplab_mobilenet.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dag.networks import tflite
from dag.networks import tflite_operators as operators
from dag.networks.interface import Segmenter

# Operators that may follow the scores, as they preserve the arg max.
_LAST = ("DEQUANTIZE", "QUANTIZE", "ARG_MAX", "SOFTMAX")


def deeplab_mobilenet(
    tflite: Path,
    labels: Iterable[int] = range(21),
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Segmenter:
    """Build a segmentation network with the graph and the weights of a TFLite file.

    Parameters
    ----------
    tflite : Path
        Its graph has one input image, operators of a convolutional network, bilinear upsampling of the scores to the
        input size (unless they already have it), and at the end optionally SOFTMAX over the classes, ARG_MAX or both.
    labels : iterable of int
        VOC class ids of the score columns.
    mean, std : float or three floats, optional
        The input is (image - mean) / std, image in 0..255: 127.5 and 127.5 for an input in -1..1.  Required for a
        graph with a float32 input; not allowed for a quantised input, whose scale and zero point are in the file.

    Raises
    ------
    ValueError
        If the file cannot be read or has an unsupported operator.
    """
    return _DeepLab(Path(tflite), tuple(labels), mean, std)


class _DeepLab(Segmenter):
    """The image is resized to fit the frame (input size) of the graph and padded right and below.

    Padding has the real value 0, as in training: grey 128 in a uint8 graph, `mean` in a float32 one.  All steps after
    the body are linear and separable, and are applied as one matrix per axis: upsampling inside the graph,
    cropping of the padding, resizing back to the image.
    """

    # Faster for depthwise convolutions: an iteration of the attack takes 0.72 to 0.84 of the time (one core).
    channels_last = True

    def __init__(self, path: Path, labels: tuple[int, ...], mean, std):
        super().__init__()
        self.labels = labels
        graph = tflite.read_graph(path)
        try:
            self._import(graph, mean, std)
        except KeyError as error:
            raise ValueError(f"{path}: an operator lacks its option {error}; download the file again") from error
        except (ValueError, LookupError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error

    def _import(self, graph: tflite.Graph, mean, std) -> None:
        if len(graph.inputs) != 1:
            raise ValueError(f"the graph has {len(graph.inputs)} inputs instead of one image")
        image = graph.tensors[graph.inputs[0]]
        self.frame = image.shape[1:3]
        self._normalise(image, mean, std)
        steps = list(graph.operators)
        while steps and steps[-1].kind in _LAST:
            _check_last(steps.pop(), graph.tensors)
        self.growth = []  # successive resizes of low-resolution scores: (height, width), align_corners
        while steps and steps[-1].kind == "RESIZE_BILINEAR":
            resize = steps.pop()
            self.growth.insert(0, (graph.tensors[resize.outputs[0]].shape[1:3], operators.aligned(resize)))
        if not steps:
            raise ValueError("the graph has no operators before its scores are resized")
        self.image, self.scores = graph.inputs[0], steps[-1].outputs[0]
        scores = graph.tensors[self.scores]
        last = self.growth[-1][0] if self.growth else scores.shape[1:3]
        if last != self.frame:
            raise ValueError(f"the final scores have the size {last} instead of the input size {self.frame}")
        if scores.shape[3] != len(self.labels):
            raise ValueError(f"{scores.shape[3]} score columns do not fit {len(self.labels)} labels")
        self.convolutions = nn.ModuleList()
        self.steps = []  # (function, numbers of the input tensors, number of the output tensor)
        # Shapes are compared with those of the file on the meta device, without computation.
        tensors = list(graph.tensors)
        shapes = {self.image: torch.empty(1, 3, *self.frame, device="meta")}
        for step in steps:
            output = step.outputs[0]
            if step.kind == "DEQUANTIZE" and tensors[step.inputs[0]].stored is not None:  # float16 weights
                tensors[output] = tensors[step.inputs[0]]
                continue
            function = operators.function(step, tensors)
            if isinstance(function, nn.Module):
                self.convolutions.append(function)
            inputs = tuple(number for number in step.inputs if number >= 0 and tensors[number].stored is None)
            self.steps.append((function, inputs, output))
            blank = copy.deepcopy(function).to("meta") if isinstance(function, nn.Module) else function
            shapes[output] = blank(*(shapes[number] for number in inputs))
            batch, channels, height, width = shapes[output].shape
            if tensors[output].shape != (batch, height, width, channels):
                raise ValueError(
                    f"{step.kind} at tensor {tensors[output].name!r} gives {(batch, height, width, channels)}, "
                    f"but the file says {tensors[output].shape}"
                )

    def _normalise(self, image: tflite.Tensor, mean, std) -> None:
        if image.shape[3:] != (3,) or image.shape[:1] != (1,):
            raise ValueError(f"the input has the shape {image.shape} and not (1, height, width, 3)")
        if image.dtype == "<f4":
            if mean is None or std is None:
                raise ValueError(
                    "its input is float32; give `mean` and `std` in the arguments of the network, 127.5 and 127.5 if "
                    "it wants images in -1..1"
                )
            mean, scale = torch.tensor(mean).float(), 1 / torch.tensor(std).float()
            good = mean.isfinite().all() and scale.isfinite().all() and (scale > 0).all()
            if mean.numel() not in (1, 3) or scale.numel() not in (1, 3) or not good:
                raise ValueError("`mean` and `std` must be one number or three, and `std` positive")
        elif image.dtype != "u1":
            raise ValueError(f"its input has the type {image.dtype}; only uint8 and float32 are supported")
        elif mean is not None or std is not None:
            raise ValueError("its uint8 input has its own scale; leave out `mean` and `std`")
        else:
            mean, scale = torch.tensor(float(image.zero_point)), torch.tensor(image.scale)
        self.register_buffer("mean", mean.reshape(-1, 1, 1), persistent=False)
        self.register_buffer("scale", scale.reshape(-1, 1, 1), persistent=False)

    def body(self, images: Tensor) -> Tensor:
        """Low-resolution scores (B, C, h, w) of the whole frame, padding included."""
        height, width = self._fitted(images.shape[-2:])
        if (height, width) != images.shape[-2:]:
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
        images = (images - self.mean) * self.scale
        values = {self.image: F.pad(images, (0, self.frame[1] - width, 0, self.frame[0] - height))}
        for function, inputs, output in self.steps:
            values[output] = function(*(values[number] for number in inputs))
        return values[self.scores]

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        rows, columns = (self._growth(scores, axis, size) for axis in (0, 1))
        return rows @ scores @ columns.T

    def _fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image after resizing, as large as the frame allows."""
        scale = min(self.frame[0] / size[0], self.frame[1] / size[1])
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def _growth(self, scores: Tensor, axis: int, size: tuple[int, int]) -> Tensor:
        """Matrix (size[axis], low resolution) that maps scores to the image along one axis."""
        matrix = torch.eye(scores.shape[2 + axis], dtype=scores.dtype, device=scores.device)[None]
        for grown, aligned in self.growth:
            matrix = F.interpolate(matrix, grown[axis], mode="linear", align_corners=aligned)
        matrix = matrix[..., : self._fitted(size)[axis]]
        return F.interpolate(matrix, size[axis], mode="linear", align_corners=False)[0].T


def _check_last(step: tflite.Operator, tensors: Sequence[tflite.Tensor]) -> None:
    """Reject an operator after the scores that is not applied over their columns."""
    if step.kind == "ARG_MAX":
        axes = [tensors[number].stored for number in step.inputs[1:2]]
        if len(axes) != 1 or axes[0] is None or axes[0].ravel().tolist() not in ([3], [-1]):
            raise ValueError("ARG_MAX is not over the classes")
    elif step.kind == "SOFTMAX" and step.options["beta"] != 1:
        raise ValueError(f"SOFTMAX with beta={step.options['beta']} is not supported")
