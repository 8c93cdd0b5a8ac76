"""The procedural miniature of VOC: small images that networks learn in seconds.

Six VOC classes keep their names and ids, so the readers of VOC can read the result.  A class has a
shape and a texture, and either is enough to recognise it.  Contrast is low on purpose: with texture
amplitudes of 22..40 grey levels the attack needs 84 iterations and a perceptibility of 1.7e-2; with
6..14 it needs 18 iterations and 4.1e-3, near the paper's 2.6e-3 (FCN-Alex of the miniature, 24 images
of a prototype).  All noise is grey: with coloured noise, objects stand out by their uniform hue
(the mIoU of FCN-Alex rises from 80 to 90 on 40 images, and its perturbations of 16 images grow by a sixth).

An image depends on (seed, image id) only, not on the lists or on the order in which images are made.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from dag.data.voc import CLASSES, VOID, colour_map

HEIGHT, WIDTH = 96, 128
JPEG_QUALITY = 92

# shape, mean aspect (width / height), texture, tint (grey levels added to R, G, B).
# Only one class is diagonal, so that a horizontal flip keeps every class.
_APPEARANCE = {
    "aeroplane": ("ellipse", 2.0, "horizontal", (6, 6, 6)),
    "bicycle": ("ring", 1.0, "rings", (6, -6, -6)),
    "bird": ("triangle", 1.1, "diagonal", (-6, 6, -6)),
    "bottle": ("bottle", 0.55, "checker", (-6, -6, 6)),
    "bus": ("rectangle", 1.6, "vertical", (6, 6, -6)),
    "cat": ("diamond", 1.0, "noise", (-6, -6, -6)),
}
LABELS = tuple(CLASSES.index(name) for name in _APPEARANCE)

_SCALE = (26, 58)  # square root of the box area, pixels
_PERIOD = (7, 8)  # of the class textures, pixels
_FOREIGN_PERIODS = (3.2, 14, 22)  # of the distractors; classes have others
_AMPLITUDE = (6, 14)  # of all textures, grey levels
_MIN_PIXELS = 80  # instances with fewer visible pixels become void


def make_image(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[tuple[int, tuple[int, int, int, int]]]]:
    """One image with one to three objects.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    image : ndarray, uint8 RGB (96, 128, 3)
    label_map : ndarray, uint8 (96, 128)
        VOC ids; 255 (void) on a rim two pixels wide around every instance.
    objects : list of (class id, (x_min, y_min, x_max, y_max))
        Boxes of the visible part of each instance, 0-based, last pixel included.
    """
    count = rng.choice((1, 2, 3), p=(0.35, 0.45, 0.2))
    return _scene(rng, HEIGHT, WIDTH, rng.choice(LABELS, count))


def make_objects(count: int, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The miniature's ImageNet: square images of single objects, on which bodies are pretrained.

    Parameters
    ----------
    count : int
        Number of images; the classes alternate.
    size : int
        Height and width, pixels.
    seed : int

    Returns
    -------
    images : ndarray, uint8 RGB (count, size, size, 3)
    labels : ndarray, int64 (count,)
        VOC class ids, members of `LABELS`.
    """
    labels = np.resize(np.array(LABELS, np.int64), count)
    images = np.empty((count, size, size, 3), np.uint8)
    for index, label in enumerate(labels):
        images[index] = _scene(_generator(seed, "object", index), size, size, [label])[0]
    return images, labels


def write_objects(path: str | Path, count: int, size: int = 64, seed: int = 0) -> None:
    """Write `make_objects` to an .npz file with the arrays `images` and `labels`."""
    images, labels = make_objects(count, size, seed)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            np.savez(file, images=images, labels=labels)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def make_voc(root: str | Path, lists: Mapping[str, Mapping[str, int] | Iterable[str]], seed: int) -> None:
    """Write a miniature in the layout of one VOC year.

    Parameters
    ----------
    root : path
        Folder to make; it must be empty or not exist.
    lists : mapping
        Lists of `ImageSets` by name, e.g. `Main/07`, `Segmentation/original`.  Each is either
        `{first: 201, count: 300}`, for the ids 000201 .. 000500, or the ids themselves.  An image that is
        in several lists is made once.
    seed : int
        The same ids have other images with another seed.

    Raises
    ------
    ValueError
        If `root` is not empty, or a list is empty or misnamed.
    """
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root}: exists already; delete it to make the miniature again")
    lists = {name: _ids(name, entry) for name, entry in lists.items()}
    beside = root.with_name(f".{root.name}.{os.getpid()}")
    try:
        for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets"):
            (beside / folder).mkdir(parents=True)
        for name, ids in lists.items():
            path = beside / "ImageSets" / f"{name}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{image_id}\n" for image_id in ids))
        for image_id in sorted(set().union(*lists.values())):
            _write_image(beside, image_id, *make_image(_generator(seed, "image", image_id)))
        os.sync()
        os.replace(beside, root)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _ids(name: str, entry: Mapping[str, int] | Iterable[str]) -> list[str]:
    if name.partition("/")[0] not in ("Main", "Segmentation") or not name.partition("/")[2]:
        raise ValueError(f"image list {name!r}: name it Main/... (detection) or Segmentation/...")
    if isinstance(entry, Mapping):
        if set(entry) != {"first", "count"}:
            raise ValueError(f"image list {name!r}: give it a `first` number and a `count`, or a list of ids")
        entry = [f"{number:06d}" for number in range(entry["first"], entry["first"] + entry["count"])]
    ids = list(entry)
    if not ids:
        raise ValueError(f"image list {name!r} is empty; give it at least one image")
    return ids


