"""DeepLabv3 on MobileNetV2, imported from a quantised TFLite file.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017; Sandler et
al., "MobileNetV2", CVPR 2018.  The graph of the file is followed step by step with dequantised
float32 weights.  The rounding of activations to 8 bits is left out: it has no gradient, and it
changes whole objects on a few images, so label maps agree with the 8-bit original on about 98.5 %
of the pixels and not on all (tests/networks/test_deeplab_mobilenet.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dag.networks import tflite
from dag.networks.interface import Segmenter

_ACTIVATIONS = {"NONE": nn.Identity, "RELU": partial(nn.ReLU, inplace=True), "RELU6": partial(nn.ReLU6, inplace=True)}


def deeplab_mobilenet(tflite: Path, labels: Iterable[int] = range(21)) -> Segmenter:
    """DeepLabv3-MobileNetV2 with the graph and the weights of a TFLite file.

    Parameters
    ----------
    tflite : Path
        One float input image, operators of a convolutional network, and at the end bilinear
        upsampling with aligned corners and ARG_MAX.
    labels : iterable of int
        VOC class ids of the score columns.

    Raises
    ------
    ValueError
        If the file cannot be read or has an operator that is not known here.
    """
    return _DeepLab(Path(tflite), tuple(labels))


class _DeepLab(Segmenter):
    """The image is fitted into the square frame of the graph and padded right and below.

    Padding is grey 128 = real 0, as the network was trained.  Everything after the body is linear
    and separable, and is applied as one matrix per axis: upsampling inside the graph, cropping of
    the padding, resizing back to the image.
    """

    # Depthwise convolutions: an iteration of the attack takes 0.72 to 0.84 of the time (one core).
    channels_last = True

    def __init__(self, path: Path, labels: tuple[int, ...]):
        super().__init__()
        self.labels = labels
        graph = tflite.read_graph(path)
        try:
            self._import(graph)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; give a DeepLabv3-MobileNetV2 file") from error

    def _import(self, graph: tflite.Graph) -> None:
        operators = list(graph.operators)
        if not operators or operators.pop().kind != "ARG_MAX":
            raise ValueError("the graph does not end in ARG_MAX")
        self.growth = []  # heights and widths that the low-resolution scores are resized to in turn
        while operators and operators[-1].kind == "RESIZE_BILINEAR":
            _aligned(operators[-1])
            self.growth.insert(0, graph.tensors[operators.pop().outputs[0]].shape[1:3])
        image = graph.tensors[graph.inputs[0]]
        self.frame = image.shape[1:3]
        if not operators or not self.growth or self.growth[-1] != self.frame:
            raise ValueError(f"the scores are not resized to the size of the input {self.frame} at the end")
        self.scale, self.zero_point = image.scale, image.zero_point
        columns = graph.tensors[operators[-1].outputs[0]].shape[3]
        if columns != len(self.labels):
            raise ValueError(f"{columns} score columns do not fit {len(self.labels)} labels")

        self.image, self.scores = graph.inputs[0], operators[-1].outputs[0]
        self.convolutions = nn.ModuleList()
        self.steps = []  # (function, numbers of the input tensors, number of the output tensor)
        for operator in operators:
            function = _function(operator, graph.tensors)
            if isinstance(function, nn.Module):
                self.convolutions.append(function)
            inputs = tuple(number for number in operator.inputs if graph.tensors[number].stored is None)
            self.steps.append((function, inputs, operator.outputs[0]))

    def body(self, images: Tensor) -> Tensor:
        """Scores (B, 21, 33, 33) of the whole frame of 513 x 513, padding included."""
        height, width = self._fitted(images.shape[-2:])
        if (height, width) != images.shape[-2:]:
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
        images = (images - self.zero_point) * self.scale
        values = {self.image: F.pad(images, (0, self.frame[1] - width, 0, self.frame[0] - height))}
        for function, inputs, output in self.steps:
            values[output] = function(*(values[number] for number in inputs))
        return values[self.scores]

    def upsample(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        rows, columns = (self._growth(scores, axis, size) for axis in (0, 1))
        return rows @ scores @ columns.T

    def _fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image after resizing: as large as the frame allows."""
        scale = min(self.frame[0] / size[0], self.frame[1] / size[1])
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def _growth(self, scores: Tensor, axis: int, size: tuple[int, int]) -> Tensor:
        """Matrix (size[axis], low resolution) that maps scores to the image along one axis."""
        matrix = torch.eye(scores.shape[2 + axis], dtype=scores.dtype, device=scores.device)[None]
        for grown in self.growth:
            matrix = F.interpolate(matrix, grown[axis], mode="linear", align_corners=True)
        matrix = matrix[..., : self._fitted(size)[axis]]
        return F.interpolate(matrix, size[axis], mode="linear", align_corners=False)[0].T


