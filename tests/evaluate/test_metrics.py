"""mIoU and VOC AP against fractions by hand, a literal development kit, torchmetrics and closed forms."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dag.data import voc
from dag.evaluate import metrics

BOX = (10, 10, 19, 19)
ELSEWHERE = (60, 60, 69, 69)


@pytest.fixture(scope="module")
def torchmetrics():
    """Imported on demand: the import takes 9 CPU-seconds longer than that of torch."""
    return pytest.importorskip("torchmetrics.classification")


def objects(*rows):
    """Rows of (box, label, difficult)."""
    boxes, labels, difficult = zip(*rows, strict=True) if rows else ((), (), ())
    return voc.Objects(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(difficult, bool)
    )


def detections(*rows):
    """Rows of (box, label, score)."""
    boxes, labels, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return SimpleNamespace(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float32),
    )


def one_class(pattern, missed=0, label=1):
    """Images, one per detection, whose best-first detections are hits ("H") or not ("F")."""
    pairs = []
    for rank, kind in enumerate(pattern):
        score = 1 - rank / 1000
        truth = objects((BOX, label, False)) if kind == "H" else objects()
        pairs.append((truth, detections((BOX, label, score))))
    pairs += [(objects((BOX, label, False)), detections())] * missed
    return tuple(zip(*pairs, strict=True))


def random_set(rng, images, classes=4, levels=None):
    """Crowded images; with few score `levels` there are many ties."""
    truths, found = [], []
    for _ in range(images):
        count = rng.integers(0, 5)
        corner = rng.integers(0, 40, (count, 2))
        boxes = np.concatenate([corner, corner + rng.integers(8, 30, (count, 2))], 1)
        labels = rng.integers(1, classes + 1, count)
        truths.append(voc.Objects(boxes.astype(np.float32), labels, rng.random(count) < 0.2))
        guesses = rng.integers(0, 12) if count else rng.integers(0, 3)
        near = rng.integers(0, count, guesses) if count else np.zeros(guesses, int)
        around = boxes[near] if count else np.tile(BOX, (guesses, 1))
        around = around + rng.normal(0, 2.5, (guesses, 4)).round(1)
        around[:, 2:] = np.maximum(around[:, 2:], around[:, :2])
        guessed = np.where(rng.random(guesses) < 0.7, labels[near] if count else 1, rng.integers(1, 5, guesses))
        scores = rng.random(guesses) if levels is None else rng.integers(0, levels, guesses) / levels
        found.append(SimpleNamespace(boxes=around.astype(np.float32), labels=guessed, scores=scores))
    return truths, found


def devkit(truths, found, label, minimum=0.5):
    """VOC average precision of one class, loop by loop: (11-point, area) in percent, None without objects."""
    objects_total = 0
    taken = []
    for truth in truths:
        taken.append([False] * len(truth.labels))
        for k in range(len(truth.labels)):
            if truth.labels[k] == label and not truth.difficult[k]:
                objects_total += 1
    if objects_total == 0:
        return None
    ranked = []
    for image, detection in enumerate(found):
        for d in range(len(detection.labels)):
            if detection.labels[d] == label:
                ranked.append((float(detection.scores[d]), image, [float(v) for v in detection.boxes[d]]))
    ranked.sort(key=lambda entry: -entry[0])
    true = false = 0
    recall, precision = [], []
    for _, image, box in ranked:
        largest, which = -1.0, None
        for k in range(len(truths[image].labels)):
            if truths[image].labels[k] != label:
                continue
            other = [float(v) for v in truths[image].boxes[k]]
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
                area += (other[2] - other[0] + 1) * (other[3] - other[1] + 1) - width * height
                if width * height / area > largest:
                    largest, which = width * height / area, k
        if largest >= minimum:
            if truths[image].difficult[which]:
                pass
            elif taken[image][which]:
                false += 1
            else:
                true += 1
                taken[image][which] = True
        else:
            false += 1
        recall.append(Fraction(true, objects_total))
        precision.append(Fraction(true, true + false) if true + false else Fraction(0))
    points = Fraction(0)
    for k in range(11):
        reached = [p for r, p in zip(recall, precision, strict=True) if r >= Fraction(k, 10)]
        points += max(reached, default=Fraction(0)) / 11
    recall, precision = [Fraction(0), *recall, Fraction(1)], [Fraction(0), *precision, Fraction(0)]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    area = sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in range(len(recall) - 1))
    return 100 * float(points), 100 * float(area)


def ap(truths, found):
    scores = metrics.detection_scores(metrics.match_detections(truths, found))
    return scores["score"][0], scores["companion"][0]


# mIoU


def test_confusion_matrix_by_hand():
    truth = np.array([[0, 0, 1], [1, 255, 2]], np.uint8)
    prediction = np.array([[0, 1, 1], [0, 0, 2]], np.uint8)
    confusion = metrics.confusion_matrix(truth, prediction, 4)
    assert confusion.dtype == np.int64
    assert confusion.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_iou_by_hand():
    # 1/3 (1 common, 1 missed, 1 invented), 1/3, 1; class 3 is nowhere
    confusion = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert metrics.iou(confusion)[:3] == pytest.approx([1 / 3, 1 / 3, 1])
    assert np.isnan(metrics.iou(confusion)[3])
    assert metrics.mean_iou(confusion) == pytest.approx(100 * 5 / 9)
    assert metrics.foreground_mean_iou(confusion) == pytest.approx(100 * 2 / 3)


def test_a_class_only_predicted_counts_as_zero():
    confusion = metrics.confusion_matrix(np.zeros(4, np.uint8), np.array([0, 0, 0, 5], np.uint8))
    assert confusion.shape == (21, 21)
    assert metrics.mean_iou(confusion) == pytest.approx(100 * (3 / 4 + 0) / 2)


def test_nothing_to_score_is_nan():
    confusion = metrics.confusion_matrix(np.full((2, 2), 255), np.zeros((2, 2), int))
    assert confusion.sum() == 0 and np.isnan(metrics.mean_iou(confusion))


@pytest.mark.slow
def test_mean_iou_agrees_with_torchmetrics(torchmetrics):
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, 5, 20, 255], (6, 40, 50), p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    prediction = np.where(
        rng.random(truth.shape) < 0.6, np.where(truth == 255, 7, truth), rng.integers(0, 9, truth.shape)
    )
    confusions = np.stack([metrics.confusion_matrix(t, p) for t, p in zip(truth, prediction, strict=True)])
    jaccard = torchmetrics.MulticlassJaccardIndex(21, average="none", ignore_index=255)
    expected = jaccard(torch.from_numpy(prediction), torch.from_numpy(truth)).double().numpy()
    present = confusions.sum((0, 1)) + confusions.sum((0, 2)) > 0
    assert metrics.iou(confusions.sum(0))[present] == pytest.approx(expected[present], abs=1e-6)
    assert metrics.segmentation_scores(confusions)["score"] == pytest.approx(100 * expected[present].mean(), abs=1e-4)


def test_iou_of_many_matrices():
    confusions = np.random.default_rng(1).integers(0, 9, (2, 3, 4, 4))
    assert metrics.mean_iou(confusions).shape == (2, 3)
    assert metrics.iou(confusions)[1, 2] == pytest.approx(metrics.iou(confusions[1, 2]))


def test_weights_count_copies_of_images():
    rng = np.random.default_rng(2)
    confusions, weights = rng.integers(0, 1000, (7, 21, 21)), metrics.bootstrap_weights(7, 5, seed=1)
    confusions[:, 4], confusions[:, :, 4] = 0, 0
    confusions[2, 4, 4] = 9  # a class of one image only, absent from some resamples
    scores = metrics.segmentation_scores(confusions, weights)
    each = [scores[name] for name in ("score", "companion", "per_class", "image mIoU", "pixel accuracy")]
    for row, (score, foreground, per_class, of_images, right) in zip(weights, zip(*each, strict=True), strict=True):
        repeated = np.repeat(confusions, row, axis=0)
        copies = repeated.sum(0)
        assert of_images == pytest.approx(np.mean([metrics.mean_iou(one) for one in repeated]))
        assert right == pytest.approx(100 * np.trace(copies) / copies.sum())
        assert score == metrics.mean_iou(copies) and foreground == metrics.foreground_mean_iou(copies)
        assert np.array_equal(per_class, 100 * metrics.iou(copies), equal_nan=True)
    assert {bool(absent) for absent in np.isnan(scores["per_class"][:, 4])} == {True, False}


def test_other_metrics_of_segmentation_by_hand():
    # image 1: IoU 3/4 and 1/2 in 5 pixels, 4 right; image 2: class 0 alone, 1 of 4 right, the others called 1
    confusions = np.array([[[3, 1], [0, 1]], [[1, 3], [0, 0]]])
    scores = metrics.segmentation_scores(confusions)
    assert scores["image mIoU"] == pytest.approx(100 * ((3 / 4 + 1 / 2) / 2 + (1 / 4 + 0) / 2) / 2)
    assert scores["pixel accuracy"] == pytest.approx(100 * 5 / 9)
    nothing = metrics.segmentation_scores(np.array([[[3, 1], [0, 1]], [[0, 0], [0, 0]]]))  # an image that is all void
    assert nothing["image mIoU"] == pytest.approx(62.5)


def test_objects_found_by_hand():
    other, nothing = (20, 0, 29, 9), (40, 40, 49, 49)
    truths = [objects((BOX, 1, False), (other, 2, False)), objects((BOX, 1, False))]
    found = [
        detections((BOX, 1, 0.9), (nothing, 1, 0.8), (other, 2, 0.4)),  # the last is right, and not sure
        detections((BOX, 2, 0.7)),
    ]
    matches = metrics.match_detections(truths, found)
    assert metrics.objects_found(matches).tolist() == [1, 0]
    assert metrics.detection_scores(matches)["objects found"] == pytest.approx(100 / 3)
    assert metrics.detection_scores(matches, np.array([[2, 0], [0, 2]]))["objects found"] == pytest.approx([50, 0])


def test_wrong_label_maps_are_refused():
    with pytest.raises(ValueError, match=r"label map \(2, 2\) and prediction \(2, 3\) differ"):
        metrics.confusion_matrix(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="label map holds label 21"):
        metrics.confusion_matrix(np.array([21]), np.array([0]))
    with pytest.raises(ValueError, match="prediction holds label 255"):
        metrics.confusion_matrix(np.array([0]), np.array([255]))
    with pytest.raises(ValueError, match="prediction holds label -1"):
        metrics.confusion_matrix(np.array([0]), np.array([-1]))


# Matching


@pytest.mark.parametrize(
    ("box", "hit"),
    [
        ((10, 10, 19, 14), True),  # 50 of 100 pixels: exactly 1/2, and 36/81 if the last pixel did not count
        ((10, 10, 19, 13), False),  # 40 of 100
        ((10, 10, 29, 19), True),  # 100 of 200
        ((10, 10, 30, 19), False),  # 100 of 210
        ((20, 10, 29, 19), False),  # next to it
    ],
)
def test_half_an_overlap_is_a_hit(box, hit):
    matches = metrics.match_detections([objects((BOX, 3, False))], [detections((box, 3, 0.5))])
    assert matches.hits.tolist() == [hit]


def test_the_best_scored_detection_takes_the_object():
    found = detections((BOX, 1, 0.3), (BOX, 1, 0.9), (BOX, 1, 0.5))
    matches = metrics.match_detections([objects((BOX, 1, False))], [found])
    assert matches.scores == pytest.approx([0.9, 0.5, 0.3])
    assert matches.hits.tolist() == [True, False, False]


def test_a_detection_has_one_object_even_if_it_is_taken():
    # the second detection overlaps the free object with 90/110, but the taken one more
    truth = objects((BOX, 1, False), ((10, 11, 19, 20), 1, False))
    matches = metrics.match_detections([truth], [detections((BOX, 1, 0.9), (BOX, 1, 0.8))])
    assert matches.hits.tolist() == [True, False]


def test_classes_and_images_do_not_mix():
    truths = [objects((BOX, 1, False)), objects((BOX, 2, False))]
    matches = metrics.match_detections(truths, [detections((BOX, 2, 0.9)), detections((BOX, 2, 0.8), (BOX, 1, 0.7))])
    rows = zip(matches.labels, matches.images, matches.hits, strict=True)
    assert list(rows) == [(1, 1, False), (2, 0, False), (2, 1, True)]
    assert matches.counts[:, 1].tolist() == [1, 0] and matches.counts[:, 2].tolist() == [0, 1]


def test_difficult_objects_do_not_count():
    truth = objects((BOX, 1, True), (ELSEWHERE, 1, False))
    found = detections((BOX, 1, 0.9), (BOX, 1, 0.8), (ELSEWHERE, 1, 0.7))
    matches = metrics.match_detections([truth], [found])
    assert matches.hits.tolist() == [True] and matches.counts[0, 1] == 1
    assert ap([truth], [found]) == pytest.approx((100, 100))


def test_torch_detections_are_taken_as_they_are():
    found = SimpleNamespace(boxes=torch.tensor([BOX]).float(), labels=torch.tensor([1]), scores=torch.tensor([0.5]))
    assert metrics.match_detections([objects((BOX, 1, False))], [found]).hits.tolist() == [True]


def test_malformed_detections_are_refused():
    truth = [objects((BOX, 1, False))]
    with pytest.raises(ValueError, match="1 images have objects but 2 have detections"):
        metrics.match_detections(truth, [detections()] * 2)
    with pytest.raises(ValueError, match="image number 0: a detection's class is 0; use class ids 0..20, without"):
        metrics.match_detections(truth, [detections((BOX, 0, 0.5))])
    with pytest.raises(ValueError, match="image number 0: a box or score is not finite"):
        metrics.match_detections(truth, [detections((BOX, 1, np.nan))])
    with pytest.raises(ValueError, match=r"image number 0: \(1, 4\) boxes, \(2,\) labels"):
        metrics.match_detections(
            truth, [SimpleNamespace(boxes=np.zeros((1, 4)), labels=np.ones(2, int), scores=np.ones(1))]
        )


# Average precision


@pytest.mark.parametrize(
    ("pattern", "missed", "points", "area"),
    [
        # recall 1/1
        ("H", 0, Fraction(1), Fraction(1)),
        # all missed; none right
        ("", 3, Fraction(0), Fraction(0)),
        ("FF", 3, Fraction(0), Fraction(0)),
        # precision 1/2 at recall 1
        ("FH", 0, Fraction(1, 2), Fraction(1, 2)),
        # the interpolated curve: 1 to recall 1/2 (0 .. 0.5), then 2/3
        ("HFH", 0, (6 + 5 * Fraction(2, 3)) / 11, (1 + Fraction(2, 3)) / 2),
        # precision 2/3 at recall 1 lifts the 1/2 before it
        ("FHH", 0, Fraction(2, 3), Fraction(2, 3)),
        # recalls of exactly 0.3, 0.6 and 0.7 of 10 objects reach their thresholds
        ("HHH", 7, Fraction(4, 11), Fraction(3, 10)),
        ("HHHFFHHH", 4, (4 + 3 * Fraction(6, 8)) / 11, (3 + 3 * Fraction(6, 8)) / 10),
        (
            "HHHFHHHFH",
            3,
            (4 + 3 * Fraction(6, 7) + Fraction(7, 9)) / 11,
            (3 + 3 * Fraction(6, 7) + Fraction(7, 9)) / 10,
        ),
        # 0.7 of 20 objects
        ("H" * 14, 6, Fraction(8, 11), Fraction(7, 10)),
    ],
)
def test_average_precision_by_hand(pattern, missed, points, area):
    assert ap(*one_class(pattern, missed)) == pytest.approx((100 * float(points), 100 * float(area)), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_agrees_with_the_development_kit(seed):
    truths, found = random_set(np.random.default_rng(seed), 40)
    scores = metrics.detection_scores(metrics.match_detections(truths, found))
    expected = {label: devkit(truths, found, label) for label in range(1, 21)}
    present = [label for label in expected if expected[label] is not None]
    assert np.flatnonzero(~np.isnan(scores["per_class"][0])).tolist() == present == [1, 2, 3, 4]
    assert scores["per_class"][0, present] == pytest.approx([expected[label][0] for label in present], rel=1e-12)
    assert scores["score"][0] == pytest.approx(np.mean([expected[label][0] for label in present]), rel=1e-12)
    assert scores["companion"][0] == pytest.approx(np.mean([expected[label][1] for label in present]), rel=1e-12)


@pytest.mark.slow
def test_area_agrees_with_the_curve_of_torchmetrics(torchmetrics):
    # scores with many ties: torchmetrics, too, has one point per score
    truths, found = random_set(np.random.default_rng(8), 60, classes=1, levels=25)
    matches = metrics.match_detections(truths, found)
    ours = metrics.detection_scores(matches)
    keep = matches.labels == 1
    flags = torch.from_numpy(matches.hits[keep].astype(int))
    # scaled into the open interval (0, 1): torchmetrics takes scores outside for logits
    score = torch.from_numpy(0.01 + 0.98 * matches.scores[keep])
    precision, recall, _ = torchmetrics.BinaryPrecisionRecallCurve()(score, flags)
    precision, recall = precision.double().numpy()[:-1][::-1], recall.double().numpy()[:-1][::-1]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = flags.sum().item() / matches.counts[:, 1].sum()
    expected = reached * (np.diff(recall, prepend=0) * envelope).sum()
    assert ours["companion"][0] == pytest.approx(100 * expected, rel=1e-5)
    # without interpolation the area can only be smaller
    raw = torchmetrics.BinaryAveragePrecision()(score, flags).item()
    assert 0 < 100 * reached * raw <= ours["companion"][0] + 1e-4


def test_a_class_without_objects_is_left_out():
    truths = [objects((BOX, 1, False), (ELSEWHERE, 2, True))]
    scores = metrics.detection_scores(
        metrics.match_detections(truths, [detections((BOX, 1, 0.9), (BOX, 2, 0.9), (BOX, 3, 0.9))])
    )
    assert scores["score"] == scores["companion"] == pytest.approx(100)
    assert np.flatnonzero(~np.isnan(scores["per_class"][0])).tolist() == [1]


def test_no_objects_at_all_is_nan():
    scores = metrics.detection_scores(metrics.match_detections([objects()], [detections((BOX, 1, 0.9))]))
    assert np.isnan(scores["score"]) and np.isnan(scores["companion"])


def test_ties_do_not_depend_on_order():
    truths, found = random_set(np.random.default_rng(9), 30, levels=3)
    expected = ap(truths, found)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(30)
        assert ap([truths[i] for i in order], [found[i] for i in order]) == pytest.approx(expected, rel=1e-12)
    # a hit and a false positive of equal score: one point, precision 1/2
    truths = [objects((BOX, 1, False)), objects()]
    assert ap(truths, [detections((BOX, 1, 0.5))] * 2) == pytest.approx((50, 50))


@pytest.mark.parametrize("levels", [None, 5])
def test_weights_are_copies_of_images(levels):
    truths, found = random_set(np.random.default_rng(10), 12, levels=levels)
    truths.append(objects((BOX, 9, False)))  # a class of one image only
    found.append(detections((BOX, 9, 0.4)))
    weights = metrics.bootstrap_weights(13, 20, seed=4)
    scores = metrics.detection_scores(metrics.match_detections(truths, found), weights)
    each = [scores[name] for name in ("score", "companion", "per_class")]
    for row, (points, area, per_class) in zip(weights, zip(*each, strict=True), strict=True):
        copies = np.random.default_rng(0).permutation(np.repeat(np.arange(13), row))
        repeated = metrics.detection_scores(
            metrics.match_detections([truths[i] for i in copies], [found[i] for i in copies])
        )
        assert (points, area) == pytest.approx((repeated["score"][0], repeated["companion"][0]), rel=1e-12)
        assert np.allclose(per_class, repeated["per_class"][0], rtol=1e-12, equal_nan=True)
    assert {bool(absent) for absent in np.isnan(scores["per_class"][:, 9])} == {True, False}


def test_chunks_do_not_change_the_scores(monkeypatch):
    truths, found = random_set(np.random.default_rng(11), 20)
    matches, weights = metrics.match_detections(truths, found), metrics.bootstrap_weights(20, 9, seed=0)
    whole = metrics.detection_scores(matches, weights)
    monkeypatch.setattr(metrics, "_CHUNK", 70)
    pieces = metrics.detection_scores(matches, weights)
    for name in whole:
        assert np.array_equal(whole[name], pieces[name], equal_nan=True)


# Bootstrap


def test_bootstrap_weights_are_resamples():
    weights = metrics.bootstrap_weights(50, 4000, seed=1)
    assert weights.shape == (4000, 50) and weights.dtype == np.int64 and (weights.sum(1) == 50).all()
    assert np.array_equal(weights, metrics.bootstrap_weights(50, 4000, seed=1))
    assert not np.array_equal(weights, metrics.bootstrap_weights(50, 4000, seed=2))
    # multinomial: mean 1, variance 1 - 1/n, covariance -1/n; tolerances are 5 standard errors
    assert weights.mean(0) == pytest.approx(np.ones(50), abs=5 / 4000**0.5)
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.02)
    assert np.cov(weights[:, 0], weights[:, 1])[0, 1] == pytest.approx(-1 / 50, abs=5 / 4000**0.5)


def test_bootstrap_standard_error_of_segmentation_is_that_of_a_mean():
    # each image has 100 pixels of class 1 and no false alarm: its IoU is the mean fraction found
    found = np.random.default_rng(3).integers(0, 101, 60)
    confusions = np.zeros((60, 2, 2), int)
    confusions[:, 1, 1], confusions[:, 1, 0] = found, 100 - found
    scores = metrics.segmentation_scores(confusions, metrics.bootstrap_weights(60, 4000, seed=5))
    expected = found.std() / 60**0.5
    assert scores["companion"].mean() == pytest.approx(found.mean(), abs=5 * expected / 4000**0.5)
    assert scores["companion"].std() == pytest.approx(expected, rel=5 / (2 * 4000) ** 0.5)


def test_bootstrap_standard_error_of_detection_is_that_of_a_mean():
    # no false positives: area AP is the recall, the mean of 24 ones and 36 zeros
    matches = metrics.match_detections(*one_class("H" * 24, missed=36))
    scores = metrics.detection_scores(matches, metrics.bootstrap_weights(60, 4000, seed=5))
    expected = 100 * (0.4 * 0.6 / 60) ** 0.5
    assert scores["companion"].mean() == pytest.approx(40, abs=5 * expected / 4000**0.5)
    assert scores["companion"].std() == pytest.approx(expected, rel=5 / (2 * 4000) ** 0.5)


def test_wrong_weights_are_refused():
    confusions = np.ones((3, 2, 2), int)
    with pytest.raises(ValueError, match=r"weights \(2, 4\) do not fit 3 images"):
        metrics.segmentation_scores(confusions, np.ones((2, 4), int))
    with pytest.raises(ValueError, match=r"weights \(1, 2\) do not fit 1 images"):
        metrics.detection_scores(metrics.match_detections([objects()], [detections()]), np.ones((1, 2), int))
    with pytest.raises(ValueError, match="weights are float64"):
        metrics.segmentation_scores(confusions, np.ones((1, 3)))