def _generator(*parts: int | str) -> np.random.Generator:
    """Random generator seeded by `parts` alone (Python's `hash` differs from process to process)."""
    return np.random.default_rng(int(hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest(), 16))


def _write_image(root: Path, image_id: str, image: np.ndarray, label_map: np.ndarray, objects: list) -> None:
    Image.fromarray(image).save(root / "JPEGImages" / f"{image_id}.jpg", quality=JPEG_QUALITY)
    mask = Image.fromarray(label_map, mode="P")
    mask.putpalette(colour_map().tobytes())
    mask.save(root / "SegmentationClass" / f"{image_id}.png")
    annotation = ElementTree.Element("annotation")
    _add(annotation, folder="miniature", filename=f"{image_id}.jpg")
    _add(ElementTree.SubElement(annotation, "size"), width=image.shape[1], height=image.shape[0], depth=3)
    _add(annotation, segmented=1)
    for label, box in objects:
        element = ElementTree.SubElement(annotation, "object")
        _add(element, name=CLASSES[label], pose="Unspecified", truncated=0, difficult=0)
        edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        _add(ElementTree.SubElement(element, "bndbox"), **{edge: value + 1 for edge, value in edges})
    ElementTree.indent(annotation, "\t")
    ElementTree.ElementTree(annotation).write(root / "Annotations" / f"{image_id}.xml", encoding="utf-8")


def _add(parent: ElementTree.Element, **children: int | str) -> None:
    for name, value in children.items():
        ElementTree.SubElement(parent, name).text = str(value)


