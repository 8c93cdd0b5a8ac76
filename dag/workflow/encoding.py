"""Binary layout of shards: compressed arrays, parts, and the seal for the bytes without an HDF5 checksum."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

PART_FORMAT = 3
ROW = 1024  # words, see `fletcher32`
SEAL, MAGIC = struct.Struct("<Q32s8s"), b"dag seal"


@dataclass(frozen=True)
class Encoded:
    """An array as the one chunk of its HDF5 dataset.

    Attributes
    ----------
    type : str
        numpy's, with the byte order.
    shape : tuple of int
    chunk : bytes or memoryview
        The array after HDF5's filters: optionally shuffle and deflate, then a Fletcher checksum.
    """

    type: str
    shape: tuple[int, ...]
    chunk: bytes | memoryview


def encode(array: NDArray, compress: bool) -> Encoded:
    """Compress an array without loss, outside HDF5, whose global lock would block other threads.

    Deflate with Huffman codes alone suits noise: a perturbation of 375 x 500 takes 12 ms and 84 % of its size, against
    40 ms and 86 % with the usual search for repetitions (benchmarks/RESULTS.md).  HDF5 reads both.
    """
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if compress:
        if array.itemsize > 1:
            data = np.ascontiguousarray(data.reshape(-1, array.itemsize).T)
        strategy = zlib.Z_HUFFMAN_ONLY if array.dtype.kind == "f" else zlib.Z_DEFAULT_STRATEGY
        stream = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
        content = stream.compress(data) + stream.flush()
    else:
        content = data.tobytes()
    return Encoded(array.dtype.str, array.shape, content + struct.pack("<I", fletcher32(content)))


def fletcher32(content: bytes) -> int:
    """The checksum of HDF5's Fletcher filter (H5_checksum_fletcher32): sums modulo 65535 of big-endian words.

    The weight of a word in the second sum is the number of words from it to the end; with the words in a table, this
    becomes two plain sums over rows and columns.  Modulo 65535, swapping the bytes of a word multiplies it by 256.
    """
    words = np.frombuffer(content + b"\0" * (len(content) % 2), "<u2")
    table = np.concatenate([np.zeros(-len(words) % ROW, "<u2"), words]).reshape(-1, ROW)
    rows, columns = table.sum(1, dtype=np.uint64), table.sum(0, dtype=np.uint64)
    after = np.arange(len(rows) - 1, -1, -1, dtype=np.uint64) * np.uint64(ROW) % 65535
    low = int(rows.sum())
    high = int((rows * after).sum()) + int((columns * np.arange(ROW, 0, -1, dtype=np.uint64)).sum())
    # ones' complement has two zeros; its addition yields 0 only if all words are 0, else 65535
    low, high = ((256 * value - 1) % 65535 + 1 if value else 0 for value in (low, high))
    return high << 16 | low


def store(file: h5py.File, image_id: str, array: Encoded, attributes: Mapping, compressed: bool) -> None:
    """Create the dataset of an image."""
    options = {"chunks": array.shape, "fletcher32": True}
    if compressed:
        options |= {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    empty = 0 in array.shape
    dataset = file.create_dataset(image_id, array.shape, array.type, **({} if empty else options))
    if not empty:
        dataset.id.write_direct_chunk((0,) * len(array.shape), array.chunk)
    dataset.attrs.update(attributes)


class PatientFile(io.FileIO):
    """A file that postpones write errors until it is closed: HDF5 crashes the process when a write fails."""

    failure: OSError | None = None

    def write(self, data) -> int:
        rest = memoryview(data)
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = error
        return size

    def truncate(self, size=None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = error
            return size

    def complain(self) -> None:
        if self.failure:
            raise self.failure


def pack(of: list[str], images: Mapping[str, tuple[Encoded, dict]]) -> list[bytes]:
    """Content of a part: images, id -> (array, attributes); `of` says which shard they belong to.

    It begins with its SHA-256, which detects truncation and flipped bits.
    """
    about = [
        {
            "id": image_id,
            "type": array.type,
            "shape": array.shape,
            "bytes": len(array.chunk),
            "attributes": attributes,
        }
        for image_id, (array, attributes) in images.items()
    ]
    content = [json.dumps({"part": PART_FORMAT, "of": of, "images": about}).encode() + b"\n"]
    content += [array.chunk for array, _ in images.values()]
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return [digest.digest(), *content]


def unpack(path: Path) -> tuple[list[str], dict[str, tuple[Encoded, dict]]]:
    """Content of a part; raises ValueError if its bytes have changed."""
    content = memoryview(path.read_bytes())
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[size:]).digest() != content[:size]:
        raise ValueError(f"{path}: damaged")
    start = content.obj.index(b"\n", size) + 1
    about, images = json.loads(bytes(content[size:start])), {}
    if about.get("part") != PART_FORMAT:
        raise ValueError(f"{path}: of another version")
    for image in about["images"]:
        chunk = content[start : start + image["bytes"]]
        images[image["id"]] = Encoded(image["type"], tuple(image["shape"]), chunk), image["attributes"]
        start += image["bytes"]
    return about["of"], images


def place(dataset: h5py.Dataset) -> tuple[int, int] | None:
    """Offset and length of an array in its file, in bytes; None for an empty array."""
    if math.prod(dataset.shape):
        chunk = dataset.id.get_chunk_info(0)
        return chunk.byte_offset, chunk.size
    return None


def seal(file: BinaryIO, arrays: list[tuple[int, int]]) -> None:
    """Append to an HDF5 file the places of its arrays, in order, and the digest of all other bytes."""
    listed = json.dumps(arrays).encode()
    file.seek(0, os.SEEK_END)
    file.write(listed)
    file.write(SEAL.pack(len(listed), _digest(file, arrays, file.tell()), MAGIC))


def sealed(path: Path) -> bool:
    """Whether a file has a seal; raises RuntimeError, or another error, if the seal does not match."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END) - SEAL.size
        if end < 0:
            return False
        file.seek(end)
        size, digest, magic = SEAL.unpack(file.read())
        if magic != MAGIC:
            return False
        file.seek(end - size)
        if _digest(file, json.loads(file.read(size)), end) != digest:
            raise RuntimeError("wrong checksum")
    return True


def _digest(file: BinaryIO, arrays: list[tuple[int, int]], end: int) -> bytes:
    """SHA-256 of the first `end` bytes of a file without those of arrays."""
    digest, begin = hashlib.sha256(), 0
    for first, size in [*arrays, (end, 0)]:
        if not begin <= first <= end:
            raise RuntimeError("wrong order")
        file.seek(begin)
        digest.update(file.read(first - begin))
        begin = first + size
    return digest.digest()
