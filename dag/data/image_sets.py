"""Lists of image ids: read and checked, derived from each other, cut into shards."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

# No folder, no hidden file, no second column.
_ID = re.compile(r"[^\s./\\][^\s/\\]*")


class ImageError(ValueError):
    """One image cannot be used, or its mask or annotation; without its shard the others can."""


def read_ids(path: str | Path) -> list[str]:
    """Image ids of a list of `ImageSets`, in its order: one on every line, UTF-8.

    Raises
    ------
    ValueError
        If the file is missing, is no text, lists nothing, or has a line that is not an image id.  Lists of one class
        (`aeroplane_train.txt`), which have -1, 0 or 1 behind every id, are among these.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"{path}: no such image list; check the image set or unpack the data again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the image list is not UTF-8 text ({error}); save it as UTF-8") from error
    ids = []
    for number, line in enumerate(lines, 1):
        image_id = line.strip(" \t")
        if not image_id:
            continue
        if not _ID.fullmatch(image_id) or not image_id.isprintable():
            raise ValueError(
                f"{path}, line {number}: {image_id[:40]!r} is not an image id; write one id per line, the name of the "
                "image file without folder and ending"
            )
        ids.append(image_id)
    if not ids:
        raise ValueError(f"{path}: the image list is empty; write one image id per line")
    return ids


def read_image_set(
    parts: Iterable[dict],
    size: int,
    sha256: str | None = None,
    *,
    name: str = "",
    repeated: bool = False,
    read: Callable[[Mapping], list[str]] = lambda part: read_ids(part["list"]),
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
    read : callable
        From a part to its ids.

    Raises
    ------
    ValueError
        If the size or the digest differs, an id appears twice, or a list cannot be read (`read_ids`).
    """
    images, lists = [], []
    for part in parts:
        lists.append(str(part["list"]))
        images += [(Path(part["root"]), image_id) for image_id in read(part)]
    if strange := [image_id for _, image_id in images if not _ID.fullmatch(image_id) or not image_id.isprintable()]:
        raise ValueError(
            f"{_set(name)}: {strange[0][:40]!r} is not an image id, which has no blank and does not begin with a dot; "
            "rename the image file"
        )
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
        If their number is not `size` or their `digest` is not `sha256`.  The message names the set (`name`) and the
        files (`where`).
    """
    cure = "unpack the data again and delete derived lists, or correct image_sets"
    if len(ids) != size:
        raise ValueError(f"{_set(name)}: {len(ids)} images in {where}, expected {size}; {cure}")
    if sha256 is not None and digest(ids) != sha256:
        raise ValueError(f"{_set(name)}: the ids in {where} have SHA-256 {digest(ids)}, expected {sha256}; {cure}")


def _set(name: str) -> str:
    return f"image set {name}" if name else "image set"


def shard_of(images: list[tuple[Path, str]], shard: str, shard_size: int) -> list[tuple[Path, str]]:
    """Images of a shard: the slice of `shard_size` images whose number is the shard's name."""
    return images[int(shard) * shard_size :][:shard_size]


def without_shards(images: list[tuple[Path, str]], shards: Iterable[str], shard_size: int) -> list[tuple[Path, str]]:
    """Images of an image set that are in none of the given shards."""
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
    """Ids of a list without those of other lists, in order, duplicates removed.

    Parameters
    ----------
    ids : iterable of str
        Ids to select from.
    within : iterable of str, optional
        Ids that must contain all selected ids.
    without : iterable of str
        Ids to leave out.
    without_2007 : iterable of str
        Ids of VOC2007, such as 000032, to leave out under their later names, such as 2007_000032.
    name : str
        Name of the image set, for messages.

    Raises
    ------
    ValueError
        If a selected id is not in `within`, or no id is selected.
    """
    out = {*without, *(f"2007_{image_id}" for image_id in without_2007)}
    left = [image_id for image_id in dict.fromkeys(ids) if image_id not in out]
    strange = sorted(set(left) - set(left if within is None else within))
    if strange:
        raise ValueError(
            f"{_set(name)}: {len(strange)} of its ids, the first is {strange[0]}, are not in the list that must "
            "contain them; unpack the data again"
        )
    if not left:
        raise ValueError(f"{_set(name)}: no image is left; unpack the data again")
    return left


def sample(val: Iterable[str], test: Iterable[str], every: int = 101) -> tuple[list[str], list[str]]:
    """Images that detectors trained on 07+12 trainval have not seen.

    VOC2012 contains images of VOC2007 under other ids (000032 is 2007_000032).  Those of its segmentation
    validation list that were test images in 2007 are in `Main/trainval` of neither year and not in
    `Segmentation/train`; they have label maps and boxes.  The other images, test images of VOC2007, have boxes.

    Parameters
    ----------
    val : iterable of str
        Ids of VOC2012 `Segmentation/val`.
    test : iterable of str
        Ids of VOC2007 `Main/test`.
    every : int
        Take every so many of the other test images.

    Returns
    -------
    both, only_2007 : list of str
        Ids of VOC2012 (104 with the published lists), and ids of other images of VOC2007 (48).

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
    """Some images of an image set: a number of evenly spaced ones, or those with the given ids.

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
