"""Read annotations in COCO format: one JSON file with images, categories, and boxes, polygons or run lengths.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#format-data.  Categories
are matched with the list of classes by name.  Annotations with `iscrowd` are difficult objects and void pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dag.data.classes import VOID, ClassList
from dag.data.truths import Objects

# Tolerated overhang of edges in pixels: annotation tools round.
MARGIN = 1.0


@dataclass(frozen=True)
class Annotated:
    """One image of a JSON file.

    Attributes
    ----------
    file_name : str
    size : (int, int) or None
        Height and width, if the file says them.
    annotations : tuple of dict
        As in the file, with `category`, the name.
    """

    file_name: str
    size: tuple[int, int] | None
    annotations: tuple[dict, ...]


def read_json(path: str | Path) -> dict[str, Annotated]:
    """The images of a file, by image id: the name of the image file without folder and ending, in the file's order.

    Raises
    ------
    ValueError
        If the file is missing or no such JSON; a category has no name; a category, an image or an annotation has an id
        twice; two images have one file name; an annotation is of an image or a category that is not there.
    """
    path = Path(path)
    try:
        state = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: no such file with annotations; correct image_sets") from error
    return _read(path, state.st_mtime_ns, state.st_size)


@cache
def _read(path: Path, *_: int) -> dict[str, Annotated]:
    try:
        content = json.loads(path.read_bytes())
        parts = [content[key] for key in ("categories", "images", "annotations")]
        categories, images, annotations = (_by_id(path, one, part) for one, part in zip(_KINDS, parts, strict=True))
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: not annotations in COCO's form ({reason}); export them again") from error
    for number, category in categories.items():
        if not isinstance(category.get("name"), str) or not category["name"].strip():
            raise ValueError(f"{path}: category {number} has no name; give it one")
    by_image: dict[object, list[dict]] = {number: [] for number in images}
    for number, annotation in annotations.items():
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if image not in images:
            raise ValueError(f"{path}: annotation {number} is of image {image}, which is not there; take it out")
        if category not in categories:
            raise ValueError(f"{path}: annotation {number} is of category {category}, which is not there; add it")
        by_image[image].append(annotation | {"category": categories[category]["name"].strip()})
    found: dict[str, Annotated] = {}
    for number, image in images.items():
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{path}: image {number} has no file_name; give it one")
        if Path(name).stem in found:
            raise ValueError(f"{path}: two images are called {Path(name).stem}, the second is {number}; rename one")
        size = (image["height"], image["width"]) if "height" in image and "width" in image else None
        found[Path(name).stem] = Annotated(name, size, tuple(by_image[number]))
    return found


_KINDS = ("category", "image", "annotation")


def _by_id(path: Path, kind: str, entries: list) -> dict[object, dict]:
    found: dict[object, dict] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or "id" not in entry:
            raise ValueError(f"{path}: {kind} number {position + 1} has no id; give it one")
        if entry["id"] in found:
            raise ValueError(f"{path}: the id {entry['id']} is given to two of kind {kind}; number them differently")
        found[entry["id"]] = dict(entry)
    return found


def objects(path: Path, image: Annotated, size: tuple[int, int], classes: ClassList) -> Objects:
    """The annotated objects of an image of `size` (H, W).

    COCO's boxes are (x, y, width, height) of continuous edges; the last pixel belongs to a box here, so its x_max is
    x + width - 1.  Without a box it is that of the polygons or run lengths.

    Raises
    ------
    ValueError
        If the class, the box or the shape of an annotation cannot be used; it names the file and the annotation.
    """
    boxes, labels, difficult = [], [], []
    for annotation, label in _labelled(path, image, size, classes):
        box = annotation.get("bbox")
        if box is None:
            rows, columns = _mask(path, annotation, size).nonzero()
            if not len(rows):
                raise ValueError(f"{_at(path, annotation)} has neither a box nor a pixel; correct it or take it out")
            edges = [columns.min(), rows.min(), columns.max(), rows.max()]
        else:
            x, y, width, height = _box(path, annotation, box, size)
            edges = [x, y, x + width - 1, y + height - 1]
        boxes.append(edges)
        labels.append(label)
        difficult.append(bool(annotation.get("iscrowd", 0)))
    return Objects(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(difficult, bool))


def label_map(path: Path, image: Annotated, size: tuple[int, int], classes: ClassList) -> NDArray[np.uint8]:
    """The class of every pixel of an image of `size` (H, W), 255 = void.

    Pixels of several classes are void, and so are those of crowds alone.  Pixels of no annotation are background, or
    void where the classes have none.

    Raises
    ------
    ValueError
        As `objects`; also if an annotation is a box alone.
    """
    labels = np.full(size, VOID if classes.ground is None else classes.ground, np.uint8)
    taken, crowds = np.zeros(size, bool), np.zeros(size, bool)
    for annotation, label in _labelled(path, image, size, classes):
        if not annotation.get("segmentation"):
            raise ValueError(
                f"{_at(path, annotation)} is a box without segmentation; use it for detectors, or outline the object"
            )
        mask = _mask(path, annotation, size)
        if annotation.get("iscrowd", 0):
            crowds |= mask
            continue
        labels[mask & taken & (labels != label)] = VOID
        labels[mask & ~taken] = label
        taken |= mask
    labels[crowds & ~taken] = VOID
    return labels


def _labelled(path: Path, image: Annotated, size: tuple[int, int], classes: ClassList) -> Iterable[tuple[dict, int]]:
    """Annotations of an image with their class ids."""
    if image.size not in (None, size):
        raise ValueError(
            f"{path}: image {image.file_name} is {image.size[1]} x {image.size[0]} there and {size[1]} x {size[0]} in "
            "its file; use the image that was annotated"
        )
    for annotation in image.annotations:
        label = classes.find(annotation["category"])
        if label is None or label == classes.ground:
            raise ValueError(
                f"{_at(path, annotation)} is a {annotation['category']!r}, which is none of the classes "
                f"({', '.join(classes.names[label] for label in classes.foreground[:20])}); add it to their list"
            )
        yield annotation, label


def _box(path: Path, annotation: dict, box: object, size: tuple[int, int]) -> list[float]:
    try:
        x, y, width, height = (float(edge) for edge in box)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_at(path, annotation)} has the box {box!r}, not x, y, width, height; correct it") from error
    if not (width > 0 and height > 0):
        raise ValueError(f"{_at(path, annotation)} has the empty box {box}; correct it or take it out")
    if min(x, y) < -MARGIN or x + width > size[1] + MARGIN or y + height > size[0] + MARGIN:
        raise ValueError(f"{_at(path, annotation)} has the box {box} outside the {_words(size)} image; correct it")
    return [x, y, width, height]


def _mask(path: Path, annotation: dict, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of an annotation: polygons, as pycocotools fills them, or run lengths, plain or compressed."""
    shape, at = annotation.get("segmentation"), _at(path, annotation)
    if isinstance(shape, Mapping):
        if list(shape.get("size", ())) != list(size):
            raise ValueError(
                f"{at} has run lengths of size {shape.get('size')}, the image {list(size)}; encode it again"
            )
        counts = shape.get("counts")
        if not isinstance(counts, list | str):
            raise ValueError(f"{at} has run lengths without counts; encode it again")
        counts = _runs(counts) if isinstance(counts, str) else counts
    else:
        _check_polygons(at, shape, size)
        from pycocotools import mask  # compiled, and no other format needs it

        counts = _runs(mask.merge(mask.frPyObjects(shape, *size))["counts"].decode())
    if sum(counts) != size[0] * size[1] or min(counts) < 0:
        raise ValueError(f"{at} has run lengths of {sum(counts)} pixels in all for {_words(size)}; encode it again")
    # runs of pixels outside and inside take turns, down the columns
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size, order="F")


