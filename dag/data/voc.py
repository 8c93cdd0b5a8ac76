"""Read a PASCAL VOC tree: lists of ids, images, label maps, objects.

`root` is always the folder of one year, e.g. `VOCdevkit/VOC2007`: the one that contains
`JPEGImages`, `Annotations`, `SegmentationClass` and `ImageSets`.
"""

from __future__ import annotations

import hashlib
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = (
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
)
VOID = 255


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one image.

    Attributes
    ----------
    boxes : ndarray, float32 (R, 4)
        (x_min, y_min, x_max, y_max), 0-based; the last pixel belongs to the box.
    labels : ndarray, int64 (R,)
        VOC class ids, 1..20.
    difficult : ndarray, bool (R,)
        Objects that VOC's evaluation neither rewards nor punishes.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def colour_map() -> np.ndarray:
    """The colours of VOC's label maps, uint8 (256, 3) RGB.

    Bits 0, 1, 2 of a label are the highest bits of its red, green and blue, bits 3, 4, 5 the next
    ones, and so on: neighbouring labels get distant colours.
    """
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for place in range(8):
            if 3 * place + channel < 8:
                colours[:, channel] |= ((labels >> (3 * place + channel) & 1) << (7 - place)).astype(np.uint8)
    return colours


def read_ids(path: str | Path) -> list[str]:
    """Image ids of a list of `ImageSets`, in its order: the first column of every line.

    Raises
    ------
    ValueError
        If the file is missing or lists nothing.
    """
    path = Path(path)
    try:
        ids = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"{path}: no such image list; check the image set or unpack the data again") from error
    if not ids:
        raise ValueError(f"{path}: the image list is empty; write one image id per line")
    return ids


def read_image_set(
    parts: Iterable[dict], size: int, sha256: str | None = None, *, name: str = "", repeated: bool = False
) -> list[tuple[Path, str]]:
    """Images of an image set, as (root, id) in the order of its lists.

    Parameters
    ----------
    parts : iterable of dict
        {"root": folder of one year, "list": file that lists ids of images in it}.
    size : int
        Number of images that the set must have.
    sha256 : str, optional
        `digest` that its ids must have.
    name : str
        Name of the set, for messages.
    repeated : bool
        Whether an id may appear once in every part: a training set can hold an image with the
        annotations of VOC and again with those of SBD.

    Raises
    ------
    ValueError
        If the size or the digest differs, or an id appears twice.
    """
    images, lists = [], []
    for part in parts:
        lists.append(str(part["list"]))
        images += [(Path(part["root"]), image_id) for image_id in read_ids(lists[-1])]
    listed = images if repeated else [image_id for _, image_id in images]
    where = " + ".join(lists)
    if len(set(listed)) < len(listed):
        raise ValueError(f"{_set(name)}: an image id appears twice in {where}; list every image once")
    check_ids([image_id for _, image_id in images], size, sha256, name=name, where=where)
    return images


def check_ids(ids: list[str], size: int, sha256: str | None = None, *, name: str = "", where: str = "its list") -> None:
    """Refuse ids that are not those of an image set.

    Raises
    ------
    ValueError
        If their number is not `size` or their `digest` not `sha256`; the sentence says which set
        (`name`) and from which files (`where`).
    """
    cure = "unpack the data again and delete derived lists, or correct image_sets"
    if len(ids) != size:
        raise ValueError(f"{_set(name)}: {len(ids)} images in {where}, expected {size}; {cure}")
    if sha256 is not None and digest(ids) != sha256:
        raise ValueError(f"{_set(name)}: the ids in {where} have SHA-256 {digest(ids)}, expected {sha256}; {cure}")


def _set(name: str) -> str:
    return f"image set {name}" if name else "image set"


def shard_of(images: list[tuple[Path, str]], shard: str, shard_size: int) -> list[tuple[Path, str]]:
    """The consecutive slice of an image set that a shard, named by its number, covers."""
    return images[int(shard) * shard_size :][:shard_size]


def without_shards(images: list[tuple[Path, str]], shards: Iterable[str], shard_size: int) -> list[tuple[Path, str]]:
    """The images of an image set that are in none of these shards."""
    out = {image for shard in shards for image in shard_of(images, shard, shard_size)}
    return [image for image in images if image not in out]


