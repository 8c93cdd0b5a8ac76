"""Read a PASCAL VOC tree: images, label maps, objects.

`root` is always the folder of one year, e.g. `VOCdevkit/VOC2007`: the one that contains
`JPEGImages`, `Annotations`, `SegmentationClass` and `ImageSets`.
"""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path

import numpy as np
from PIL import Image

from dag.data.classes import VOC, VOID, ClassList
from dag.data.image_files import found, picture_size, read_picture
from dag.data.image_sets import ImageError, read_ids
from dag.data.masks import read_mask
from dag.data.truths import Objects

CLASSES = VOC.names

# Folders of the files of an image: the image itself, and its ground truth by task.
FILES = {
    "image": "JPEGImages/{}.jpg",
    "segmentation": "SegmentationClass/{}.png",
    "detection": "Annotations/{}.xml",
}


def _of_one_image(read: Callable) -> Callable:
    """Turn the ValueError of a function that reads one image into an ImageError."""

    @wraps(read)
    def reading(*arguments):
        try:
            return read(*arguments)
        except ValueError as error:
            raise ImageError(*error.args) from error

    return reading


def colour_map() -> np.ndarray:
    """The colours of VOC's label maps, uint8 (256, 3) RGB.

    Bits 0, 1, 2 of a label are the highest bits of its red, green and blue, bits 3, 4, 5 the next
    ones, and so on, as in `VOClabelcolormap` of the VOC development kit.
    """
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for place in range(8):
            if 3 * place + channel < 8:
                colours[:, channel] |= ((labels >> (3 * place + channel) & 1) << (7 - place)).astype(np.uint8)
    return colours


def path_of(kind: str, root: str | Path, image_id: str) -> Path:
    """Path of an image ("image"), with any ending of images, or of its ground truth ("segmentation", "detection")."""
    if kind == "image":
        return found(Path(root, "JPEGImages"), image_id)
    return Path(root, FILES[kind].format(image_id))


@_of_one_image
def read_image(root: str | Path, image_id: str) -> np.ndarray:
    """The image, float32 RGB (3, H, W) in [0, 255].

    Pixels are in the order in which they are stored.  An EXIF orientation is ignored, as VOC's own tools do; an
    annotation of the turned picture has another size and is refused by `read_objects` and `read_label_map`.

    Raises
    ------
    ValueError
        If the file is missing or damaged, or has more pixels than Pillow's limit.
    """
    return read_picture(path_of("image", root, image_id))


@_of_one_image
def read_label_map(root: str | Path, image_id: str, classes: ClassList = VOC) -> np.ndarray:
    """The class of every pixel, uint8 (H, W): class ids, those of VOC are 0..20; 255 = void.

    Coloured files and palettes are read by colour, see `dag.data.masks.read_mask`: the id of a pixel is the one that
    has its colour in `colour_map`.  Grey images hold the ids themselves.

    Raises
    ------
    ValueError
        If the file is missing or damaged, has a colour or an id that no class has, or differs in size from the image.
    """
    colours = colour_map()[[*range(len(classes.names)), VOID]].tolist()
    known = dict(zip(map(tuple, colours), [*range(len(classes.names)), VOID], strict=True))
    grey = ClassList(classes.names, classes.background, void=(VOID,))
    return read_mask(path_of("segmentation", root, image_id), path_of("image", root, image_id), grey, known)


