"""Read the two files of a Darknet network: the cfg (text) and the weights (binary).

Darknet itself ignores unknown options and parses values with `atoi`.  Here every option is either read, listed as
relevant only to training, or rejected, because ignoring it could silently change the output.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Upper bound of sizes, strides and numbers of filters; products of a few of them fit into 64 bits.
LARGEST = 65535


@dataclass(frozen=True)
class Section:
    """One section of a cfg file.

    Attributes
    ----------
    kind : str
        Name in brackets.
    line : int
        Line of the brackets, from 1.
    options : dict
        Value of every option, as text.
    """

    kind: str
    line: int
    options: dict[str, str]

    def refuse_unknown(self, read: str, training: str, neutral: dict[str, str]) -> None:
        """Raise a ValueError for an unsupported option that could change the output.

        Parameters
        ----------
        read, training : str
            Space-separated names of the options that the caller reads and of those that affect only training.
        neutral : dict
            For a value, the space-separated names of options that have no effect at it and are unsupported otherwise.
        """
        harmless = {name: value for value, names in neutral.items() for name in names.split()}
        for name, value in self.options.items():
            if name in read.split() or name in training.split():
                continue
            if name not in harmless:
                raise ValueError(f"option {name} is not supported")
            if value != harmless[name]:
                raise ValueError(f"option {name}={value[:40]} is not supported, only {name}={harmless[name]}")

    def text(self, name: str, default: str) -> str:
        return self.options.get(name, default)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` to `LARGEST`."""
        (value, *more) = self.integers(name, None if default is None else str(default))
        if more or not least <= value <= LARGEST:
            raise ValueError(f"option {name}={self.options[name][:40]} is not a number from {least} to {LARGEST}")
        return value

    def integers(self, name: str, default: str | None = None) -> list[int]:
        return [int(number) for number in self._numbers(name, default, r"[+-]?[0-9]{1,9}", "whole numbers")]

    def real(self, name: str, default: float) -> float:
        values = self.reals(name, str(default))
        if len(values) > 1:
            raise ValueError(f"option {name}={self.options[name][:40]} is not a single number")
        return values[0]

    def reals(self, name: str, default: str | None = None) -> list[float]:
        form = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
        values = [float(number) for number in self._numbers(name, default, form, "numbers")]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"option {name} has a number that is too large")
        return values

    def _numbers(self, name: str, default: str | None, form: str, what: str) -> list[str]:
        text = self.options.get(name, default)
        if text is None:
            raise ValueError(f"option {name} is missing")
        numbers = [part.strip() for part in text.split(",")]
        if not numbers[-1] and len(numbers) > 1:  # some published files end lists with a comma
            numbers.pop()
        if not all(re.fullmatch(form, number, re.ASCII) for number in numbers):
            raise ValueError(f"option {name}={text[:40]} is not made of {what}")
        return numbers


def read_cfg(path: Path) -> list[Section]:
    """Sections of a Darknet cfg file; the first one is [net].

    Raises
    ------
    ValueError
        If the file is not a cfg file, or repeats an option within a section.
    """
    sections = []
    for number, line in enumerate(Path(path).read_text(errors="replace").splitlines(), 1):
        line = line.split("#")[0].split(";")[0].strip()
        name, equals, value = (part.strip() for part in line.partition("="))
        if line.startswith("[") and line.endswith("]"):
            sections.append(Section(line[1:-1].strip(), number, {}))
        elif line and (not sections or not equals or name in sections[-1].options):
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is not expected here; give a Darknet cfg file")
        elif line:
            sections[-1].options[name] = value
    if not sections or sections[0].kind not in ("net", "network"):
        raise ValueError(f"{path}: the first section is not [net]; give a Darknet cfg file")
    return sections


def read_weights(path: Path) -> np.ndarray:
    """All numbers of a Darknet weights file, in file order, float32 (K,).

    The header is the version (three int32) and the number of images seen in training, an int64 from version 0.2 on
    and an int32 before (`load_weights_upto` in Darknet's parser.c).

    Raises
    ------
    ValueError
        If the file is too short for its header, has an unknown version, or is not a whole number of float32.
    """
    data = Path(path).read_bytes()
    major, minor = np.frombuffer(data[:8].ljust(8, b"\0"), "<i4").tolist()
    if not (0 <= major < 1000 and 0 <= minor < 1000):
        raise ValueError(f"{path}: {major}.{minor} is not a version of Darknet weights; download the weights again")
    header = 20 if 10 * major + minor >= 2 else 16
    if len(data) < header or (len(data) - header) % 4:
        raise ValueError(
            f"{path}: {len(data)} bytes are not a header and whole float32 numbers; download the weights again"
        )
    return np.frombuffer(data, "<f4", offset=header)