def select(
    ids: Iterable[str],
    *,
    within: Iterable[str] | None = None,
    without: Iterable[str] = (),
    without_2007: Iterable[str] = (),
    name: str = "",
) -> list[str]:
    """The ids that are left of a list, in its order, each once.

    Parameters
    ----------
    ids : iterable of str
        Where to begin.
    within : iterable of str, optional
        Ids among which all that are left must be.
    without : iterable of str
        Ids to leave out.
    without_2007 : iterable of str
        Ids of VOC2007, xxxxxx, to leave out under the name that later years gave them, 2007_xxxxxx.
    name : str
        Name of the image set, for messages.

    Raises
    ------
    ValueError
        If an id is not in `within`, or none is left.
    """
    out = {*without, *(f"2007_{image_id}" for image_id in without_2007)}
    left = [image_id for image_id in dict.fromkeys(ids) if image_id not in out]
    strange = sorted(set(left) - set(left if within is None else within))
    if strange:
        raise ValueError(
            f"{_set(name)}: {len(strange)} of its ids, the first is {strange[0]}, are not in the list that must "
            "hold them all; unpack the data again"
        )
    if not left:
        raise ValueError(f"{_set(name)}: no image is left; unpack the data again")
    return left


def sample(val: Iterable[str], test: Iterable[str], every: int = 101) -> tuple[list[str], list[str]]:
    """Images that detectors trained on 07+12 trainval have not seen: some with all kinds of truth, some with boxes.

    VOC2012 shows images of VOC2007 again, xxxxxx under the id 2007_xxxxxx.  Those of its segmentation
    validation list that were test images in 2007 are in `Main/trainval` of neither year and not in
    `Segmentation/train`, and have label maps and boxes.

    Parameters
    ----------
    val : iterable of str
        Ids of VOC2012 `Segmentation/val`.
    test : iterable of str
        Ids of VOC2007 `Main/test`.
    every : int
        Step through the test images that are left.

    Returns
    -------
    both, only_2007 : list of str
        Ids of VOC2012 (104 of the real lists), and ids of VOC2007 of other images (48).

    Raises
    ------
    ValueError
        If no image is in both lists.
    """
    again = {f"2007_{image_id}": image_id for image_id in test}
    both = [image_id for image_id in val if image_id in again]
    if not both:
        raise ValueError("no image is in VOC2012 Segmentation/val and VOC2007 Main/test; unpack VOC again")
    shown = {again[image_id] for image_id in both}
    return both, [image_id for image_id in again.values() if image_id not in shown][::every]


def chosen(images: list[tuple[Path, str]], which: int | list[str]) -> list[tuple[Path, str]]:
    """Some images of an image set: that many, evenly spaced, or those with the given ids.

    Raises
    ------
    ValueError
        If an id is not in the image set.
    """
    if isinstance(which, int):
        return [images[number * len(images) // which] for number in range(min(which, len(images)))]
    by_id = {image_id: (root, image_id) for root, image_id in images}
    missing = [image_id for image_id in which if image_id not in by_id]
    if missing:
        raise ValueError(f"image {missing[0]} is not in the image set; choose others or give a number of images")
    return [by_id[image_id] for image_id in which]


def digest(ids: Iterable[str]) -> str:
    """SHA-256, in hex, of the sorted unique ids, one per line, each ended by a line feed."""
    return hashlib.sha256("".join(f"{image_id}\n" for image_id in sorted(set(ids))).encode()).hexdigest()


def read_image(root: str | Path, image_id: str) -> np.ndarray:
    """The image, float32 RGB (3, H, W) in [0, 255].

    Raises
    ------
    ValueError
        If the file is missing or damaged.
    """
    return read_picture(_image_path(root, image_id))


def read_picture(path: str | Path) -> np.ndarray:
    """An image file that is in no VOC folder, as `read_image` returns it."""
    with _open(Path(path)) as image:
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1), dtype=np.float32)


def image_size(root: str | Path, image_id: str) -> tuple[int, int]:
    """Height and width of an image, from the header of its file.

    Raises
    ------
    ValueError
        If the file is missing or is no image.
    """
    with _open(_image_path(root, image_id), decode=False) as image:
        return image.height, image.width