def _scene(rng: np.random.Generator, height: int, width: int, labels: Iterable[int]) -> tuple:
    """Background, distractors, then the objects of `labels`, later ones in front; returns what `make_image` does."""
    picture = _background(rng, height, width)
    instances = np.zeros((height, width), np.uint8)  # 0 background, k + 1 the k-th object
    labels = list(labels)
    places = []
    for number, label in enumerate(labels, 1):
        shape, aspect, texture, tint = _APPEARANCE[CLASSES[label]]
        place = _place(rng, height, width, aspect, places)
        if place is None:
            continue
        places.append(place)
        left, top, right, bottom = place
        window = np.s_[top:bottom, left:right]
        inside = _inside(shape, bottom - top, right - left)
        surface = _surface(rng, texture, bottom - top, right - left) + np.array(tint, np.float32)
        picture[window][inside] = surface[inside]
        instances[window][inside] = number

    label_map = np.array([0, *labels], np.uint8)[instances]
    label_map[_rim(instances)] = VOID
    objects = []
    for number, label in enumerate(labels, 1):
        rows, columns = np.nonzero(instances == number)
        if len(rows) < _MIN_PIXELS:
            label_map[rows, columns] = VOID
        else:
            objects.append((int(label), tuple(int(e) for e in (columns.min(), rows.min(), columns.max(), rows.max()))))
    return picture.clip(0, 255).round().astype(np.uint8), label_map, objects


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Clouds at three scales and half-transparent distractors, float32 (H, W, 3)."""
    picture = rng.uniform(90, 150, 3).astype(np.float32)
    picture = picture + sum(_clouds(rng, height, width, cell, sd) for cell, sd in ((32, 12), (8, 7), (3, 4)))
    for _ in range(rng.integers(2, 5)):
        h, w = (int(edge) for edge in rng.uniform(12, min(48, height, width), 2))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        window = picture[top : top + h, left : left + w]
        inside = _inside(rng.choice(("ellipse", "rectangle")), h, w)
        stripes = _stripes(rng, h, w, rng.uniform(0, np.pi), rng.choice(_FOREIGN_PERIODS)) * rng.uniform(*_AMPLITUDE)
        colour = rng.uniform(80, 170, 3).astype(np.float32) + stripes[..., None]
        window[inside] = 0.5 * (window + colour)[inside]
    return picture + _grain(rng, height, width, 4)


def _place(rng: np.random.Generator, height: int, width: int, aspect: float, places: list) -> tuple | None:
    """A window (left, top, right, bottom), right and bottom exclusive, that covers little of the others."""
    for _ in range(50):
        aspect_here = aspect * rng.uniform(0.8, 1.25)
        scale = rng.uniform(*_SCALE)
        w, h = scale * aspect_here**0.5, scale / aspect_here**0.5
        shrink = min(1, (width - 2) / w, (height - 2) / h)
        w, h = round(w * shrink), round(h * shrink)
        left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        place = (left, top, left + w, top + h)
        if all(_overlap(place, other) <= 0.15 for other in places):
            return place
    return None


def _overlap(a: tuple, b: tuple) -> float:
    """Common area of two windows as a fraction of the smaller one."""
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return common / min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))


def _inside(shape: str, height: int, width: int) -> np.ndarray:
    """Pixels of a shape that fills its window, bool (H, W)."""
    v, u = np.ogrid[-1 + 1 / height : 1 - 1 / height : height * 1j, -1 + 1 / width : 1 - 1 / width : width * 1j]
    if shape == "rectangle":
        return np.ones((height, width), bool)
    if shape == "ellipse":
        return u**2 + v**2 <= 1
    if shape == "ring":
        return (u**2 + v**2 <= 1) & (u**2 + v**2 >= 0.12)
    if shape == "triangle":
        return 2 * np.abs(u) <= v + 1
    if shape == "diamond":
        return np.abs(u) + np.abs(v) <= 1
    return np.where(v < -0.3, np.abs(u) <= 0.4, np.abs(u) <= 1)


def _surface(rng: np.random.Generator, texture: str, height: int, width: int) -> np.ndarray:
    """Colour, texture, shading and grain of an object, float32 (H, W, 3)."""
    period = rng.uniform(*_PERIOD) * rng.uniform(0.88, 1.12)
    tilt = rng.normal(0, 0.1)
    if texture == "horizontal":
        pattern = _stripes(rng, height, width, np.pi / 2 + tilt, period)
    elif texture == "vertical":
        pattern = _stripes(rng, height, width, tilt, period)
    elif texture == "diagonal":
        pattern = _stripes(rng, height, width, rng.choice((-1, 1)) * np.pi / 4 + tilt, period)
    elif texture == "checker":
        pattern = 2**0.5 * _stripes(rng, height, width, tilt, period)
        pattern *= _stripes(rng, height, width, tilt + np.pi / 2, period)
    elif texture == "rings":
        y, x = np.ogrid[:height, :width]
        radius = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
        pattern = np.sin(2 * np.pi * radius / period + rng.uniform(0, 2 * np.pi))
    else:
        # isotropic band-pass noise: waves of one period in all directions
        angles = rng.uniform(0, np.pi, 12)
        pattern = 12**-0.5 * sum(_stripes(rng, height, width, angle, period) for angle in angles)
    pattern = rng.uniform(*_AMPLITUDE) * pattern[..., None] + _clouds(rng, height, width, 32, 8)
    return rng.uniform(80, 170, 3).astype(np.float32) + pattern + _grain(rng, height, width, 7)


def _stripes(rng: np.random.Generator, height: int, width: int, angle: float, period: float) -> np.ndarray:
    """A plane wave of amplitude 1 and random phase, float32 (H, W); `angle` 0 varies along x."""
    y, x = np.ogrid[:height, :width]
    phase = 2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 2 * np.pi)
    return np.sin(phase.astype(np.float32))


def _clouds(rng: np.random.Generator, height: int, width: int, cell: int, sd: float) -> np.ndarray:
    """Smooth grey noise of mean 0: random values every `cell` pixels, bicubic between, float32 (H, W, 1)."""
    grid = rng.standard_normal((max(2, height // cell), max(2, width // cell)), dtype=np.float32)
    field = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    field = field - field.mean()
    return (sd / field.std() * field)[..., None]


def _grain(rng: np.random.Generator, height: int, width: int, sd: float) -> np.ndarray:
    """Grey noise without structure, float32 (H, W, 1)."""
    return sd * rng.standard_normal((height, width, 1), dtype=np.float32)


def _rim(instances: np.ndarray) -> np.ndarray:
    """Pixels that touch another instance or the background, bool (H, W): one pixel on either side of the edge."""
    rim = np.zeros(instances.shape, bool)
    for axis in (0, 1):
        first, second = np.swapaxes(instances, 0, axis)[:-1], np.swapaxes(instances, 0, axis)[1:]
        edge = first != second
        np.swapaxes(rim, 0, axis)[:-1] |= edge
        np.swapaxes(rim, 0, axis)[1:] |= edge
    return rim
