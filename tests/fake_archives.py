"""Archives like the published ones, with made-up content: folders, names and formats are the real ones.

Every function writes one archive and returns its path.  An image depends on its id alone, so the same
id shows the same image in every archive.
"""

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from dag.data.voc import CLASSES, VOID, colour_map

SIZE = (500, 375)  # width, height: the most frequent one of VOC
DATE = 1_300_000_000

MATLAB = "output/faster_rcnn_final/faster_rcnn_VOC0712_{net}/{part}_final"
MEMBERS = {
    "faster_rcnn_models.tgz": [f"faster_rcnn_models/{net}_faster_rcnn_final.caffemodel" for net in ("VGG16", "ZF")],
    "faster_rcnn_final_model.zip": [
        MATLAB.format(net=net, part=part) for net in ("vgg_16layers", "ZF") for part in ("detection", "proposal")
    ],
    "rfcn_models.tar.gz": [f"rfcn_models/resnet{depth}_rfcn_final.caffemodel" for depth in (50, 101)],
    "imagenet_models.tgz": [f"imagenet_models/{net}.v2.caffemodel" for net in ("VGG16", "VGG_CNN_M_1024", "ZF")],
    "deeplab_aspp_resnet101.zip": ["init.caffemodel", "train_iter_20000.caffemodel", "train2_iter_20000.caffemodel"],
    "deeplab_aspp_vgg16.zip": ["init.caffemodel", "train_iter_20000.caffemodel", "train2_iter_20000.caffemodel"],
}


