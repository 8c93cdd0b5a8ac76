"""Readers of image sets: one interface to images and ground truth in all formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dag.data import coco, image_files, image_sets, masks, voc
from dag.data.classes import VOC, VOID, ClassList, Match
from dag.data.image_sets import ImageError
from dag.data.truths import Objects, for_network

Image = tuple[str | Path, str]  # root and image id


class Reader(ABC):
    """An image set.  Subclasses implement one format each; `reader_of` selects one.

    Parameters
    ----------
    settings : mapping
        name, classes, parts, size, sha256, see `dag.workflow.jobs.image_set`.
    """

    annotated = True  # whether there is a truth for any task

    def __init__(self, settings: Mapping):
        self.settings, self.name, self.parts = settings, settings.get("name", ""), settings.get("parts", [])
        self.classes = ClassList.of(settings["classes"]) if "classes" in settings else VOC

    def images(self, repeated: bool = False) -> list[tuple[Path, str]]:
        """Its images; raises `ValueError` as `dag.data.image_sets.read_image_set`."""
        return image_sets.read_image_set(
            self.parts,
            self.settings["size"],
            self.settings["sha256"],
            name=self.name,
            repeated=repeated,
            read=self.ids,
        )

    def ids(self, part: Mapping) -> list[str]:
        """Ids of the images of one part, in order."""
        return image_sets.read_ids(part["list"])

    @abstractmethod
    def files(self, kind: str, image: Image) -> list[Path]:
        """Files of an image: the "image" itself, or its truth for "segmentation" or "detection"."""

    def image(self, image: Image) -> NDArray[np.float32]:
        """RGB (3, H, W) in [0, 255], in the order in which pixels are stored: an EXIF orientation is ignored."""
        with _of_one_image():
            return image_files.read_picture(self.files("image", image)[0])

    def size(self, image: Image) -> tuple[int, int]:
        """Height and width, from the header of the file."""
        with _of_one_image():
            return image_files.picture_size(self.files("image", image)[0])

    def truth(self, task: str, image: Image) -> NDArray[np.uint8] | Objects | None:
        """Label map or objects, in ids of `classes`; None where the format has none: then the clean prediction counts.

        Raises
        ------
        ImageError
            If it cannot be read, or the image set has none for this task.
        """
        with _of_one_image():
            return self._truth(task, image)

    @abstractmethod
    def has(self, task: str, image: Image) -> bool:
        """Whether an image has a truth for a task."""

    @abstractmethod
    def _truth(self, task: str, image: Image) -> NDArray[np.uint8] | Objects | None:
        """`truth`, which turns a `ValueError` into an `ImageError`."""


class _Voc(Reader):
    """The layout of PASCAL VOC; `root` is the folder of a year, `list` a file of its ImageSets."""

    def files(self, kind: str, image: Image) -> list[Path]:
        return [voc.path_of(kind, *image)]

    def has(self, task: str, image: Image) -> bool:
        return self.files(task, image)[0].is_file()

    def _truth(self, task: str, image: Image) -> NDArray[np.uint8] | Objects:
        read = voc.read_label_map if task == "segmentation" else voc.read_objects
        return read(*image, self.classes)


class _Coco(Reader):
    """A folder of images, `root`, and a JSON file, `list`."""

    def ids(self, part: Mapping) -> list[str]:
        return list(coco.read_json(part["list"]))

    def files(self, kind: str, image: Image) -> list[Path]:
        path, annotated = self._known(image)
        return [Path(image[0], annotated.file_name) if kind == "image" else path]

    def has(self, task: str, image: Image) -> bool:
        annotations = self._known(image)[1].annotations
        return task == "detection" or all(one.get("segmentation") for one in annotations)

    def _truth(self, task: str, image: Image) -> NDArray[np.uint8] | Objects:
        read = coco.label_map if task == "segmentation" else coco.objects
        return read(*self._known(image), self.size(image), self.classes)

    def _known(self, image: Image) -> tuple[Path, coco.Annotated]:
        root, image_id = image
        for part in self.parts:
            if Path(part["root"]) == Path(root) and image_id in (found := coco.read_json(part["list"])):
                return Path(part["list"]), found[image_id]
        raise ValueError(f"image {image_id} is in no file with annotations of {self.name}")


class _Images(Reader):
    """A folder of images, `root`, of which a `list` may choose some; there is no truth."""

    annotated = False

    def ids(self, part: Mapping) -> list[str]:
        return image_files.names(part["root"]) if part["list"] == part["root"] else super().ids(part)

    def files(self, kind: str, image: Image) -> list[Path]:
        return [image_files.found(*image)] if kind == "image" else []

    def has(self, task: str, image: Image) -> bool:
        return False

    def _truth(self, task: str, image: Image) -> None:
        return None


class _Masks(_Images):
    """The same with a folder `masks` of label maps, PNG files of the same names."""

    annotated = True

    @cached_property
    def _folders(self) -> dict[Path, str]:
        return {Path(part["root"]): part["masks"] for part in self.parts}

    def files(self, kind: str, image: Image) -> list[Path]:
        if kind == "segmentation":
            return [image_files.found(self._folders[Path(image[0])], image[1], ".png")]
        return super().files(kind, image)

    def has(self, task: str, image: Image) -> bool:
        return task == "segmentation"

    def _truth(self, task: str, image: Image) -> NDArray[np.uint8]:
        if task == "detection":
            raise ValueError(f"{self.name} has label maps and no boxes; give detectors an image set of another format")
        return masks.read_mask(self.files(task, image)[0], self.files("image", image)[0], self.classes)


FORMATS: dict[str, type[Reader]] = {"voc": _Voc, "coco": _Coco, "masks": _Masks, "images": _Images}
VOC_LAYOUT = _Voc({})


def reader_of(settings: Mapping) -> Reader:
    """The reader of an image set by its `format`, "voc" if it has none; `settings` as of `Reader`."""
    return FORMATS[settings.get("format", "voc")](settings)


def check(
    reader: Reader, images: Iterable[Image], task: str, known: Collection[int], match: Match | None = None
) -> None:
    """Read the size and the truth of every image, to find errors before a long job.

    Parameters
    ----------
    reader : Reader
    images : iterable of (root, image id)
    task : str
        "segmentation" or "detection".
    known : collection of int
        Class ids of the network's columns.
    match : Match, optional
        Of the classes of the network and of the image set; classes unknown to the network are allowed.

    Raises
    ------
    ImageError
        If a file cannot be read, or an image shows a class of the network's list for which it has no column.
    """
    for image in images:
        reader.size(image)
        truth = reader.truth(task, image)
        if truth is None:
            continue
        translated = truth if match is None else for_network(truth, match)
        shown = np.unique(getattr(translated, "labels", translated))
        missing = set(shown.tolist()) - {*known, VOID}
        if missing:
            back = range(len(reader.classes.names)) if match is None else match.truth
            names = [name for name, label in zip(reader.classes.names, back, strict=True) if label in missing]
            raise ImageError(
                f"{reader.files(task, image)[0]}: shows {' and '.join(names)}, which the network does not know; choose "
                "another network, or an image set without that"
            )


def count_pixels(reader: Reader, images: Iterable[Image], match: Match | None = None) -> dict[int, int]:
    """Pixels of every class of a network (by default the image set's) in the label maps of images, void left out."""
    counts = np.zeros(256, np.int64)
    for image in images:
        truth = reader.truth("segmentation", image)
        counts += np.bincount((truth if match is None else for_network(truth, match)).ravel(), minlength=256)
    return {int(label): int(counts[label]) for label in np.flatnonzero(counts) if label != VOID}


@contextmanager
def _of_one_image():
    """Turn a ValueError into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(*error.args) from error
