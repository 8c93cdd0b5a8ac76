"""The layers of a Darknet cfg as torch functions, with the arithmetic of Darknet's C code.

`convolution` makes the only layer with weights; `function` makes all others.  Uses of a layer on which the two Darknet
repositories (pjreddie/darknet and AlexeyAB/darknet) disagree are rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dag.networks.darknet_files import Section

# `normalize_cpu` in Darknet's blas.c.  Dead channels have a variance of almost 0: with 1e-5 the output is off by 0.06.
EPSILON = 1e-6

# Synonyms of section names in Darknet.
ALIASES = {"conv": "convolutional", "max": "maxpool", "avg": "avgpool", "soft": "softmax", "silence": "empty"}

HEADS = ("yolo", "region")

# Options that are read, by kind of layer.
_READ = {
    "convolutional": "batch_normalize filters size stride stride_x stride_y dilation pad padding groups activation",
    "maxpool": "size stride stride_x stride_y padding",
    "local_avgpool": "size stride stride_x stride_y padding",
    "avgpool": "",
    "upsample": "stride scale",
    "reorg": "stride reverse",
    "route": "layers groups group_id",
    "shortcut": "from activation",
    "scale_channels": "from activation",
    "sam": "from activation",
    "activation": "activation",
    "softmax": "groups temperature",
    "dropout": "probability dropblock dropblock_size_rel dropblock_size_abs",
    "empty": "",
    "yolo": "mask anchors classes num scale_x_y new_coords nms_kind beta_nms",
    "region": "anchors classes num coords softmax",
}

# Options that affect only training or GPU scheduling.
_TRAINING = (
    "onlyforward dont_update burnin_update stopbackward train_only_bn learning_rate clip grad_centr stream wait_stream "
    "noloss jitter resize random ignore_thresh truth_thresh iou_thresh iou_thresh_kind cls_normalizer iou_normalizer "
    "obj_normalizer delta_normalizer iou_loss max max_delta label_smooth_eps objectness_smooth focal_loss "
    "counters_per_class show_details angle absolute thresh rescore bias_match log sqrt "
    "coord_scale object_scale noobject_scale mask_scale class_scale"
)

# Unsupported options, by the value at which they have no effect.
_NEUTRAL = {
    "0": "flipped binary xnor bin_output cbn antialiasing coordconv dot reverse sway rotate stretch stretch_sway "
    "assisted_excitation maxpool_depth maxpool_zero_nonmax scale_wh spatial flatten extra background classfix "
    "dontload dontloadscales",
    "1": "alpha beta out_channels",
    "none": "weights_type weights_normalization",
}


class _Function(nn.Module):
    """A function as a layer of an `nn.Sequential`."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.forward = function


def _selu(x: Tensor) -> Tensor:
    return 1.0507 * F.elu(x, 1.6732)


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + (0.797885 * x + 0.035677 * x**3).tanh())


def _hard_mish(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.where(x > -2, x * x / 2 + x, 0 * x))


def _plse(x: Tensor) -> Tensor:
    return torch.where(x < -4, 0.01 * (x + 4), torch.where(x > 4, 0.01 * (x - 4) + 1, 0.125 * x + 0.5))


def _lhtan(x: Tensor) -> Tensor:
    return torch.where(x < 0, 0.001 * x, torch.where(x > 1, 0.001 * (x - 1) + 1, x))


def _stair(x: Tensor) -> Tensor:
    floor = x.floor()
    return torch.where(floor % 2 == 0, (x / 2).floor(), x - floor + (x / 2).floor())


# Darknet's activations.h, with constants rounded as there.
ACTIVATIONS = {
    "linear": nn.Identity,
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "leaky": partial(nn.LeakyReLU, 0.1, inplace=True),
    "revleaky": partial(nn.LeakyReLU, 0.1, inplace=True),
    "relie": partial(nn.LeakyReLU, 0.01, inplace=True),
    "ramp": lambda: _Function(lambda x: x.relu() + 0.1 * x),
    "logistic": nn.Sigmoid,
    "loggy": lambda: _Function(lambda x: 2 * x.sigmoid() - 1),
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "selu": lambda: _Function(_selu),
    "gelu": lambda: _Function(_gelu),
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "hard_mish": lambda: _Function(_hard_mish),
    "hardtan": nn.Hardtanh,
    "lhtan": lambda: _Function(_lhtan),
    "plse": lambda: _Function(_plse),
    "stair": lambda: _Function(_stair),
}


def check(section: Section) -> str:
    """Check the options of a section and return its kind."""
    kind = ALIASES.get(section.kind, section.kind)
    if kind not in _READ:
        raise ValueError(f"this kind of layer is not supported; known are {', '.join(_READ)}")
    section.refuse_unknown(_READ[kind], _TRAINING, _NEUTRAL)
    return kind


