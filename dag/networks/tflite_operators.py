"""The operators of a TFLite graph as torch functions of real-valued maps (B, C, H, W).

TFLite itself uses (B, H, W, C).  Quantised weights are dequantised when the file is read; activations are not rounded,
because rounding has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dag.networks import tflite

_ACTIVATIONS = {"NONE": nn.Identity, "RELU": partial(nn.ReLU, inplace=True), "RELU6": partial(nn.ReLU6, inplace=True)}

# Element-wise operators without options.
_POINTWISE = {
    "RELU": torch.relu,
    "RELU6": F.relu6,
    "LOGISTIC": torch.sigmoid,
    "TANH": torch.tanh,
    "HARD_SWISH": F.hardswish,
    "QUANTIZE": lambda values: values,  # changes the scale, not the real values
    "DEQUANTIZE": lambda values: values,
}
_ARITHMETIC = {"ADD": torch.add, "SUB": torch.sub, "MUL": torch.mul}


def function(operator: tflite.Operator, tensors: Sequence[tflite.Tensor]) -> Callable[..., Tensor]:
    """The function of an operator, of those of its inputs that are not stored in the file.

    Raises
    ------
    ValueError
        If the operator, its activation or one of its options is not supported.
    """
    kind, options = operator.kind, operator.options
    name = tensors[operator.outputs[0]].name
    inputs = [tensors[number] for number in operator.inputs if number >= 0]
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return _convolution(operator, inputs)
    if kind in _POINTWISE:
        return _POINTWISE[kind]
    if kind in _ARITHMETIC:
        constants = [None if tensor.stored is None else _as_map(tensor) for tensor in inputs]
        return partial(_arithmetic, operation=_ARITHMETIC[kind], constants=constants, activation=_activation(operator))
    if kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        window, stride = _sizes(operator, "filterHeight", "filterWidth"), _sizes(operator, "strideH", "strideW")
        padding = _padding(options["padding"], inputs[0].shape[1:3], window, stride, (1, 1))
        pool = _average_pool if kind == "AVERAGE_POOL_2D" else _max_pool
        return partial(pool, window=window, stride=stride, padding=padding, activation=_activation(operator))
    if kind == "RESIZE_BILINEAR":
        size = tensors[operator.outputs[0]].shape[1:3]
        return partial(F.interpolate, size=size, mode="bilinear", align_corners=aligned(operator))
    if kind == "CONCATENATION" and options["axis"] in (3, -1) and options["fusedActivationFunction"] == "NONE":
        return _concatenate
    if kind == "MEAN" and sorted(_integers(inputs[1])) == [1, 2] and options["keepDims"]:
        return partial(torch.mean, dim=(2, 3), keepdim=True)
    if kind == "PAD" and _integers(inputs[1])[:2] == [0, 0] and _integers(inputs[1])[6:] == [0, 0]:
        top, bottom, left, right = _integers(inputs[1])[2:6]
        return partial(F.pad, pad=(left, right, top, bottom))
    if kind == "SPACE_TO_BATCH_ND" and inputs[1].shape == (2,):
        return partial(_space_to_batch, block=_integers(inputs[1]), padding=_integers(inputs[2]))
    if kind == "BATCH_TO_SPACE_ND" and inputs[1].shape == (2,):
        return partial(_batch_to_space, block=_integers(inputs[1]), crops=_integers(inputs[2]))
    shown = ", ".join(f"{key}={value}" for key, value in options.items())
    raise ValueError(f"{kind} at tensor {name!r} {f'with {shown} ' if shown else ''}is not supported")


def aligned(operator: tflite.Operator) -> bool:
    """Whether a RESIZE_BILINEAR aligns corners; if not, it must align pixel centres, as torch does."""
    if operator.options["alignCorners"] == operator.options["halfPixelCenters"]:
        raise ValueError("RESIZE_BILINEAR that aligns neither corners nor the centres of pixels is not supported")
    return bool(operator.options["alignCorners"])


def _convolution(operator: tflite.Operator, inputs: list[tflite.Tensor]) -> nn.Sequential:
    image, kernel, *bias = inputs
    options = operator.options
    weight = torch.from_numpy(tflite.real_values(kernel))  # (out, height, width, in); depthwise (1, height, width, out)
    groups = image.shape[3] // max(1, weight.shape[3])
    if operator.kind == "DEPTHWISE_CONV_2D":
        weight, groups = weight.permute(3, 1, 2, 0), image.shape[3]
    weight = weight.permute(0, 3, 1, 2)
    stride, dilation = _sizes(operator, "strideH", "strideW"), _sizes(operator, "dilationHFactor", "dilationWFactor")
    before, after = _padding(options["padding"], image.shape[1:3], weight.shape[2:], stride, dilation)
    symmetric = before if before == after else (0, 0)
    convolution = nn.Conv2d(
        image.shape[3], weight.shape[0], weight.shape[2:], stride, symmetric, dilation, groups, device="meta"
    )
    if weight.shape != convolution.weight.shape:
        raise ValueError(
            f"the kernel of {operator.kind} of shape {kernel.shape} does not fit {image.shape[3]} channels"
        )
    convolution.weight = nn.Parameter(weight.contiguous())
    values = tflite.real_values(bias[0]) if bias else np.zeros(len(weight), np.float32)
    if values.shape != (len(weight),):
        raise ValueError(f"the bias of {operator.kind} of shape {values.shape} does not fit {len(weight)} filters")
    convolution.bias = nn.Parameter(torch.from_numpy(values))
    steps = [convolution, _activation(operator)]
    if before != after:
        steps.insert(0, nn.ZeroPad2d((before[1], after[1], before[0], after[0])))
    return nn.Sequential(*steps)


def _sizes(operator: tflite.Operator, *names: str) -> tuple[int, ...]:
    sizes = tuple(operator.options[name] for name in names)
    if min(sizes) < 1:
        raise ValueError(
            f"{operator.kind} has {names[0]}={sizes[0]} and {names[1]}={sizes[1]}; download the file again"
        )
    return sizes


def _padding(kind: str, size, kernel, stride, dilation) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding (rows, columns) before and after a map; with SAME the output has ceil(size / stride) of either."""
    if kind == "VALID":
        return (0, 0), (0, 0)
    total = [
        max(0, (-(-length // step) - 1) * step + spread * (taps - 1) + 1 - length)
        for length, taps, step, spread in zip(size, kernel, stride, dilation, strict=True)
    ]
    return tuple(both // 2 for both in total), tuple(both - both // 2 for both in total)


def _activation(operator: tflite.Operator) -> nn.Module:
    name = operator.options["fusedActivationFunction"]
    if name not in _ACTIVATIONS:
        raise ValueError(f"{operator.kind} with activation {name} is not supported")
    return _ACTIVATIONS[name]()


def _as_map(tensor: tflite.Tensor) -> Tensor:
    """A stored operand, a scalar or one value per channel, in a shape that broadcasts with maps (B, C, H, W)."""
    values = torch.from_numpy(tflite.real_values(tensor))
    if values.numel() not in (1, *values.shape[-1:]):
        raise ValueError(f"tensor {tensor.name!r} of shape {tensor.shape} is neither a scalar nor a value per channel")
    if not values.isfinite().all():
        raise ValueError(f"tensor {tensor.name!r} has values that are not finite; download the file again")
    return values.reshape(1, -1, 1, 1)


def _integers(tensor: tflite.Tensor) -> list[int]:
    if tensor.stored is None:
        raise ValueError(f"tensor {tensor.name!r} has no stored values")
    return tensor.stored.ravel().tolist()


def _arithmetic(*values: Tensor, operation, constants: list[Tensor | None], activation: nn.Module) -> Tensor:
    rest = iter(values)
    first, second = (next(rest) if constant is None else constant.to(values[0]) for constant in constants)
    return activation(operation(first, second))


def _average_pool(values: Tensor, window, stride, padding, activation: nn.Module) -> Tensor:
    """Mean over the part of a window inside the map."""
    (top, left), (bottom, right) = padding
    if not any((top, left, bottom, right)):
        return activation(F.avg_pool2d(values, window, stride))
    seen = F.pad(torch.ones_like(values[:1, :1]), (left, right, top, bottom))
    values = F.pad(values, (left, right, top, bottom))
    return activation(F.avg_pool2d(values, window, stride) / F.avg_pool2d(seen, window, stride))


def _max_pool(values: Tensor, window, stride, padding, activation: nn.Module) -> Tensor:
    (top, left), (bottom, right) = padding
    values = F.pad(values, (left, right, top, bottom), value=-torch.inf)
    return activation(F.max_pool2d(values, window, stride))


def _space_to_batch(values: Tensor, block: list[int], padding: list[int]) -> Tensor:
    """Make an image of every block[0]-th row and block[1]-th column: files express dilated convolutions with it."""
    top, bottom, left, right = padding
    values = F.pad(values, (left, right, top, bottom))
    batch, channels, height, width = values.shape
    rows, columns = block
    values = values.reshape(batch, channels, height // rows, rows, width // columns, columns)
    return values.permute(3, 5, 0, 1, 2, 4).reshape(-1, channels, height // rows, width // columns)


def _batch_to_space(values: Tensor, block: list[int], crops: list[int]) -> Tensor:
    rows, columns = block
    _, channels, height, width = values.shape
    values = values.reshape(rows, columns, -1, channels, height, width).permute(2, 3, 4, 0, 5, 1)
    values = values.reshape(-1, channels, height * rows, width * columns)
    top, bottom, left, right = crops
    return values[..., top : height * rows - bottom, left : width * columns - right]


def _concatenate(*values: Tensor) -> Tensor:
    return torch.cat(values, 1)
