"""COCO AP against pycocotools' own accumulation, copies of images, and fractions by hand."""

import io
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dag.evaluate.coco import coco_scores, match_coco


def objects(boxes, labels, difficult=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.array(labels, np.int64)
    return SimpleNamespace(boxes=boxes, labels=labels, difficult=np.array(difficult or [False] * len(labels), bool))


def detections(boxes, labels, scores):
    found = objects(boxes, labels)
    return SimpleNamespace(boxes=found.boxes, labels=found.labels, scores=np.array(scores, np.float32))


def ap(truth, found) -> float:
    return float(coco_scores(match_coco([truth], [found]))["COCO AP"][0])


BOX = (10, 20, 59, 69)  # 50 x 50 pixels
FAR = (100, 100, 119, 119)


def test_one_object_by_hand():
    assert ap(objects([BOX], [3]), detections([BOX], [3], [0.2])) == pytest.approx(100)
    # 36 of the 50 columns: IoU 0.72 is enough for .5, .55, .6, .65 and .7 of the ten thresholds
    assert ap(objects([BOX], [3]), detections([(10, 20, 45, 69)], [3], [0.2])) == pytest.approx(50)
    assert ap(objects([BOX], [3]), detections([BOX], [4], [0.9])) == 0
    assert ap(objects([BOX], [3]), detections([], [], [])) == 0


def test_recalls_by_hand():
    """One of two objects is found: recalls 0, .01, ... .5 are reached, 51 of 101; a better scored mistake halves it."""
    truth = objects([BOX, FAR], [3, 3])
    assert ap(truth, detections([BOX], [3], [0.5])) == pytest.approx(100 * 51 / 101)
    elsewhere = (200, 200, 219, 219)
    assert ap(truth, detections([BOX, elsewhere], [3, 3], [0.5, 0.9])) == pytest.approx(100 * 51 / 202)
    assert ap(truth, detections([BOX, elsewhere], [3, 3], [0.5, 0.4])) == pytest.approx(100 * 51 / 101)


def test_classes_have_equal_weight_and_need_objects():
    truth = objects([BOX, BOX, FAR], [3, 5, 5])
    assert ap(truth, detections([BOX, BOX, FAR], [3, 5, 7], [0.9, 0.8, 0.7])) == pytest.approx(
        (100 + 100 * 51 / 101) / 2
    )


def test_difficult_objects_are_crowds():
    """A detection that lies in one does not count, and it need not be found; alone it is no object at all."""
    inside = (12, 22, 30, 30)
    truth = objects([BOX, FAR], [3, 3], [True, False])
    assert ap(truth, detections([inside, FAR], [3, 3], [0.9, 0.5])) == pytest.approx(100)
    assert np.isnan(ap(objects([BOX], [3], [True]), detections([BOX], [3], [0.9])))


def test_without_objects_there_is_no_score():
    assert np.isnan(ap(objects([], []), detections([BOX], [3], [0.9])))
    weights = np.array([[2, 0], [1, 1]])
    truths, found = [objects([BOX], [3]), objects([], [])], [detections([BOX], [3], [0.9]), detections([], [], [])]
    np.testing.assert_allclose(coco_scores(match_coco(truths, found), weights)["COCO AP"], 100)
    assert np.isnan(coco_scores(match_coco(truths, found), np.array([[0, 2]]))["COCO AP"][0])


def drawn(seed: int, images: int = 12, per_image: int = 9, digits: int = 2):
    """Objects of three classes, a fifth of them difficult; detections near them and elsewhere."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(images):
        count = int(rng.integers(0, per_image))
        corners = rng.integers(0, 200, (count, 2))
        boxes = np.concatenate([corners, corners + rng.integers(10, 90, (count, 2))], 1)
        labels = rng.integers(1, 4, count)
        truths.append(objects(boxes, labels, list(rng.random(count) < 0.2)))
        near = np.repeat(boxes, 3, 0) + rng.integers(-6, 7, (3 * count, 4))
        other = rng.integers(0, 100, (4, 2))
        guesses = np.concatenate([near, np.concatenate([other, other + 50], 1)])
        classes = np.concatenate([np.repeat(labels, 3), rng.integers(1, 5, 4)])
        wrong = rng.random(len(classes)) < 0.2
        classes[wrong] = rng.integers(1, 5, wrong.sum())
        found.append(detections(guesses, classes, rng.random(len(classes)).round(digits)))
    return truths, found


def reference(truths, found) -> float:
    """AP of pycocotools, as it is used on files."""

    def annotation(image, box, label, **more):
        x, y, width, height = (float(value) for value in (*box[:2], *(box[2:] - box[:2] + 1)))
        place = {"image_id": image, "category_id": int(label)}
        return place | {"bbox": [x, y, width, height], "area": width * height} | more

    with redirect_stdout(io.StringIO()):
        true = COCO()
        annotations = [
            annotation(image, box, label, iscrowd=int(hard), id=1000 * image + row + 1)
            for image, one in enumerate(truths)
            for row, (box, label, hard) in enumerate(zip(one.boxes, one.labels, one.difficult, strict=True))
        ]
        true.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(truths))],
            "categories": [{"id": label} for label in range(1, 5)],
            "annotations": annotations,
        }
        true.createIndex()
        seen = true.loadRes(
            [
                annotation(image, box, label, score=float(score))
                for image, one in enumerate(found)
                for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True)
            ]
        )
        evaluation = COCOeval(true, seen, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0]


@pytest.mark.parametrize("seed", range(4))
def test_the_score_is_that_of_pycocotools(seed):
    truths, found = drawn(seed)
    expected = reference(truths, found)
    assert 5 < expected < 95
    assert coco_scores(match_coco(truths, found))["COCO AP"][0] == pytest.approx(expected, abs=1e-9)


def test_more_than_a_hundred_detections():
    truths, found = drawn(7, images=3, per_image=80)
    assert max(len(one.labels) for one in found) > 200
    expected = reference(truths, found)
    assert coco_scores(match_coco(truths, found))["COCO AP"][0] == pytest.approx(expected, abs=1e-9)


def test_weights_are_copies_of_images():
    """Every resample is what pycocotools says of a set in which images stand several times, or not at all."""
    truths, found = drawn(11, digits=9)
    weights = np.random.default_rng(0).multinomial(12, [1 / 12] * 12, size=6)
    values = coco_scores(match_coco(truths, found), weights)["COCO AP"]
    for value, row in zip(values, weights, strict=True):
        copies = np.repeat(np.arange(12), row)
        expected = reference([truths[image] for image in copies], [found[image] for image in copies])
        assert value == pytest.approx(expected, abs=1e-9)
    assert len(set(values)) > 3


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="1 images have objects but 0 have detections"):
        match_coco([objects([], [])], [])
    matches = match_coco([objects([BOX], [3])], [detections([BOX], [3], [0.9])])
    with pytest.raises(ValueError, match=r"weights \(1, 2\) do not fit 1 images"):
        coco_scores(matches, np.ones((1, 2), np.int64))