def scene(image_id: str, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray, list]:
    """Image uint8 (H, W, 3), label map uint8 (H, W), objects [(class id, (x_min, y_min, x_max, y_max))], 0-based.

    One to three coloured rectangles with a rim of void on a smooth background with some noise.
    """
    width, height = size
    rng = np.random.default_rng(int(hashlib.sha256(image_id.encode()).hexdigest()[:16], 16))
    coarse = Image.fromarray(rng.integers(60, 200, (6, 8, 3), np.uint8))
    image = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    label_map, objects = np.zeros((height, width), np.uint8), []
    for label in rng.choice(np.arange(1, len(CLASSES)), rng.integers(1, 4), replace=False):
        w, h = int(rng.integers(width // 8, width // 3)), int(rng.integers(height // 8, height // 3))
        # side by side, so that every object stays in sight
        x = width * len(objects) // 3
        y = int(rng.integers(0, height - h))
        label_map[y : y + h, x : x + w] = VOID
        label_map[y + 2 : y + h - 2, x + 2 : x + w - 2] = label
        image[y : y + h, x : x + w] = colour_map()[label]
        objects.append((int(label), (x, y, x + w - 1, y + h - 1)))
    image += rng.integers(-8, 9, image.shape, np.int16)
    return image.clip(0, 255).astype(np.uint8), label_map, objects


def voc_archive(
    folder: Path,
    name: str,
    year: int,
    lists: Mapping[str, Iterable[str]],
    *,
    images: Iterable[str] | None = None,
    segmented: Iterable[str] | None = None,
    size: tuple[int, int] = SIZE,
) -> Path:
    """Write `folder`/`name`, a tar archive of one year of VOC.

    Parameters
    ----------
    folder, name : path, str
        Name as published, e.g. "VOCtrainval_11-May-2012.tar"; a compressed archive by its ending.
    year : int
        2007, 2011 (which lies under TrainVal/) or 2012.
    lists : mapping
        Lists of `ImageSets` without ending, e.g. {"Main/trainval": [...], "Segmentation/val": [...]}.
    images : iterable of str, optional
        Ids of the images, each with an annotation.  Default: all that are listed.
    segmented : iterable of str, optional
        Ids of those with a label map.  Default: all that are listed in `Segmentation/`.
    size : (int, int)
        Width and height.
    """
    lists = {list_name: list(ids) for list_name, ids in lists.items()}
    if images is None:
        images = [image_id for ids in lists.values() for image_id in ids]
    if segmented is None:
        segmented = [image_id for key, ids in lists.items() if key.startswith("Segmentation/") for image_id in ids]
    segmented = set(segmented)
    root = f"{'TrainVal/' if year == 2011 else ''}VOCdevkit/VOC{year}"
    with _tar(folder, name) as add:
        for list_name, ids in lists.items():
            add(f"{root}/ImageSets/{list_name}.txt", "".join(f"{image_id}\n" for image_id in ids).encode())
        for image_id in dict.fromkeys(images):
            image, label_map, objects = scene(image_id, size)
            add(f"{root}/JPEGImages/{image_id}.jpg", _jpeg(image))
            add(f"{root}/Annotations/{image_id}.xml", _annotation(year, image_id, size, objects))
            if image_id in segmented:
                add(f"{root}/SegmentationClass/{image_id}.png", _png(label_map))
                add(f"{root}/SegmentationObject/{image_id}.png", _png(np.minimum(label_map, 1)))
    return folder / name


def sbd_archive(
    folder: Path,
    train: Iterable[str],
    val: Iterable[str],
    *,
    name: str = "benchmark.tgz",
    size: tuple[int, int] = SIZE,
    replace: Mapping[str, bytes | None] | None = None,
) -> Path:
    """Write `folder`/`name`, the Semantic Boundaries Dataset.

    `replace` gives files below `benchmark_RELEASE/dataset/` another content, or (None) leaves them out.
    """
    lists, root, replace = {"train": list(train), "val": list(val)}, "benchmark_RELEASE/dataset", replace or {}
    with _tar(folder, name) as add:

        def put(path: str, content: bytes) -> None:
            content = replace.get(path, content)
            if content is not None:
                add(f"{root}/{path}", content)

        add("benchmark_RELEASE/README", b"Semantic boundaries")
        for image_id in dict.fromkeys(lists["train"] + lists["val"]):
            image, label_map, _ = scene(image_id, size)
            put(f"img/{image_id}.jpg", _jpeg(image))
            put(f"cls/{image_id}.mat", sbd_mat("GTcls", label_map * (label_map != VOID)))
            put(f"inst/{image_id}.mat", sbd_mat("GTinst", np.uint8((label_map != 0) & (label_map != VOID))))
        for list_name, ids in lists.items():
            put(f"{list_name}.txt", "".join(f"{image_id}\n" for image_id in ids).encode())
    return folder / name


def weights_archive(folder: Path, name: str, contents: Mapping[str, bytes] | None = None) -> Path:
    """Write `folder`/`name`, one of the archives of `MEMBERS`.

    `contents` gives members their content by path; without it every member holds its own path.
    """
    if contents is None:
        contents = {member: member.encode() for member in MEMBERS[name]}
    if name.endswith(".zip"):
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as opened:
            for member, content in contents.items():
                opened.writestr(member, content)
    else:
        with _tar(folder, name) as add:
            for member, content in contents.items():
                add(member, content)
    return folder / name


def sbd_mat(field: str, label_map: np.ndarray) -> bytes:
    """An annotation file of SBD: a struct with the label map, its classes, and a sparse boundary for each."""
    present = np.setdiff1d(label_map, [0])
    boundaries = np.empty((len(CLASSES) - 1, 1), object)
    boundaries[:, 0] = [csc_matrix(label_map.shape, dtype=bool)] * len(boundaries)
    for label in present:
        inside = label_map == label
        boundaries[label - 1, 0] = csc_matrix(inside & ~np.roll(inside, 1, 0))
    buffer = io.BytesIO()
    struct = {"Boundaries": boundaries, "Segmentation": label_map.astype(np.uint8), "CategoriesPresent": present}
    savemat(buffer, {field: struct}, do_compression=True)
    return buffer.getvalue()


@contextmanager
def _tar(folder: Path, name: str) -> Iterator:
    folder.mkdir(parents=True, exist_ok=True)
    compressed = {"mode": "w:gz", "compresslevel": 1} if name.endswith("gz") else {"mode": "w"}
    with tarfile.open(folder / name, **compressed) as opened:

        def add(path: str, content: bytes) -> None:
            info = tarfile.TarInfo(path)
            info.size, info.mtime = len(content), DATE
            opened.addfile(info, io.BytesIO(content))

        yield add


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _png(label_map: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    mask = Image.fromarray(label_map)
    mask.putpalette(colour_map().tobytes())
    mask.save(buffer, "PNG")
    return buffer.getvalue()


def _annotation(year: int, image_id: str, size: tuple[int, int], objects: list) -> bytes:
    found = "".join(
        f"<object><name>{CLASSES[label]}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}</ymin>"
        f"<xmax>{box[2] + 1}</xmax><ymax>{box[3] + 1}</ymax></bndbox></object>"
        for label, box in objects
    )
    return (
        f"<annotation><folder>VOC{year}</folder><filename>{image_id}.jpg</filename>"
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>{found}</annotation>"
    ).encode()