def read_sbd_label_map(path: str | Path) -> np.ndarray:
    """The class of every pixel in an annotation file of SBD (`cls/*.mat`), uint8 (H, W): VOC ids 0..20, no void.

    Raises
    ------
    ValueError
        If the file is missing or damaged, or does not hold such a label map.
    """
    from scipy.io import loadmat  # slow to import, and only SBD needs it

    try:
        with open(path, "rb") as file:
            labels = loadmat(file, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy raises errors of many types on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a label map of SBD ({reason}); unpack the data again") from error
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise ValueError(f"{path}: not a label map of SBD ({labels.dtype} {labels.shape}); unpack the data again")
    if labels.max(initial=0) >= len(CLASSES):
        raise ValueError(f"{path}: label {labels.max()} is not in 0..20; unpack the data again")
    return labels.astype(np.uint8)


def arrange_sbd(folder: str | Path, progress: Callable[[list], Iterable] = iter) -> None:
    """Convert the unpacked folder `dataset` of SBD to the layout of a VOC year, in place.

    `img/` becomes `JPEGImages/`, `cls/*.mat` become palette PNG files in `SegmentationClass/`, and
    `train.txt` and `val.txt` go to `ImageSets/Segmentation/`.  Images that are in neither list are deleted.

    Parameters
    ----------
    folder : path
        Contains img/, cls/, train.txt and val.txt.
    progress : callable
        Wraps the list of ids.

    Raises
    ------
    ValueError
        If a listed image has no image file or no readable annotation.
    """
    folder = Path(folder)
    lists = {name: read_ids(folder / f"{name}.txt") for name in ("train", "val")}
    for part in ("SegmentationClass", "JPEGImages", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    for image_id in progress(list(dict.fromkeys(lists["train"] + lists["val"]))):
        source = folder / "img" / f"{image_id}.jpg"
        if not source.is_file():
            raise ValueError(f"{source}: no such file, but SBD lists the image; unpack the data again")
        mask = Image.fromarray(read_sbd_label_map(folder / "cls" / f"{image_id}.mat"))
        mask.putpalette(colour_map().tobytes())
        mask.save(folder / "SegmentationClass" / f"{image_id}.png")
        source.rename(folder / "JPEGImages" / source.name)
    for name in lists:
        (folder / f"{name}.txt").rename(folder / "ImageSets" / "Segmentation" / f"{name}.txt")
    for rest in ("img", "cls"):
        shutil.rmtree(folder / rest)


@_of_one_image
def read_objects(root: str | Path, image_id: str, classes: ClassList = VOC) -> Objects:
    """The annotated objects of an image; its XML boxes are 1-based, the returned ones 0-based.

    A box may extend one pixel beyond the image (annotation tools disagree about the number of the first
    pixel).  It is returned as written, so that scores agree with other tools.

    Raises
    ------
    ValueError
        If the file is missing, damaged or not a VOC annotation, its size is not that of the image, a class is
        unknown, or a box is empty or outside the image.
    """
    path = path_of("detection", root, image_id)
    annotation = _annotation(path)
    height, width = picture_size(path_of("image", root, image_id))
    boxes, labels, difficult = [], [], []
    try:
        _check_size(annotation, width, height)
        for element in annotation.findall("object"):
            box, label, hard = _object(element, classes)
            if min(box[:2]) < 0 or box[2] > width + 1 or box[3] > height + 1:
                raise ValueError(
                    f"box {box} of a {classes.names[label]} is outside the {width} x {height} image; correct the file"
                )
            boxes.append(box)
            labels.append(label)
            difficult.append(hard)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4) - 1,
        np.array(labels, np.int64),
        np.array(difficult, bool),
    )


def _annotation(path: Path) -> ElementTree.Element:
    """The root element of an annotation file, after a check that all objects are at the usual place."""
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise ValueError(f"{path}: no such annotation; check the image id or unpack the data again") from error
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: the annotation is damaged ({error}); unpack the data again") from error
    except (LookupError, ValueError) as error:  # an encoding unknown to expat
        raise ValueError(f"{path}: the annotation cannot be decoded ({error}); save it as UTF-8") from error
    if root.tag != "annotation":
        raise ValueError(f"{path}: not a VOC annotation: its root is <{root.tag}>, not <annotation>; replace the file")
    objects = root.findall("object")
    for element in root.iter():
        if element.tag.rpartition("}")[2].lower() == "object" and element not in objects:
            raise ValueError(
                f"{path}: not a VOC annotation: <{element.tag}> is not an <object> right below <annotation>; "
                "correct the file"
            )
    return root


def _check_size(annotation: ElementTree.Element, width: int, height: int) -> None:
    """Refuse an annotation of an image of another size; 0 or no <size> is taken for unknown."""
    try:
        written = [int(float(annotation.findtext(f"size/{edge}", "") or 0)) for edge in ("width", "height")]
    except (ValueError, OverflowError) as error:
        raise ValueError(f"its <size> is not a number ({error}); correct the file") from error
    if any(written) and written != [width, height]:
        raise ValueError(
            f"its <size> is {written[0]} x {written[1]} and the image {width} x {height}; "
            "use the image that was annotated"
        )


def _object(element: ElementTree.Element, classes: ClassList) -> tuple[list[float], int, bool]:
    """Box as written, class id, and difficult flag of an <object>."""
    name = _text(element, "name").strip()
    label = classes.find(name)
    if label is None or label == classes.ground:
        known = ", ".join(classes.names[label] for label in classes.foreground)
        raise ValueError(f"{name!r} is not a class of the image set; use one of {known}")
    if len(element.findall("bndbox")) > 1:
        raise ValueError(f"a {name} has several <bndbox>; write one <object> for each")
    try:
        box = [float(_text(element, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")]
        hard = bool(int(_text(element, "difficult") or 0))
    except ValueError as error:
        raise ValueError(f"box or difficult flag of a {name} is not a number ({error}); correct the file") from error
    if not (box[0] <= box[2] and box[1] <= box[3]):
        raise ValueError(f"box {box} of a {name} is empty; correct the file")
    return box, label, hard


def _text(element: ElementTree.Element, path: str) -> str:
    """Text of the only child at `path`, "" if there is none."""
    found = element.findall(path)
    if len(found) > 1:
        raise ValueError(f"an <object> has several <{path}>; correct the file")
    return found[0].text or "" if found else ""
