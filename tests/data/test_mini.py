"""The miniature: reproducible, readable as VOC, and drawn as its recipe says."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from dag.data import image_sets, mini, voc

AEROPLANE, BICYCLE, BIRD, BOTTLE, BUS, CAT = mini.LABELS


def scenes(count, seed=0):
    return [mini.make_image(np.random.default_rng((seed, number))) for number in range(count)]


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("mini") / "VOC"
    lists = {
        "Main/07": {"first": 1, "count": 6},
        "Main/0712": {"first": 1, "count": 12},
        "Segmentation/original": {"first": 8, "count": 8},
    }
    mini.make_voc(root, lists, seed=3)
    return root


def test_classes_keep_their_voc_ids():
    assert [voc.CLASSES[label] for label in mini.LABELS] == ["aeroplane", "bicycle", "bird", "bottle", "bus", "cat"]
    assert mini.LABELS == (1, 2, 3, 5, 6, 8)


def test_lists_name_the_images_of_the_tree(tree):
    lists = {name: image_sets.read_ids(tree / f"ImageSets/{name}.txt") for name in ("Main/07", "Main/0712")}
    original = image_sets.read_ids(tree / "ImageSets/Segmentation/original.txt")
    assert lists["Main/07"] == [f"{number:06d}" for number in range(1, 7)]
    assert set(lists["Main/07"]) < set(lists["Main/0712"])
    assert original == [f"{number:06d}" for number in range(8, 16)]
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        assert sorted(path.stem for path in (tree / folder).iterdir()) == [f"{number:06d}" for number in range(1, 16)]


def test_an_image_depends_on_seed_and_id_only(tree, tmp_path):
    mini.make_voc(tmp_path / "alone", {"Segmentation/one": ["000009"]}, seed=3)
    mini.make_voc(tmp_path / "order", {"Main/back": ["000012", "000009"]}, seed=3)
    mini.make_voc(tmp_path / "seed", {"Main/one": ["000009"]}, seed=4)
    whole, alone, order, seed = map(files, (tree, tmp_path / "alone", tmp_path / "order", tmp_path / "seed"))
    for name in ("JPEGImages/000009.jpg", "Annotations/000009.xml", "SegmentationClass/000009.png"):
        assert whole[name] == alone[name] == order[name]
        assert whole[name] != seed[name]
    assert whole["JPEGImages/000009.jpg"] != whole["JPEGImages/000012.jpg"]


def test_another_process_makes_the_same_image(tree):
    code = (
        "import sys; from dag.data import mini; from pathlib import Path;"
        "mini.make_voc(sys.argv[1], {'Main/one': ['000009']}, seed=3)"
    )
    root = tree.parent / "other"
    subprocess.run([sys.executable, "-c", code, root], check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert files(root)["JPEGImages/000009.jpg"] == files(tree)["JPEGImages/000009.jpg"]


def test_voc_reader_returns_what_was_made(tree):
    for number in range(1, 16):
        image_id = f"{number:06d}"
        image, label_map, objects = mini.make_image(mini._generator(3, "image", image_id))
        read = voc.read_objects(tree, image_id)
        assert read.labels.tolist() == [label for label, _ in objects]
        assert read.boxes.tolist() == [list(box) for _, box in objects]
        assert not read.difficult.any()
        assert np.array_equal(voc.read_label_map(tree, image_id), label_map)
        error = voc.read_image(tree, image_id) - image.transpose(2, 0, 1)
        assert error.shape == (3, 96, 128) and abs(error.mean()) < 0.5 and error.std() < 8


def test_boxes_are_those_of_the_visible_masks():
    checked = 0
    for _, label_map, objects in scenes(60):
        labels = [label for label, _ in objects]
        for label, box in objects:
            if labels.count(label) > 1:
                continue
            rows, columns = np.nonzero(label_map == label)
            inner = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
            margin = (inner - box) * (1, 1, -1, -1)
            # the rim takes one pixel of a side, more of a sharp corner, none at the edge of the image
            at_edge = np.array(box) == (0, 0, 127, 95)
            assert (margin >= np.where(at_edge, 0, 1)).all() and margin.max() <= 6
            if label == BUS and len(objects) == 1:
                assert (margin == np.where(at_edge, 0, 1)).all()
            checked += 1
    assert checked > 50


def test_void_separates_all_classes():
    for _, label_map, _ in scenes(30):
        for axis in (0, 1):
            first, second = np.swapaxes(label_map, 0, axis)[:-1], np.swapaxes(label_map, 0, axis)[1:]
            touching = (first != second) & (first != voc.VOID) & (second != voc.VOID)
            assert not touching.any()


def test_number_and_kinds_of_objects():
    drawn = [[label for label, _ in objects] for _, _, objects in scenes(300)]
    counts = np.bincount([len(labels) for labels in drawn], minlength=4) / len(drawn)
    # 4 standard errors of a fraction of 300, and up to 5 % of the objects find no place
    assert counts[0] == 0 and np.abs(counts[1:] - (0.35, 0.45, 0.2)).max() < 4 * (0.25 / 300) ** 0.5 + 0.05
    kinds = np.bincount(np.concatenate(drawn), minlength=21)
    assert set(np.flatnonzero(kinds)) == set(mini.LABELS)
    assert kinds[list(mini.LABELS)].min() > 0.6 * kinds.sum() / 6


def test_objects_hide_little_of_each_other():
    for _, _, objects in scenes(60):
        for _, a in objects:
            for _, b in objects:
                sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1
                area = min((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))
                # of boxes of visible masks, which may be smaller than the ones placed
                assert a == b or sides.clip(0).prod() <= 0.2 * area


def test_stripes_have_the_direction_and_period_of_the_class():
    # period 6.2 .. 9 pixels: a shift by half of it, 4 pixels, turns a stripe into a gap
    change = {label: np.zeros(2) for label in mini.LABELS}
    for image, label_map, objects in scenes(150):
        grey = image.mean(2)
        for axis in (0, 1):
            a, b = np.swapaxes(grey, 0, axis), np.swapaxes(label_map, 0, axis)
            for label, _ in objects:
                both = (b[4:] == label) & (b[:-4] == label)
                change[label][axis] += ((a[4:] - a[:-4]) ** 2)[both].mean()
    along = {label: pair[0] / pair[1] for label, pair in change.items()}
    assert along[AEROPLANE] > 2 and along[BUS] < 1 / 2
    for label in (BICYCLE, BIRD, BOTTLE, CAT):
        assert 0.7 < along[label] < 1.4


def test_objects_for_pretraining():
    images, labels = mini.make_objects(13, size=64, seed=5)
    assert images.shape == (13, 64, 64, 3) and images.dtype == np.uint8
    assert labels.tolist() == [*mini.LABELS, *mini.LABELS, mini.LABELS[0]] and labels.dtype == np.int64
    fewer, _ = mini.make_objects(4, size=64, seed=5)
    assert np.array_equal(images[:4], fewer)
    assert not np.array_equal(mini.make_objects(4, size=64, seed=6)[0], fewer)


def test_objects_are_written(tmp_path):
    for name in ("a.npz", "b.npz"):
        mini.write_objects(tmp_path / "new" / name, 7, size=32, seed=1)
    with np.load(tmp_path / "new/a.npz") as file:
        images, labels = mini.make_objects(7, size=32, seed=1)
        assert np.array_equal(file["images"], images) and np.array_equal(file["labels"], labels)
    digests = {hashlib.sha256(data).hexdigest() for data in files(tmp_path).values()}
    assert len(files(tmp_path)) == 2 and len(digests) == 1


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(rng):
        raise RuntimeError("disk full")

    monkeypatch.setattr(mini, "make_image", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        mini.make_voc(tmp_path / "VOC", {"Main/one": ["1"]}, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"Main/none": []}, "'Main/none' is empty"),
        ({"Main/none": {"first": 1, "count": 0}}, "'Main/none' is empty"),
        ({"Main/some": {"count": 3}}, "'Main/some': give it a `first` number"),
        ({"train": ["1"]}, "'train': name it Main/"),
        ({"Main/": ["1"]}, "'Main/': name it Main/"),
    ],
)
def test_wrong_lists_are_refused(tmp_path, lists, message):
    with pytest.raises(ValueError, match=message):
        mini.make_voc(tmp_path / "VOC", lists, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_tree_is_not_overwritten(tree):
    with pytest.raises(ValueError, match="exists already"):
        mini.make_voc(tree, {"Main/one": ["1"]}, seed=0)