def sources(kind: str, section: Section, number: int) -> tuple[int, ...]:
    """Numbers of the input layers of layer `number` (-1: the image); negative numbers in the cfg are relative to it."""
    if kind == "route":
        given = section.integers("layers")
    elif kind in ("shortcut", "scale_channels", "sam"):
        given = section.integers("from")
    else:
        return (number - 1,)
    given = [source if source >= 0 else number + source for source in given]
    if not all(0 <= source < number for source in given):
        raise ValueError("it reads a layer that does not come before it")
    if kind in ("scale_channels", "sam") and len(given) > 1:
        raise ValueError(f"option from={section.options['from'][:40]} is not a single number")
    return tuple(given) if kind == "route" else (number - 1, *given)


def convolution(section: Section, channels: int) -> nn.Sequential:
    """A convolution of `channels` and its activation, on the meta device until `fill` sets its weights."""
    filters, size, groups = (section.integer(name, 1) for name in ("filters", "size", "groups"))
    stride, dilation = _strides(section), section.integer("dilation", 1) if size > 1 else 1
    padding = section.integer("padding", 0, 0)
    if section.integer("pad", 0, 0):
        padding = size // 2
    if dilation > 1 and 2 * padding != size - 1:  # Darknet then allocates the wrong size for its output
        raise ValueError(f"dilation={dilation} with size={size} and a padding of {padding} is not supported")
    if channels % groups or filters % groups:
        raise ValueError(f"{channels} channels and {filters} filters cannot be divided into {groups} groups")
    layer = nn.Conv2d(channels, filters, size, stride, padding * dilation, dilation, groups=groups, device="meta")
    return nn.Sequential(layer, _activation(section, "logistic"))


def fill(layer: nn.Conv2d, section: Section, numbers: np.ndarray, path: Path) -> np.ndarray:
    """Set the weights of a convolution from the front of `numbers`, read from the file `path`; returns the rest.

    Order in the file: biases, then with batch normalisation scales, means, variances, then the kernel (filters,
    channels / groups, height, width).  Batch normalisation is folded into both, in float64.
    """
    shape, normalised = tuple(layer.weight.shape), section.integer("batch_normalize", 0, 0)
    ends = np.cumsum([shape[0]] * (4 if normalised else 1) + [np.prod(shape)])
    if ends[-1] > len(numbers):
        raise ValueError(f"{path} ends before this layer is complete; give the weights made for this cfg")
    bias, *statistics, kernel, rest = np.split(numbers, ends)
    bias, kernel = bias.astype(np.float64), kernel.reshape(shape).astype(np.float64)
    if normalised:
        scale, mean, variance = (part.astype(np.float64) for part in statistics)
        if not (variance + EPSILON > 0).all():
            raise ValueError(f"{path} has a variance of {variance.min():.2g}; give the weights made for this cfg")
        gain = scale / np.sqrt(variance + EPSILON)
        bias, kernel = bias - gain * mean, kernel * gain[:, None, None, None]
    layer.weight = nn.Parameter(torch.from_numpy(kernel).float())
    layer.bias = nn.Parameter(torch.from_numpy(bias).float())
    return rest


def function(kind: str, section: Section, inputs: list[Tensor]) -> Callable[..., Tensor]:
    """The function of a layer without weights; `inputs`, on the meta device, give the shapes of its inputs."""
    channels, height, width = inputs[0].shape[1:]
    if kind == "route":
        groups = section.integer("groups", 1)
        group = section.integer("group_id", 0, 0)
        if group >= groups or any(values.shape[1] % groups for values in inputs):
            raise ValueError(
                f"group_id={group} of groups={groups} does not fit {[values.shape[1] for values in inputs]} channels"
            )
        if any(values.shape[2:] != (height, width) for values in inputs):
            raise ValueError(f"outputs of the shapes {_shapes(inputs)} cannot be joined")
        return partial(_route, groups=groups, group=group)
    if kind == "shortcut":
        if any(values.shape[2:] != (height, width) for values in inputs):  # the two Darknet repositories disagree
            raise ValueError(f"outputs of the shapes {_shapes(inputs)} cannot be added")
        return partial(_shortcut, activation=_activation(section, "linear"))
    if kind in ("scale_channels", "sam"):
        if section.text("activation", "linear") in ("swish", "mish", "hard_mish"):
            raise ValueError(f"activation {section.options['activation']} does nothing in this layer of Darknet")
        scaled = inputs[1].shape[1:]
        if (channels, height, width) != ((scaled[0], 1, 1) if kind == "scale_channels" else scaled):
            raise ValueError(f"outputs of the shapes {_shapes(inputs)} cannot be multiplied")
        return partial(_product, activation=_activation(section, "linear"))
    if kind == "activation":
        return partial(_activated, activation=_activation(section, "linear"))
    if kind == "avgpool":
        return partial(torch.mean, dim=(2, 3), keepdim=True)
    if kind in ("maxpool", "local_avgpool"):
        size = section.integer("size", section.integer("stride", 1))
        padding = section.integer("padding", size - 1, 0)
        if padding - padding // 2 >= size:
            raise ValueError(f"padding={padding} lets a window of {size} cover only padding")
        pool = _max_pool if kind == "maxpool" else _average_pool
        return partial(pool, size=size, stride=_strides(section), padding=padding)
    if kind == "upsample":
        stride, scale = section.integer("stride", 2), section.real("scale", 1)
        return partial(_upsample, stride=stride, scale=scale)
    if kind == "reorg":
        stride, reverse = section.integer("stride", 1), bool(section.integer("reverse", 0, 0))
        if channels % stride**2 or (not reverse and (height % stride or width % stride)):
            raise ValueError(f"{channels} channels of {height} x {width} cannot be rearranged with stride {stride}")
        return partial(_reorg_reverse if reverse else _reorg, stride=stride)
    if kind == "softmax":
        groups, temperature = section.integer("groups", 1), section.real("temperature", 1)
        if inputs[0][0].numel() % groups or temperature <= 0:
            raise ValueError(f"groups={groups} and temperature={temperature} do not fit {_shapes(inputs)}")
        return partial(_softmax, groups=groups, temperature=temperature)
    return _same  # dropout, empty, the heads


