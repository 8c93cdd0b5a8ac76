"""Lists of classes: the names of the ids in label maps and objects, and of the score columns of networks.

A class id is a position in a list.  A network and an image set each have a list of their own; where they meet, classes
are matched by name (`match`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

# In a label map: a pixel without a true class, and one whose predicted class the image set does not have.
VOID, OTHER = 255, 254
MOST = OTHER  # classes of a label map

# Names of one class in the lists of PASCAL VOC, COCO, ADE20K, Cityscapes and CamVid.
SYNONYMS = (
    ("aeroplane", "airplane"),
    ("motorbike", "motorcycle"),
    ("sofa", "couch"),
    ("tvmonitor", "tv", "television", "television receiver"),
    ("diningtable", "dining table"),
    ("pottedplant", "potted plant"),
    ("sidewalk", "pavement"),
)
_SAME = {name: names[0] for names in SYNONYMS for name in names}

# sRGB of Okabe and Ito's palette but black, which people of any colour vision tell apart; more are chosen by `palette`.
_FIRST = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_VOID_COLOUR, _OTHER_COLOUR = (224, 224, 192), (128, 128, 128)
# What people without red or green cones see of linear RGB: Machado et al., IEEE TVCG 15(6), 2009, severity 1.0.
_VISIONS = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
)


def canonical(name: str) -> str:
    """The same text for all names of one class."""
    plain = re.sub(r"[\s_-]+", " ", name).strip().lower()
    return _SAME.get(plain, plain)


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of their ids 0..C-1.

    Attributes
    ----------
    names : tuple of str
    background : str or None
        Name of the background class; None: every class is foreground.
    void : tuple of int or str
        Values in label map files of pixels without a class, and colours, "#rrggbb".
    ids : tuple of int
        Values of the classes in label map files; empty: 0..C-1.
    colours : tuple of str
        "#rrggbb" of every class; empty: those of `palette`.

    Raises
    ------
    ValueError
        If two names mean the same class, or the others do not fit the names.
    """

    names: tuple[str, ...]
    background: str | None = None
    void: tuple[int | str, ...] = ()
    ids: tuple[int, ...] = ()
    colours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.background is not None and self.background not in self.names:
            raise ValueError(f"background {self.background!r} is not among the names; add it, or leave background out")
        known: dict[str, str] = {}
        for name in self.names:
            if canonical(name) in known:
                raise ValueError(f"{known[canonical(name)]!r} and {name!r} mean the same class; name it once")
            known[canonical(name)] = name
        for what, values in (("ids", self.ids), ("colours", self.colours)):
            if values and len(values) != len(self.names):
                raise ValueError(f"{len(values)} {what} for {len(self.names)} names; give one for each, or none")
        both = [*{*self.values, *self.colours} & {*self.void}]
        if both or len({*self.values}) < len(self.names):
            raise ValueError(
                f"{both[0]} is both a class and void; take it out of one"
                if both
                else "two classes have the same id; number them differently"
            )

    @classmethod
    def of(cls, entry: Mapping) -> ClassList:
        """The list of an entry of `classes` in the configuration; `names` maps to ids where these are not 0, 1, ..."""
        names = entry["names"]
        return cls(
            tuple(names),
            entry.get("background"),
            tuple(entry.get("void", ())),
            tuple(names.values()) if isinstance(names, Mapping) else (),
            tuple(entry.get("colours", ())),
        )

    @property
    def ground(self) -> int | None:
        """Id of the background."""
        return None if self.background is None else self.names.index(self.background)

    @property
    def foreground(self) -> list[int]:
        """Ids of all other classes."""
        return [label for label in range(len(self.names)) if label != self.ground]

    @property
    def values(self) -> tuple[int, ...]:
        """Values of the classes in label map files."""
        return self.ids or tuple(range(len(self.names)))

    def name(self, label: int) -> str:
        """Name of an id of a label map, including `VOID` and `OTHER`."""
        return self.names[label] if label < len(self.names) else {VOID: "void", OTHER: "other"}[label]

    def find(self, name: str) -> int | None:
        """Id of the class with this name or a synonym of it; None if there is none."""
        return self._ids.get(canonical(name))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {canonical(name): label for label, name in enumerate(self.names)}

    def colour_map(self) -> NDArray[np.uint8]:
        """Colours of all values of a label map, uint8 (256, 3) RGB."""
        colours = np.zeros((max(256, len(self.names)), 3), np.uint8)
        if self.colours:
            colours[: len(self.colours)] = [tuple(bytes.fromhex(colour[1:])) for colour in self.colours]
        else:  # background stays black
            colours[self.foreground] = palette(len(self.foreground))
        colours[OTHER:256] = _OTHER_COLOUR, _VOID_COLOUR
        return colours[:256]


