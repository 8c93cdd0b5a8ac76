"""Digests of images and annotations: those of `sha256sum`, and what planning knows of files without reading them."""

import json
import os
import pickle
import subprocess
import sys
import time

import pytest

from dag.data.image_sets import ImageError
from dag.workflow import contents
from dag.workflow.contents import Contents

IDS = ["b", "a.1", "c"]


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Every test is a process that has asked for nothing yet, and files made by it are old enough to be trusted."""
    monkeypatch.setattr(contents, "_known", {})
    monkeypatch.setattr(contents, "UNSETTLED", -1)
    contents._of_files.cache_clear()


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets"):
        (root / folder).mkdir(parents=True)
    for image_id in IDS:
        (root / "JPEGImages" / f"{image_id}.jpg").write_text(f"image {image_id}")
        (root / "Annotations" / f"{image_id}.xml").write_text(f"objects {image_id}")
    (root / "ImageSets" / "list.txt").write_text("".join(f"{image_id}\n" for image_id in IDS))
    return root


def ask(root, *kinds, ids=IDS):
    """What is known at planning, in a process of its own."""
    contents._known.clear()
    image_set = {"name": "s", "parts": [{"root": str(root), "list": str(root / "ImageSets" / "list.txt")}]}
    chosen = lambda images: [image for image in images if image[1] in ids]  # noqa: E731
    return contents.planned(image_set, chosen, *kinds, name="0000", folder=root.parent / "cache")


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read."""
    names, sha256 = [], contents._sha256
    monkeypatch.setattr(contents, "_sha256", lambda path: names.append(os.path.basename(path)) or sha256(path))
    return names


def test_a_digest_is_that_of_the_lines_of_sha256sum(root):
    lines = subprocess.run(
        ["sha256sum", *(f"{i}.jpg" for i in IDS)], cwd=root / "JPEGImages", capture_output=True, check=True
    ).stdout
    expected = subprocess.run(["sha256sum"], input=lines, capture_output=True, check=True).stdout.split()[0].decode()
    assert contents.digests([(root, image_id) for image_id in IDS], "image") == {"image": expected}
    assert ask(root, "image", "detection")["image"] == expected


def test_an_absent_file_is_named_by_the_job(root):
    (root / "Annotations" / "c.xml").unlink()
    with pytest.raises(ImageError, match="Annotations/c.xml: no such file; check the image id"):
        contents.digests([(root, image_id) for image_id in IDS], "detection")


def test_a_file_is_read_again_when_it_has_changed(root, read):
    first = ask(root, "image", "detection")
    assert len(read) == 6
    assert ask(root, "image", "detection") == first and len(read) == 6
    (root / "JPEGImages" / "c.jpg").write_text("other content")
    second = ask(root, "image", "detection")
    assert read[6:] == ["c.jpg"]
    assert second["image"] != first["image"] and second["detection"] == first["detection"]
    assert second == contents.digests([(root, image_id) for image_id in IDS], "image", "detection")


def test_the_same_content_with_other_times_is_the_same(root, read):
    first = ask(root, "image")
    os.utime(root / "JPEGImages" / "c.jpg", ns=(1, 1))
    assert ask(root, "image") == first and read[3:] == ["c.jpg"]
    assert ask(root, "image") == first and len(read) == 4


def test_a_change_that_keeps_size_and_time_is_noticed(root):
    path = root / "JPEGImages" / "c.jpg"
    first, before = ask(root, "image"), path.stat()
    time.sleep(0.05)  # more than the resolution of the clock of a file system
    path.write_text("image d")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and ask(root, "image") != first


def test_a_file_that_has_just_changed_is_not_trusted(root, read, monkeypatch):
    """It may change once more within the resolution of its time stamp."""
    monkeypatch.setattr(contents, "UNSETTLED", 3600 * 10**9)
    first = ask(root, "image")
    assert ask(root, "image") == first and len(read) == 6


def test_images_that_are_not_there_yet_are_unknown(root, tmp_path):
    (root / "ImageSets" / "list.txt").rename(tmp_path / "list.txt")
    assert ask(root, "image", "detection") == {"image": None, "detection": None}
    assert not (tmp_path / "cache").exists()


def test_images_that_were_removed_are_taken_to_be_unchanged(root, tmp_path):
    first = ask(root, "image")
    root.rename(tmp_path / "elsewhere")
    assert ask(root, "image") == first
    (tmp_path / "elsewhere").rename(root)
    (root / "JPEGImages" / "c.jpg").unlink()
    assert ask(root, "image") == first


def test_a_file_that_appears_makes_a_difference(root):
    path = root / "Annotations" / "c.xml"
    content = path.read_text()
    path.unlink()
    without = ask(root, "detection")
    path.write_text(content)
    assert without["detection"] is not None and ask(root, "detection") != without
    assert ask(root, "detection") == contents.digests([(root, image_id) for image_id in IDS], "detection")


def test_only_the_chosen_images_count(root):
    before = ask(root, "image", ids=["b"])
    (root / "JPEGImages" / "c.jpg").write_text("other content")
    assert ask(root, "image", ids=["b"]) == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"x": 1}', b'{"x": [1]}', b"\xff\xfe"])
def test_a_damaged_cache_is_made_again(root, tmp_path, damage):
    first = ask(root, "image")
    (place,) = (tmp_path / "cache" / "s").iterdir()
    whole = place.read_bytes()
    place.write_bytes(damage)
    assert ask(root, "image") == first and place.read_bytes() == whole


def test_without_a_place_for_the_cache_all_is_read(root, tmp_path, read):
    (tmp_path / "cache").write_text("a file, so no folder can be made")
    first = ask(root, "image")
    assert ask(root, "image") == first and len(read) == 6


def test_many_processes_may_write_the_cache(root, tmp_path):
    code = (
        "from pathlib import Path; from dag.workflow import contents; contents.UNSETTLED = -1\n"
        f"parts = [dict(root={str(root)!r}, list={str(root / 'ImageSets' / 'list.txt')!r})]\n"
        "for _ in range(200):\n"
        "    contents._known.clear(); contents._read = lambda place: {}\n"
        "    contents.planned(dict(name='s', parts=parts), list, 'image', name='0', "
        f"folder=Path({str(tmp_path / 'cache')!r}))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    (place,) = (tmp_path / "cache" / "s").iterdir()
    assert len(json.loads(place.read_text())) == 3


def test_what_is_unknown_at_planning_is_asked_for_when_it_is_recorded():
    answers = iter([{"image": None}, {"image": "1"}, {"image": "2"}])
    parameter = Contents(lambda: next(answers))
    assert parameter["image"] is None
    assert repr({"s": parameter}) == "{'s': {'image': '1'}}"
    # a digest that was known is kept: results made from it are older than any later change
    assert repr(parameter) == "{'image': '1'}"
    copy = pickle.loads(pickle.dumps(parameter))
    assert type(copy) is dict and copy == {"image": "1"}