def _check_polygons(at: str, shape: object, size: tuple[int, int]) -> None:
    if not isinstance(shape, list) or not all(isinstance(one, list) and len(one) >= 6 for one in shape or [None]):
        raise ValueError(f"{at} has no polygon of three points or more and no run lengths; outline the object again")
    for polygon in shape:
        points = np.array(polygon[: len(polygon) // 2 * 2], np.float64).reshape(-1, 2)
        if len(polygon) % 2 or not np.isfinite(points).all():
            raise ValueError(f"{at} has a polygon of {len(polygon)} numbers, not of x, y pairs; outline it again")
        if points.min() < -MARGIN or (points > np.array(size[::-1]) + MARGIN).any():
            raise ValueError(f"{at} has a polygon outside the {_words(size)} image; correct it")


def _runs(text: str) -> list[int]:
    """Run lengths of their compressed form.

    Each is a number of base 32, the lowest digit first, with 48 added to every digit and 32 to all but the last; from
    the fourth on it is the difference to the one before the last (pycocotools, `rleToString`).
    """
    counts: list[int] = []
    value, shift = 0, 0
    for digit in text.encode():
        digit -= 48
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (digit >> 4 & 1) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts or [0]


def _at(path: Path, annotation: dict) -> str:
    return f"{path}: annotation {annotation['id']}"


def _words(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