def read_label_map(root: str | Path, image_id: str) -> np.ndarray:
    """The class of every pixel, uint8 (H, W): VOC ids 0..20, 255 = void.

    Raises
    ------
    ValueError
        If the file is missing or damaged, is not a palette image of class ids, or differs in size from the image.
    """
    path = Path(root, "SegmentationClass", f"{image_id}.png")
    with _open(path) as mask, _open(_image_path(root, image_id), decode=False) as image:
        if mask.mode not in ("P", "L"):
            raise ValueError(f"{path}: pixels are colours ({mask.mode}), not class ids; use VOC's palette PNG files")
        if mask.size != image.size:
            raise ValueError(f"{path}: label map is {_size(mask)} and its image {_size(image)}; use matching files")
        labels = np.array(mask, dtype=np.uint8)
    unknown = labels[(labels >= len(CLASSES)) & (labels != VOID)]
    if unknown.size:
        raise ValueError(f"{path}: label {unknown[0]} is neither 0..20 nor {VOID} (void); use VOC's class ids")
    return labels


def read_sbd_label_map(path: str | Path) -> np.ndarray:
    """The class of every pixel in an annotation file of SBD (`cls/*.mat`), uint8 (H, W): VOC ids 0..20, no void.

    Raises
    ------
    ValueError
        If the file is missing or damaged, or does not hold such a label map.
    """
    from scipy.io import loadmat  # here, because most who import this module never read SBD

    try:
        with open(path, "rb") as file:
            labels = loadmat(file, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy lets through what a damaged file provokes deep inside, of any type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a label map of SBD ({reason}); unpack the data again") from error
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise ValueError(f"{path}: not a label map of SBD ({labels.dtype} {labels.shape}); unpack the data again")
    if labels.max(initial=0) >= len(CLASSES):
        raise ValueError(f"{path}: label {labels.max()} is not in 0..20; unpack the data again")
    return labels.astype(np.uint8)


def arrange_sbd(folder: str | Path, progress: Callable[[list], Iterable] = iter) -> None:
    """Bring the unpacked folder `dataset` of SBD into the layout of a VOC year, in place.

    `img/` becomes `JPEGImages/`, `cls/*.mat` become palette PNG files in `SegmentationClass/`, and
    `train.txt` and `val.txt` go to `ImageSets/Segmentation/`.  What is not listed is dropped.

    Parameters
    ----------
    folder : path
        Holds img/, cls/, train.txt and val.txt.
    progress : callable
        Wraps the list of ids that are worked through.

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


def read_objects(root: str | Path, image_id: str) -> Objects:
    """The annotated objects of an image; its XML boxes are 1-based, the returned ones 0-based.

    A box may stick out of the image by one pixel (annotation tools disagree about the first
    pixel's number) and is then returned as written, so that scores agree with other tools.

    Raises
    ------
    ValueError
        If the file is missing or damaged, a class is unknown, or a box is empty or outside the image.
    """
    path = Path(root, "Annotations", f"{image_id}.xml")
    try:
        annotation = ElementTree.parse(path).getroot()
    except OSError as error:
        raise ValueError(f"{path}: no such annotation; check the image id or unpack the data again") from error
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: the annotation is damaged ({error}); unpack the data again") from error
    with _open(_image_path(root, image_id), decode=False) as image:
        width, height = image.size
    boxes, labels, difficult = [], [], []
    for element in annotation.findall("object"):
        name = element.findtext("name", "").strip()
        if name not in CLASSES[1:]:
            raise ValueError(f"{path}: {name!r} is not a VOC class; use one of {', '.join(CLASSES[1:])}")
        try:
            box = [float(element.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")]
            hard = bool(int(element.findtext("difficult", "0")))
        except ValueError as error:
            raise ValueError(f"{path}: box or difficult flag of a {name} is not a number; correct the file") from error
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"{path}: box {box} of a {name} is empty; correct the file")
        if min(box[:2]) < 0 or box[2] > width + 1 or box[3] > height + 1:
            raise ValueError(f"{path}: box {box} of a {name} is outside the {_size(image)} image; correct the file")
        boxes.append(box)
        labels.append(CLASSES.index(name))
        difficult.append(hard)
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4) - 1,
        np.array(labels, np.int64),
        np.array(difficult, bool),
    )


def _image_path(root: str | Path, image_id: str) -> Path:
    return Path(root, "JPEGImages", f"{image_id}.jpg")


def _open(path: Path, decode: bool = True) -> Image.Image:
    """An image file; without `decode` only its header is read."""
    try:
        image = Image.open(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; check the image id or unpack the data again") from error
    except OSError as error:
        raise ValueError(f"{path}: damaged image ({error}); unpack the data again") from error
    try:
        if decode:
            image.load()
    except (OSError, SyntaxError) as error:
        image.close()
        raise ValueError(f"{path}: damaged image ({error}); unpack the data again") from error
    return image


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"
