"""Read the graph and the weights of a TFLite file, with the classes that LiteRT generates from its schema."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_DTYPES = {
    schema.TensorType.FLOAT32: "<f4",
    schema.TensorType.FLOAT16: "<f2",
    schema.TensorType.INT32: "<i4",
    schema.TensorType.INT64: "<i8",
    schema.TensorType.UINT8: "u1",
    schema.TensorType.INT8: "i1",
}


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


_KINDS = _names(schema.BuiltinOperator)
# Options whose values are numbers of an enumeration.
_NAMED = {"padding": _names(schema.Padding), "fusedActivationFunction": _names(schema.ActivationFunctionType)}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the graph; `real_values` gives its numbers.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Images are (batch, height, width, channels).
    dtype : str
        As NumPy writes it.
    scale, zero_point : float, int
        Real value = scale * (stored value - zero_point); 1 and 0 without quantisation.
    stored : ndarray or None
        As in the file; None for what the network computes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int
    stored: np.ndarray | None


@dataclass(frozen=True)
class Operator:
    """One step.

    Attributes
    ----------
    kind : str
        Name in the schema's enumeration of built-in operators.
    inputs, outputs : tuple of int
        Numbers of tensors, -1 for an absent one.
    options : dict
        Fields of the operator's options in the schema, with the names of `padding` and `fusedActivationFunction`.
    """

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
        If the file is not TFLite, is truncated or damaged, has several subgraphs, stores weights sparsely or outside
        the file, or quantises a tensor per channel.
    """
    data = Path(path).read_bytes()
    if data[4:8] != b"TFL3":
        raise ValueError(f"{path}: not a TFLite file (the identifier TFL3 is missing); download it again")
    try:
        model = schema.ModelT.InitFromPackedBuf(data)
        if len(model.subgraphs) != 1:
            raise ValueError(f"{len(model.subgraphs)} subgraphs instead of 1")
        graph = model.subgraphs[0]
        return Graph(
            tensors=tuple(_tensor(tensor, model.buffers) for tensor in graph.tensors),
            operators=tuple(_operator(operator, model.operatorCodes) for operator in graph.operators),
            inputs=_integers(graph.inputs),
            outputs=_integers(graph.outputs),
        )
    except Exception as error:  # the generated code follows the offsets of a damaged file wherever they lead
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: cannot be read as TFLite ({reason}); download it again") from error


def real_values(tensor: Tensor) -> np.ndarray:
    """Dequantised values of a stored tensor, float32, in the tensor's shape."""
    if tensor.stored is None:
        raise ValueError(f"tensor {tensor.name!r} has no stored values")
    with np.errstate(
        all="ignore"
    ):  # weights of a damaged file that are not finite are refused when the network is built
        return (tensor.scale * (tensor.stored.astype(np.float64) - tensor.zero_point)).astype(np.float32)


def _tensor(tensor: schema.TensorT, buffers: list[schema.BufferT]) -> Tensor:
    name = (tensor.name or b"").decode(errors="replace")
    if tensor.type not in _DTYPES:
        raise ValueError(f"tensor {name!r} has element type {tensor.type}, which is not known here")
    if tensor.sparsity is not None or tensor.externalBuffer:
        raise ValueError(f"tensor {name!r} is sparse or stored in another file, which is not supported")
    quantization = tensor.quantization or schema.QuantizationParametersT()
    scale, zero_point = (
        np.ravel([] if part is None else part) for part in (quantization.scale, quantization.zeroPoint)
    )
    if len(scale) > 1 or len(zero_point) > 1:
        raise ValueError(f"tensor {name!r} is quantised per channel, which is not supported")
    shape, values = _integers(tensor.shape), buffers[tensor.buffer].data
    return Tensor(
        name=name,
        shape=shape,
        dtype=_DTYPES[tensor.type],
        scale=float(scale[0]) if len(scale) else 1.0,
        zero_point=int(zero_point[0]) if len(zero_point) else 0,
        stored=None if values is None or not len(values) else values.view(_DTYPES[tensor.type]).reshape(shape),
    )


def _operator(operator: schema.OperatorT, codes: list[schema.OperatorCodeT]) -> Operator:
    code = codes[operator.opcodeIndex]
    # Numbers above 127 did not fit the first, 8-bit field; the larger of the two counts.
    number = max(code.deprecatedBuiltinCode, code.builtinCode)
    options = dict(vars(operator.builtinOptions)) if operator.builtinOptions is not None else {}
    for name in options.keys() & _NAMED.keys():
        options[name] = _NAMED[name][options[name]]
    return Operator(
        _KINDS.get(number, f"operator {number}"), _integers(operator.inputs), _integers(operator.outputs), options
    )


def _integers(values: np.ndarray | None) -> tuple[int, ...]:
    return () if values is None else tuple(np.asarray(values).tolist())
