"""Scores of networks with other classes than those of the image set, by hand."""

from pathlib import Path

import numpy as np
import pytest
from test_evaluate import CLEAN, IDS, TRUTH, hit, label_maps, miss, root, shard

from dag.data.classes import OTHER, VOC
from dag.data.readers import reader_of
from dag.evaluate import cells, score
from dag.report.wording import truth_words

__all__ = ["root"]

VOC_ENTRY = {"names": list(VOC.names), "background": "background", "void": [255]}
LAYOUT = reader_of({"classes": VOC_ENTRY})


def scored(folder: Path, images: list, predictions: dict, classes: dict, reader=LAYOUT, task="segmentation") -> tuple:
    """What is known of a victim with these classes, and its cells by perturbation."""
    made = []
    for name, arrays in predictions.items():
        path = shard(folder / f"{name}.h5", "predictions", arrays, {"of": name}, perceptibility=0.0, largest=0.0)
        made.append(cells.Cell("victim", name, "float", None, path, {"of": name}))
    cells.write_manifest(folder / "m.json", made)
    networks = {"victim": {"label": "V", "task": task, "classes": classes}}
    (found,) = score.score([folder / "m.json"], images, networks, resamples=5, seed=0, reader=reader)
    return found, {cell["perturbation"]: cell for cell in found["cells"]}


def test_a_class_that_the_network_does_not_know_is_void(tmp_path, root):
    """Without bicycle the two pixels of image b do not count, nor what is said there."""
    images = [(root, image_id) for image_id in IDS]
    classes = {"names": ["rest", "airplane"], "background": "rest"}
    predictions = {"none": label_maps({x: np.where(np.array(CLEAN[x]) == 2, 0, CLEAN[x]) for x in IDS})}
    found, table = scored(tmp_path, images, predictions, classes)
    assert found["ignored"] == {"bicycle": 2} and found["truth"] == "annotated"
    # background: 5 true pixels, all found, and one aeroplane with them; aeroplane: 3 of 4
    assert table["none"]["score"] == pytest.approx(100 * (5 / 6 + 3 / 4) / 2)
    assert table["none"]["per_class"]["bicycle"] is None
    sentence = "pixels of classes that the network does not know do not count: bicycle (2)"
    assert truth_words(found) == sentence


def test_a_class_that_the_image_set_does_not_have_is_wrong(tmp_path, root):
    """The network has no background: those pixels do not count, and a pixel of another class is a miss."""
    images = [(root, image_id) for image_id in IDS]
    predictions = {"none": label_maps({"a": [[1, 1], [OTHER, 1]], "b": [[1, 2], [2, OTHER]], "c": [[1, 1], [2, 2]]})}
    found, table = scored(tmp_path, images, predictions, {"names": ["aeroplane", "bicycle", "giraffe"]})
    assert found["ignored"] == {"background": 5}
    # aeroplane: 3 of 4 pixels, bicycle: 1 of 2, nothing else is said there
    assert table["none"]["score"] == pytest.approx(100 * (3 / 4 + 1 / 2) / 2)
    assert [table["none"]["per_class"][name] for name in ("background", "aeroplane")] == [None, 75]


def test_objects_of_an_unknown_class_are_difficult(tmp_path, root):
    """What is found on them does not count, and the mean leaves their class out."""
    (root / "Annotations/c.xml").write_text((root / "Annotations/c.xml").read_text().replace("aeroplane", "sofa"))
    images = [(root, image_id) for image_id in IDS]
    predictions = {"none": {"a": hit(0.9), "b": miss(0.8), "c": hit(0.7)}}
    found, table = scored(tmp_path, images, predictions, {"names": ["cat", "airplane"]}, task="detection")
    assert found["ignored"] == {"sofa": 1}
    # aeroplanes: two, the first found with precision 1; 6 of 11 recalls are reached
    assert table["none"]["score"] == pytest.approx(100 * 6 / 11)
    assert truth_words(found) == "objects of classes that the network does not know do not count: sofa (1)"


def test_lists_without_background_have_the_mean_of_images_beside(tmp_path, root):
    """Two classes of one's own in the same files; nothing is left out."""
    (tmp_path / "ids.txt").write_text("".join(f"{x}\n" for x in "ac"))
    part = {
        "root": str(root / "JPEGImages"),
        "list": str(tmp_path / "ids.txt"),
        "masks": str(root / "SegmentationClass"),
    }
    classes = {"names": ["ground", "plane"], "void": [255]}
    reader = reader_of({"format": "masks", "classes": classes, "parts": [part], "size": 2, "sha256": None})
    predictions = {"none": label_maps({x: CLEAN[x] for x in "ac"})}
    found, table = scored(tmp_path, reader.images(), predictions, classes, reader)
    assert (found["metric"], found["companion_metric"], found["ignored"]) == ("mIoU", "image mIoU", {})
    # image a: ground 1 of 2, plane 1 of 2; image c: all right
    assert table["none"]["score"] == pytest.approx(100 * (3 / 4 + 3 / 4) / 2)
    assert table["none"]["companion"] == pytest.approx((50 + 100) / 2)
    assert set(table["none"]["per_class"]) == {"ground", "plane"}


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_without_truth_the_clean_prediction_is_what_can_be_lost(tmp_path, root, task):
    (tmp_path / "ids.txt").write_text("".join(f"{x}\n" for x in IDS))
    part = {"root": str(root / "JPEGImages"), "list": str(tmp_path / "ids.txt")}
    reader = reader_of({"format": "images", "classes": VOC_ENTRY, "parts": [part], "size": 3, "sha256": None})
    if task == "segmentation":
        predictions = {"none": label_maps(CLEAN), "net": label_maps(TRUTH | {"a": [[0, 1], [1, 1]]})}
        # of the clean maps background keeps 4 of 5 pixels and gets one, aeroplane gets one, bicycle keeps 2 of 3
        left = 100 * (4 / 6 + 4 / 5 + 2 / 3) / 3
    else:
        # what is found with a score below 0.5 is no truth
        predictions = {"none": {x: hit(0.9 if x != "b" else 0.4) for x in IDS}, "net": {"a": hit(0.9)}}
        predictions["net"] |= {x: np.zeros((0, 6), np.float32) for x in "bc"}
        left = 100 * 6 / 11
    found, table = scored(tmp_path, reader.images(), predictions, VOC_ENTRY, reader, task)
    assert found["truth"] == "clean" and table["none"]["score"] == 100
    assert table["net"]["score"] == pytest.approx(left)
    assert "each network's own prediction on the clean image" in truth_words(found)


def test_a_detector_that_finds_nothing_has_nothing_to_lose(tmp_path, root):
    (tmp_path / "ids.txt").write_text("a\n")
    part = {"root": str(root / "JPEGImages"), "list": str(tmp_path / "ids.txt")}
    settings = {"name": "mine", "format": "images", "classes": VOC_ENTRY, "parts": [part], "size": 1, "sha256": None}
    reader = reader_of(settings)
    with pytest.raises(ValueError, match="image set mine has no truth, and victim finds nothing in clean images"):
        scored(tmp_path, reader.images(), {"none": {"a": hit(0.4)}}, VOC_ENTRY, reader, "detection")