def _activation(section: Section, default: str) -> nn.Module:
    name = section.text("activation", default)
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name} is not supported; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def _strides(section: Section) -> tuple[int, int]:
    """(vertical, horizontal)."""
    stride = section.integer("stride", 1)
    return section.integer("stride_y", stride), section.integer("stride_x", stride)


def _shapes(values: list[Tensor]) -> str:
    return " and ".join(" x ".join(map(str, value.shape[1:])) for value in values)


def _route(*values: Tensor, groups: int, group: int) -> Tensor:
    """One group of the channels of every source, concatenated."""
    return torch.cat([value.chunk(groups, 1)[group] for value in values], 1) if groups > 1 else torch.cat(values, 1)


def _shortcut(first: Tensor, *others: Tensor, activation: nn.Module) -> Tensor:
    """Add sources; for different numbers of channels, only over the common ones (`shortcut_cpu`)."""
    for other in others:
        shared = min(first.shape[1], other.shape[1])
        if shared == first.shape[1]:
            first = first + other[:, :shared]
        else:
            first = torch.cat([first[:, :shared] + other, first[:, shared:]], 1)
    return activation(first)


def _activated(values: Tensor, activation: nn.Module) -> Tensor:
    return activation(values.clone())  # it may work in place, and another layer may read `values`


def _product(first: Tensor, second: Tensor, activation: nn.Module) -> Tensor:
    return activation(first * second)


def _max_pool(values: Tensor, size: int, stride: tuple[int, int], padding: int) -> Tensor:
    """`padding` is the total as in Darknet, the larger half right and below; it never is the maximum."""
    near, far = padding // 2, padding - padding // 2
    return F.max_pool2d(F.pad(values, (near, far, near, far), value=-torch.inf), size, stride)


def _average_pool(values: Tensor, size: int, stride: tuple[int, int], padding: int) -> Tensor:
    """Mean over the part of the window inside the map (`forward_local_avgpool_layer`)."""
    near, far = padding // 2, padding - padding // 2
    seen = F.pad(torch.ones_like(values[:1, :1]), (near, far, near, far))
    values = F.pad(values, (near, far, near, far))
    return F.avg_pool2d(values, size, stride) / F.avg_pool2d(seen, size, stride)


def _upsample(values: Tensor, stride: int, scale: float) -> Tensor:
    values = F.interpolate(values, scale_factor=stride, mode="nearest")
    return values if scale == 1 else scale * values


def _reorg(values: Tensor, stride: int) -> Tensor:
    """`reorg_cpu` of YOLOv2: rearrange blocks of stride x stride pixels into channels.

    The C code views a map (C, H, W) as (C / s^2, s H, s W), writes it as (C, H, W),

        out(k, y, x) = in(k mod D, s y + o div s, s x + o mod s),    D = C / s^2, o = k div D,

    and views the result as (s^2 C, H / s, W / s).  Weights were trained with this order.
    """
    batch, channels, height, width = values.shape
    wide = values.reshape(batch, channels // stride**2, height, stride, width, stride)
    moved = wide.permute(0, 3, 5, 1, 2, 4)
    return moved.reshape(batch, channels * stride**2, height // stride, width // stride)


def _reorg_reverse(values: Tensor, stride: int) -> Tensor:
    batch, channels, height, width = values.shape
    deep = values.reshape(batch, stride, stride, channels // stride**2, height, width)
    return deep.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // stride**2, height * stride, width * stride)


def _softmax(values: Tensor, groups: int, temperature: float) -> Tensor:
    """Softmax over all values of an image, or over each of `groups` equal parts of them."""
    return (values.flatten(1).unflatten(1, (groups, -1)) / temperature).softmax(2).reshape(values.shape)


def _same(values: Tensor) -> Tensor:
    return values
