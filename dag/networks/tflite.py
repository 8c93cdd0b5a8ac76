"""Read the graph and the weights of a TFLite file.

A TFLite file is a flatbuffer: tables that find their fields through a list of 16-bit offsets, and
vectors that begin with their length.  The few tables that a convolutional network needs are read
here straight from the bytes; slot numbers and enumerations are those of TensorFlow Lite's
`schema.fbs`, version 3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_DTYPES = {0: "<f4", 2: "<i4", 3: "u1", 4: "<i8", 9: "i1"}

_KINDS = {
    0: "ADD",
    1: "AVERAGE_POOL_2D",
    2: "CONCATENATION",
    3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D",
    23: "RESIZE_BILINEAR",
    56: "ARG_MAX",
    114: "QUANTIZE",
}

_ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")

# option: (slot, format of `struct`, value where the file leaves it out)
_OPTIONS = {
    "ADD": {"activation": (0, "b", 0)},
    "AVERAGE_POOL_2D": {
        "padding": (0, "b", 0),
        "stride_w": (1, "i", 0),
        "stride_h": (2, "i", 0),
        "filter_w": (3, "i", 0),
        "filter_h": (4, "i", 0),
        "activation": (5, "b", 0),
    },
    "CONCATENATION": {"axis": (0, "i", 0), "activation": (1, "b", 0)},
    "CONV_2D": {
        "padding": (0, "b", 0),
        "stride_w": (1, "i", 0),
        "stride_h": (2, "i", 0),
        "activation": (3, "b", 0),
        "dilation_w": (4, "i", 1),
        "dilation_h": (5, "i", 1),
    },
    "DEPTHWISE_CONV_2D": {
        "padding": (0, "b", 0),
        "stride_w": (1, "i", 0),
        "stride_h": (2, "i", 0),
        "depth_multiplier": (3, "i", 0),
        "activation": (4, "b", 0),
        "dilation_w": (5, "i", 1),
        "dilation_h": (6, "i", 1),
    },
    "RESIZE_BILINEAR": {"align_corners": (2, "?", False), "half_pixel_centers": (3, "?", False)},
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the graph; `real_values` gives its numbers.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Images are (batch, height, width, channels).
    scale, zero_point : float, int
        Real value = scale * (stored value - zero_point); 1 and 0 without quantisation.
    stored : ndarray or None
        As in the file; None for what the network computes.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    stored: np.ndarray | None


@dataclass(frozen=True)
class Operator:
    """One step; `inputs` and `outputs` are numbers of tensors, -1 for an absent one."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict


@dataclass(frozen=True)
class Graph:
    """The operators in an order in which they can be executed."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_graph(path: Path) -> Graph:
    """The only subgraph of a TFLite file.

    Raises
    ------
    ValueError
        If the file is not TFLite, is truncated or damaged, has several subgraphs, or quantises a
        tensor per channel.
    """
    data = Path(path).read_bytes()
    if data[4:8] != b"TFL3":
        raise ValueError(f"{path}: not a TFLite file (the identifier TFL3 is missing); download it again")
    try:
        return _graph(data)
    except (struct.error, LookupError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: cannot be read as TFLite ({error}); download it again") from error


def real_values(tensor: Tensor) -> np.ndarray:
    """Dequantised values of a stored tensor, float32, in the tensor's shape."""
    if tensor.stored is None:
        raise ValueError(f"tensor {tensor.name!r} has no stored values")
    return (tensor.scale * (tensor.stored.astype(np.float64) - tensor.zero_point)).astype(np.float32)


def _graph(data: bytes) -> Graph:
    root = _follow(data, 0)
    codes = [_code(data, table) for table in _tables(data, root, 1)]
    subgraphs = _tables(data, root, 2)
    if len(subgraphs) != 1:
        raise ValueError(f"{len(subgraphs)} subgraphs instead of 1")
    buffers = _tables(data, root, 4)
    return Graph(
        tensors=tuple(_tensor(data, table, buffers) for table in _tables(data, subgraphs[0], 0)),
        operators=tuple(_operator(data, table, codes) for table in _tables(data, subgraphs[0], 3)),
        inputs=_integers(data, subgraphs[0], 1),
        outputs=_integers(data, subgraphs[0], 2),
    )


