"""Check that a file is of the kind that its name says, for files without a published checksum."""

from __future__ import annotations

import re
from pathlib import Path

from dag.data.archives import listed

ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.xz", ".zip")


def what_is_wrong(path: str | Path, name: str) -> str | None:
    """Why a file cannot be stored as `name`, as the end of a sentence; None if it can.

    Archives are listed to their end, Caffe's weights are walked through field by field, and text is decoded.  Of other
    kinds the first bytes are compared.  A name of unknown kind only forbids empty files and web pages.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(1024)
    if not start:
        return "is empty"
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body)\b", start, re.IGNORECASE):
        return "is a web page"
    kind = Path(name).suffix.lower()
    if name.lower().endswith(ARCHIVES):
        try:
            return None if listed(path) else "is an archive without files"
        except ValueError as error:
            return str(error).removeprefix(f"{path} ")
    if kind == ".caffemodel":
        return None if _is_protobuf(path) else "is not a complete file of Caffe's weights"
    if kind in (".txt", ".cfg", ".prototxt"):
        return None if _is_text(path) else "is not text in UTF-8"
    begins = {
        ".pt": start.startswith((b"PK\3\4", b"\x80")),
        ".pth": start.startswith((b"PK\3\4", b"\x80")),
        ".tflite": start[4:8] == b"TFL3",
        ".weights": len(start) > 16 and start[:4] == bytes(4) and start[5:8] == bytes(3),  # version 0.x of Darknet
        ".mat": start.startswith((b"MATLAB 5.0", b"MATLAB 7.3")),
    }
    return None if begins.get(kind, True) else f"does not begin as a {kind} file does"


def _is_text(path: Path) -> bool:
    try:
        return "\0" not in path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False


def _is_protobuf(path: Path) -> bool:
    """Whether a file consists of whole fields of a Protocol Buffers message, without reading what they hold.

    See https://protobuf.dev/programming-guides/encoding/.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:

        def varint() -> int:
            value = 0
            for shift in range(0, 70, 7):
                (byte,) = file.read(1)  # ValueError at the end of the file
                value |= (byte & 127) << shift
                if byte < 128:
                    return value
            raise ValueError

        try:
            while file.tell() < size:
                tag = varint()
                if not tag >> 3:
                    return False
                match tag & 7:
                    case 0:
                        varint()
                    case 1:
                        file.seek(8, 1)
                    case 2:
                        file.seek(varint(), 1)
                    case 5:
                        file.seek(4, 1)
                    case _:
                        return False
            return file.tell() == size
        except (ValueError, OSError):
            return False