# The list of config/classes.yaml: what networks and image sets have that name no other.
VOC = ClassList(
    (
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
    background="background",
    void=(VOID, "#e0e0c0"),
    colours=(
        "#000000", "#800000", "#008000", "#808000", "#000080", "#800080", "#008080", "#808080", "#400000", "#c00000",
        "#408000", "#c08000", "#400080", "#c00080", "#408080", "#c08080", "#004000", "#804000", "#00c000", "#80c000",
        "#004080",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Match:
    """A network's and an image set's classes, matched by name.

    Attributes
    ----------
    truth : tuple of int or None
        For each id of the image set the id of the network; None where the network does not know the class.
    seen : tuple of int or None
        For each id of the network the id of the image set.
    ground : int or None
        Id of the background in the image set, if both have one.
    """

    truth: tuple[int | None, ...]
    seen: tuple[int | None, ...]
    ground: int | None = None

    @property
    def unknown(self) -> list[int]:
        """Ids of the image set whose classes the network does not know."""
        return [label for label, known in enumerate(self.truth) if known is None]


def match(network: ClassList, image_set: ClassList) -> Match:
    """Match the classes of a network with those of an image set.

    Backgrounds match whatever they are called.

    Raises
    ------
    ValueError
        If they have no class in common but background.
    """

    def found(classes: ClassList, other: ClassList, label: int) -> int | None:
        return classes.ground if label == other.ground else classes.find(other.names[label])

    truth = tuple(found(network, image_set, label) for label in range(len(image_set.names)))
    seen = tuple(found(image_set, network, label) for label in range(len(network.names)))
    if all(truth[label] is None for label in image_set.foreground):
        raise ValueError(
            f"they have no class in common: the network knows {listed(network)}, the image set {listed(image_set)}; "
            "choose another network, or name the classes alike"
        )
    return Match(truth, seen, None if network.ground is None else image_set.ground)


def listed(classes: ClassList, most: int = 8) -> str:
    """The first names of a list, for messages."""
    more = len(classes.names) - most
    return ", ".join(classes.names[:most]) + (f" and {more} more" if more > 0 else "")


@cache
def palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours for classes on black, RGB in 0..255, distinguishable with any colour vision as far as possible.

    The colours of Okabe and Ito come first; each further one is the colour of a grid with the largest minimum
    difference from all before it, over all kinds of colour vision.
    """
    first = np.array([tuple(bytes.fromhex(colour[1:])) for colour in _FIRST])
    levels = np.linspace(32, 255, 8).round().astype(int)
    colours = np.concatenate([first, np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)])
    places = _perceived(colours)
    taken = _perceived(np.array([(0, 0, 0), _VOID_COLOUR, _OTHER_COLOUR]))
    chosen: list[int] = []
    nearest = np.full(len(colours), np.inf)
    for place in taken.swapaxes(0, 1):
        nearest = np.minimum(nearest, _difference(places, place))
    for k in range(min(count, len(colours))):
        chosen.append(k if k < len(first) else int(nearest.argmax()))
        nearest = np.minimum(nearest, _difference(places, places[:, chosen[-1]]))
    return tuple(tuple(colours[chosen[k % len(chosen)]].tolist()) for k in range(count))


def _perceived(colours: NDArray) -> NDArray:
    """CIE L*a*b* (D65) of sRGB colours (N, 3) under every vision, (V, N, 3)."""
    part = colours / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(_VISIONS).swapaxes(1, 2)).clip(0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = seen @ np.array(to_xyz).T / [0.9505, 1, 1.089]
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _difference(places: NDArray, place: NDArray) -> NDArray:
    """The least difference under any vision of colours (V, N, 3) from one (V, 3): (N,)."""
    return np.linalg.norm(places - place[:, None], axis=-1).min(0)
