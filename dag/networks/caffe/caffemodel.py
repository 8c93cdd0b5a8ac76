"""Read the weights of a caffemodel file and put them into a network.

A caffemodel is a message of Protocol Buffers: a sequence of fields, each with a key (field number and wire
type), which may hold further messages.  Only the fields that carry weights are read; their numbers are
those of Caffe's `caffe.proto`.  The file is mapped into memory and the weights are copied once, into the
network.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor, nn

_VARINT, _64_BIT, _BYTES, _32_BIT = 0, 1, 2, 5


def _key(number: int, wire_type: int) -> int:
    return number << 3 | wire_type


# Key of a layer in NetParameter: keys of name and blob in the layer (LayerParameter, V1LayerParameter).
_LAYERS = {
    _key(100, _BYTES): (_key(1, _BYTES), _key(7, _BYTES)),
    _key(2, _BYTES): (_key(4, _BYTES), _key(6, _BYTES)),
}
# BlobProto
_LEGACY_SHAPE = [_key(number, _VARINT) for number in (1, 2, 3, 4)]  # num, channels, height, width
_SHAPE = _key(7, _BYTES)
_DIMENSIONS = (_key(1, _BYTES), _key(1, _VARINT))
_NUMBERS = {  # packed and one by one
    _key(5, _BYTES): "<f4",
    _key(5, _32_BIT): "<f4",
    _key(8, _BYTES): "<f8",
    _key(8, _64_BIT): "<f8",
}


def read_blobs(path: Path) -> dict[str, list[np.ndarray]]:
    """Read all blobs of a caffemodel, by layer.

    Parameters
    ----------
    path : Path
        A file of Caffe's current format or of its previous one (V1).

    Returns
    -------
    dict of str to list of ndarray
        Layer name -> its blobs in Caffe's order, float32, with the shapes of the file; an empty list for a
        layer without weights.  Packed float32 blobs are read-only views of the file and keep it open.

    Raises
    ------
    ValueError
        If the file is not a caffemodel, is truncated or damaged, has no weights, or has two layers
        of one name with weights.
    """
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        blobs = _network(data)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as a caffemodel ({error}); download it again") from error
    if not any(blobs.values()):
        raise ValueError(f"{path}: there is no layer with weights; give a caffemodel")
    return blobs


def load(
    network: nn.Module, path: Path, rename: Mapping[str, str] | None = None, ignore: str | None = None
) -> nn.Module:
    """Copy the blobs of a caffemodel into a network, by Caffe's layer names.

    A module with parameters or persistent buffers of its own corresponds to the layer whose name is the last
    part of the module's dotted name.  Blobs are copied in the order in which the tensors are registered: weight and
    bias in torch's layers, as in Caffe's.  Blobs of inner products and of convolutions fit each other if
    they have the same numbers of outputs and inputs; leading ones of the legacy format, (1, 1, O, I), are ignored.

    Parameters
    ----------
    network : nn.Module
        On the CPU; may be a part of a network whose weights are in several files.
    path : Path
        The caffemodel.
    rename : mapping of str to str, optional
        Module name -> layer name, where the names differ.
    ignore : str, optional
        Regular expression that matches the full names of layers to skip.  Every other layer of the file must
        have a place in the network: an extra layer means that the file belongs to another network, e.g. one that
        scales its skips.

    Returns
    -------
    nn.Module
        The same network.

    Raises
    ------
    ValueError
        If the file cannot be read, a layer is missing or has no place in the network, or a blob does not
        fit.  The network is unchanged then.
    """
    modules = _modules(network, rename or {})
    blobs = {name: arrays for name, arrays in read_blobs(path).items() if arrays}
    kind = type(network).__name__
    advice = f"give the caffemodel made for {kind}"
    for name, tensors in modules.items():
        if name not in blobs:
            raise ValueError(f"{path}: layer {name!r} is missing or has no weights; {advice}")
        if len(blobs[name]) != len(tensors):
            raise ValueError(f"{path}: layer {name!r} has {len(blobs[name])} blobs instead of {len(tensors)}; {advice}")
        for number, (blob, tensor) in enumerate(zip(blobs[name], tensors, strict=True)):
            if not _fits(blob.shape, tuple(tensor.shape)):
                raise ValueError(
                    f"{path}: blob {number} of layer {name!r} has the shape {blob.shape} "
                    f"instead of {tuple(tensor.shape)}; {advice}"
                )
    for name in blobs:
        if name not in modules and (ignore is None or not re.fullmatch(ignore, name)):
            raise ValueError(f"{path}: layer {name!r} has weights but no place in {kind}; {advice}")
    for name, tensors in modules.items():
        for blob, tensor in zip(blobs[name], tensors, strict=True):
            tensor.numpy()[...] = blob.reshape(tensor.shape)
    return network


def _modules(network: nn.Module, rename: Mapping[str, str]) -> dict[str, list[Tensor]]:
    """Layer name -> the tensors for its blobs, which share memory with the network."""
    modules = {}
    for path, module in network.named_modules():
        name = path.rpartition(".")[2]
        name = rename.get(name, name)
        tensors = [tensor for key, tensor in module.state_dict().items() if "." not in key]
        if tensors and name in modules:
            raise ValueError(f"two modules of {type(network).__name__} have the layer name {name!r}; rename one")
        if tensors:
            modules[name] = tensors
    return modules


def _fits(blob: tuple[int, ...], tensor: tuple[int, ...]) -> bool:
    blob, tensor = _without_leading_ones(blob), _without_leading_ones(tensor)
    if blob == tensor:
        return True
    same = math.prod(blob) == math.prod(tensor) and blob[:1] == tensor[:1]
    return same and 2 in (len(blob), len(tensor))  # an inner product


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape


def _network(data: memoryview) -> dict[str, list[np.ndarray]]:
    blobs = {}
    name = None
    try:
        for key, begin, end in _fields(data, 0, len(data)):
            if key in _LAYERS:
                name, arrays = _layer(data, begin, end, *_LAYERS[key])
                if arrays and blobs.get(name):
                    raise ValueError(f"two layers {name!r}")
                blobs[name] = arrays or blobs.get(name, [])
    except ValueError as error:
        raise ValueError(f"{error}" if name is None else f"{error}, after layer {name!r}") from error
    return blobs


def _layer(data: memoryview, begin: int, end: int, name_key: int, blob_key: int) -> tuple[str, list[np.ndarray]]:
    name, spans = "", []
    for key, first, last in _fields(data, begin, end):
        if key == name_key:
            name = bytes(data[first:last]).decode()
        elif key == blob_key:
            spans.append((first, last))
    try:
        return name, [_blob(data, *span) for span in spans]
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error


def _blob(data: memoryview, begin: int, end: int) -> np.ndarray:
    shape, legacy = [], {}
    chunks = {"<f4": [], "<f8": []}
    for key, first, last in _fields(data, begin, end):
        if key in _LEGACY_SHAPE:
            legacy[key] = _varint(data, first, last)[0]
        elif key == _SHAPE:
            shape += _dimensions(data, first, last)
        elif key in _NUMBERS:
            found = chunks[_NUMBERS[key]]
            if key & 7 == _BYTES:
                found.append(data[first:last])
            else:  # single values are collected: a view of each would take 50 times the memory
                if not found or not isinstance(found[-1], bytearray):
                    found.append(bytearray())
                found[-1] += data[first:last]
    if legacy:  # takes precedence, as in Caffe
        shape = [legacy.get(key, 0) for key in _LEGACY_SHAPE]
    kind = "<f8" if chunks["<f8"] else "<f4"
    arrays = [np.frombuffer(chunk, kind) for chunk in chunks[kind]] or [np.empty(0, kind)]
    values = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if len(values) != math.prod(shape):
        raise ValueError(f"{len(values)} values do not fill a blob of the shape {tuple(shape)}")
    return values.astype(np.float32, copy=False).reshape(shape)


def _dimensions(data: memoryview, begin: int, end: int) -> list[int]:
    dimensions = []
    for key, first, last in _fields(data, begin, end):
        while key in _DIMENSIONS and first < last:
            dimension, first = _varint(data, first, last)
            dimensions.append(dimension)
    return dimensions


def _fields(data: memoryview, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Key, begin and end of every field of the message in data[begin:end]."""
    while begin < end:
        start = begin
        key, begin = _varint(data, begin, end)
        wire_type = key & 7
        if key >> 3 == 0 or wire_type not in (_VARINT, _64_BIT, _BYTES, _32_BIT):
            raise ValueError(f"no field begins at byte {start}")
        if wire_type == _BYTES:
            length, begin = _varint(data, begin, end)
            last = begin + length
        elif wire_type == _VARINT:
            last = _varint(data, begin, end)[1]
        else:
            last = begin + (8 if wire_type == _64_BIT else 4)
        if last > end:
            raise ValueError(f"the field at byte {start} ends at byte {last}, beyond the end of its message, {end}")
        yield key, begin, last
        begin = last


def _varint(data: memoryview, begin: int, end: int) -> tuple[int, int]:
    """The varint at data[begin], 7 bits per byte, lowest first, and the position after it."""
    value = 0
    for position in range(begin, min(end, begin + 10)):
        value |= (data[position] & 0x7F) << 7 * (position - begin)
        if data[position] < 0x80:
            return value, position + 1
    raise ValueError(f"the number at byte {begin} does not end")