def _function(operator: tflite.Operator, tensors: tuple[tflite.Tensor, ...]) -> Callable[..., Tensor]:
    options = operator.options
    output = tensors[operator.outputs[0]]
    if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return _convolution(operator, tensors)
    if options.get("activation", "NONE") != "NONE":
        raise ValueError(f"{operator.kind} with activation {options['activation']} is not supported")
    if operator.kind == "ADD":
        return torch.add
    if operator.kind == "CONCATENATION" and options["axis"] in (3, -1):
        return _concatenate
    if operator.kind == "AVERAGE_POOL_2D" and options["padding"] == "VALID":
        window = (options["filter_h"], options["filter_w"])
        return partial(F.avg_pool2d, kernel_size=window, stride=(options["stride_h"], options["stride_w"]))
    if operator.kind == "RESIZE_BILINEAR":
        _aligned(operator)
        return partial(F.interpolate, size=output.shape[1:3], mode="bilinear", align_corners=True)
    if operator.kind == "QUANTIZE":  # another scale for the same real values
        return _same
    raise ValueError(f"{operator.kind} at tensor {output.name!r} is not supported")


def _convolution(operator: tflite.Operator, tensors: tuple[tflite.Tensor, ...]) -> nn.Module:
    image, kernel, bias = (tensors[number] for number in operator.inputs)
    options = operator.options
    weight = torch.from_numpy(tflite.real_values(kernel))  # (out, height, width, in); depthwise (1, height, width, out)
    groups = 1
    if operator.kind == "DEPTHWISE_CONV_2D":
        weight, groups = weight.permute(3, 1, 2, 0), image.shape[3]
    weight = weight.permute(0, 3, 1, 2)
    stride = (options["stride_h"], options["stride_w"])
    dilation = (options["dilation_h"], options["dilation_w"])
    padding = (0, 0)
    if options["padding"] == "SAME":
        padding = tuple(map(_same_padding, image.shape[1:3], weight.shape[2:], stride, dilation))
    if options["activation"] not in _ACTIVATIONS:
        raise ValueError(f"{operator.kind} with activation {options['activation']} is not supported")
    convolution = nn.Conv2d(image.shape[3], weight.shape[0], weight.shape[2:], stride, padding, dilation, groups)
    with torch.no_grad():
        convolution.weight.copy_(weight)
        convolution.bias.copy_(torch.from_numpy(tflite.real_values(bias)))
    return nn.Sequential(convolution, _ACTIVATIONS[options["activation"]]())


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Padding on either side so that the output has ceil(size / stride) rows or columns."""
    total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    if total % 2:
        raise ValueError(f"a convolution over {size} rows or columns needs {total} of padding, which is not symmetric")
    return total // 2


def _aligned(operator: tflite.Operator) -> None:
    if not operator.options["align_corners"]:
        raise ValueError("RESIZE_BILINEAR without aligned corners is not supported")


def _concatenate(*values: Tensor) -> Tensor:
    return torch.cat(values, 1)


def _same(values: Tensor) -> Tensor:
    return values