def _code(data: bytes, table: int) -> int:
    # Codes above 127 did not fit the first, 8-bit field; the larger of the two counts.
    return max(_number(data, table, 0, "b", 0), _number(data, table, 3, "i", 0))


def _tensor(data: bytes, table: int, buffers: list[int]) -> Tensor:
    name = _vector(data, table, 3, "u1").tobytes().decode(errors="replace")
    shape = _integers(data, table, 0)
    code = _number(data, table, 1, "b", 0)
    if code not in _DTYPES:
        raise ValueError(f"tensor {name!r} has element type {code}, which is not known here")
    scale, zero_point = np.empty(0), np.empty(0)
    quantization = _field(data, table, 4)
    if quantization is not None:
        quantization = _follow(data, quantization)
        scale = _vector(data, quantization, 2, "<f4")
        zero_point = _vector(data, quantization, 3, "<i8")
    if len(scale) > 1 or len(zero_point) > 1:
        raise ValueError(f"tensor {name!r} is quantised per channel, which is not supported")
    values = _vector(data, buffers[_number(data, table, 2, "I", 0)], 0, "u1")
    return Tensor(
        name=name,
        shape=shape,
        scale=float(scale[0]) if len(scale) else 1.0,
        zero_point=int(zero_point[0]) if len(zero_point) else 0,
        stored=values.view(_DTYPES[code]).reshape(shape) if len(values) else None,
    )


def _operator(data: bytes, table: int, codes: list[int]) -> Operator:
    code = codes[_number(data, table, 0, "I", 0)]
    kind = _KINDS.get(code, f"builtin operator {code}")
    position = _field(data, table, 4)
    options = {}
    for name, (slot, form, default) in _OPTIONS.get(kind, {}).items():
        options[name] = default if position is None else _number(data, _follow(data, position), slot, form, default)
    if "padding" in options:
        options["padding"] = ("SAME", "VALID")[options["padding"]]
    if "activation" in options:
        options["activation"] = _ACTIVATIONS[options["activation"]]
    return Operator(kind, _integers(data, table, 1), _integers(data, table, 2), options)


def _unpack(data: bytes, position: int, form: str):
    if position < 0:  # struct would count from the end
        raise ValueError(f"a reference points to byte {position}")
    return struct.unpack_from("<" + form, data, position)[0]


def _follow(data: bytes, position: int) -> int:
    return position + _unpack(data, position, "I")


def _field(data: bytes, table: int, slot: int) -> int | None:
    """Position of a field; None where the file leaves it out."""
    offsets = table - _unpack(data, table, "i")
    if 4 + 2 * slot >= _unpack(data, offsets, "H"):
        return None
    offset = _unpack(data, offsets + 4 + 2 * slot, "H")
    return table + offset if offset else None


def _number(data: bytes, table: int, slot: int, form: str, default):
    position = _field(data, table, slot)
    return default if position is None else _unpack(data, position, form)


def _vector(data: bytes, table: int, slot: int, dtype: str) -> np.ndarray:
    position = _field(data, table, slot)
    if position is None:
        return np.empty(0, dtype)
    position = _follow(data, position)
    length = _unpack(data, position, "I")
    if position + 4 + length * np.dtype(dtype).itemsize > len(data):
        raise ValueError(f"{length} values are announced at byte {position}, but the file ends at {len(data)}")
    return np.frombuffer(data, dtype, length, position + 4)


def _integers(data: bytes, table: int, slot: int) -> tuple[int, ...]:
    return tuple(_vector(data, table, slot, "<i4").tolist())


def _tables(data: bytes, table: int, slot: int) -> list[int]:
    start = _field(data, table, slot)
    if start is None:
        return []
    offsets = _vector(data, table, slot, "<u4")
    return [_follow(data, _follow(data, start) + 4 + 4 * row) for row in range(len(offsets))]
