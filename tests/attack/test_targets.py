"""Which pixels and proposals are attacked: counted and drawn by hand."""

from collections import Counter

import numpy as np
import pytest
import torch

from dag.attack.targets import (
    absent_classes,
    adversarial_labels,
    derangement,
    detection_targets,
    segmentation_targets,
)
from dag.networks.interface import Detector, Proposals
from dag.networks.layers.boxes import overlap
from dag.workflow.seeds import generator

LABELS = (0, 1, 2, 3, 5, 6, 8)  # columns 0..6


# Adversarial labels


@pytest.mark.parametrize("size", [2, 3, 4, 21])
def test_no_class_keeps_its_label(size):
    rng = generator("fixed points", size)
    for _ in range(300):
        permutation = derangement(size, rng)
        assert sorted(permutation) == list(range(size))
        assert not (permutation == np.arange(size)).any()


def test_derangements_are_drawn_uniformly():
    # !4 = 9 derangements, 9000 draws; chi-square with 8 degrees of freedom is below 26.1 in 99.9 % of cases
    rng = generator("uniform")
    counts = Counter(tuple(derangement(4, rng).tolist()) for _ in range(9000))
    assert len(counts) == 9
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 26.1


@pytest.mark.parametrize("size", [0, 1])
def test_one_class_has_no_derangement(size):
    with pytest.raises(ValueError, match=f"{size} class cannot be permuted without a fixed point"):
        derangement(size, generator(0))


def test_present_classes_go_to_different_absent_classes():
    seen = Counter()
    rng = generator("absent")
    for _ in range(600):
        mapping = absent_classes(LABELS, [5, 2], rng)
        images = mapping[[2, 5]].tolist()
        assert len(set(images)) == 2 and set(images) <= {1, 3, 4, 6}
        assert mapping[[0, 1, 3, 4, 6]].tolist() == [0, 1, 3, 4, 6]
        seen[tuple(images)] += 1
    # 4 x 3 ordered pairs, 50 times each; chi-square with 11 degrees of freedom: 31.3 at 99.9 %
    assert len(seen) == 12
    assert sum((count - 50) ** 2 / 50 for count in seen.values()) < 31.3


def test_absent_classes_are_foreground_wherever_background_stands():
    for seed in range(50):
        mapping = absent_classes((7, 0, 3), [0], generator(seed))
        assert mapping.tolist() == [2, 1, 2]
    # a network without background
    assert absent_classes((7, 3), [1], generator(0)).tolist() == [0, 0]


def test_without_background_every_class_is_a_target():
    """Two classes, no background: the one becomes the other, and both are attacked, whatever else is asked for."""
    for background in (False, True):
        targets = segmentation_targets(
            torch.tensor([[0, 1, 255]]), (0, 1), "derangement", background, generator(0), ground=None
        )
        assert targets.labels.tolist() == [0, 1, -1] and targets.adversarial.tolist() == [1, 0, -1]
    assert absent_classes((0, 1, 2), [1], generator(0), ground=None)[1] in (0, 2)


def test_one_column_has_no_adversarial_label():
    with pytest.raises(ValueError, match="needs 2 columns: give it one for background"):
        segmentation_targets(torch.tensor([[0]]), (0,), "derangement", False, generator(0), ground=None)


def test_one_class_beside_background():
    """Algorithm 1 sends it to background; the authors' rule has no absent class to send it to, and says what to set."""
    label_map = torch.tensor([[0, 1]])
    targets = segmentation_targets(label_map, (0, 1), "derangement", False, generator(0))
    assert targets.labels.tolist() == [-1, 1] and targets.adversarial.tolist() == [-1, 0]
    with pytest.raises(ValueError, match="options: {labels: derangement}"):
        segmentation_targets(label_map, (0, 1), "absent", True, generator(0))


def test_half_of_the_classes_may_be_present_and_no_more():
    assert sorted(absent_classes(LABELS, [1, 2, 3], generator(0))[1:4]) == [4, 5, 6]
    with pytest.raises(
        ValueError, match="4 classes are present and only 2 absent.*set `options: {labels: derangement}`"
    ):
        absent_classes(LABELS, [1, 2, 3, 4], generator(0))


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="adversarial labels 'random' are unknown; choose derangement or absent"):
        adversarial_labels("random", LABELS, [1], generator(0))


# Segmentation

#  VOC ids; 255 is void.  Columns: 1 -> 1, 5 -> 4, 8 -> 6.
MAP = torch.tensor([[0, 1, 1, 255], [0, 255, 5, 8], [0, 0, 0, 1]])
TRUTH = [-1, 1, 1, -1, -1, -1, 4, 6, -1, -1, -1, 1]


def test_targets_are_the_foreground_pixels():
    pi = derangement(7, generator("image"))
    targets = segmentation_targets(MAP, LABELS, "derangement", False, generator("image"))
    assert targets.labels.tolist() == TRUTH
    assert targets.adversarial.tolist() == [-1 if label < 0 else pi[label] for label in TRUTH]
    assert targets.count == 5 and targets.available == 12 and targets.proposals is None
    assert targets.labels.dtype == targets.adversarial.dtype == torch.int64


def test_an_adversarial_label_may_be_background():
    drawn = {
        label
        for seed in range(60)
        for label in segmentation_targets(MAP, LABELS, "derangement", False, generator(seed)).adversarial.tolist()
    }
    assert drawn == {-1, 0, 1, 2, 3, 4, 5, 6}


def test_absent_labels_are_no_class_of_the_image():
    for seed in range(30):
        targets = segmentation_targets(MAP, LABELS, "absent", False, generator(seed))
        pairs = {pair for pair in zip(targets.labels.tolist(), targets.adversarial.tolist(), strict=True)}
        pairs.remove((-1, -1))
        assert {label for label, _ in pairs} == {1, 4, 6}
        assert {other for _, other in pairs} == {2, 3, 5}


def test_the_authors_keep_background_as_it_is_and_leave_void_out():
    targets = segmentation_targets(MAP, LABELS, "absent", True, generator(0))
    ground, void = (MAP == 0).flatten(), (MAP == 255).flatten()
    assert (targets.labels[ground] == 0).all() and (targets.adversarial[ground] == 0).all()
    assert (targets.labels[void] == -1).all() and (targets.adversarial[void] == -1).all()
    assert targets.count == 10
    # a derangement would send background away; the rule says otherwise
    targets = segmentation_targets(MAP, LABELS, "derangement", True, generator(0))
    assert (targets.adversarial[ground] == 0).all()


def test_background_need_not_be_the_first_column():
    targets = segmentation_targets(torch.tensor([[0, 3, 255]]), (3, 0), "derangement", False, generator(0))
    assert targets.labels.tolist() == [-1, 0, -1] and targets.adversarial.tolist() == [-1, 1, -1]
    targets = segmentation_targets(torch.tensor([[0, 3, 255]]), (3, 0), "derangement", True, generator(0))
    assert targets.labels.tolist() == [1, 0, -1] and targets.adversarial.tolist() == [1, 1, -1]


@pytest.mark.parametrize("value", [0, 255])
def test_an_image_without_foreground_has_no_targets(value):
    assert segmentation_targets(torch.full((2, 3), value), LABELS, "derangement", False, generator(0)).count == 0


def test_a_class_that_the_network_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"the label map holds classes \[4, 20\], which the network .* does not know"):
        segmentation_targets(torch.tensor([[4, 1], [20, 255]]), LABELS, "derangement", False, generator(0))


def test_the_labels_depend_on_the_generator_alone():
    """The same permutation for any content, size, order of images and network of the same classes."""
    pi = derangement(7, generator("adversarial labels", 2017, "net", "000001"))
    for image_id in ("000002", "000001"):
        rng = generator("adversarial labels", 2017, "net", image_id)
        targets = segmentation_targets(MAP[:, 1:], LABELS, "derangement", False, rng)
    chosen = targets.labels >= 0
    assert targets.adversarial[chosen].tolist() == pi[targets.labels[chosen]].tolist()
    keys = [(2017, "net", "000001"), (2018, "net", "000001"), (2017, "other", "000001"), (2017, "net", "000002")]
    assert len({tuple(derangement(21, generator("adversarial labels", *key))) for key in keys}) == 4


# Boxes


def test_iou_counts_pixels():
    # a box is its pixels, both corners included: 10 x 10 = 100 pixels
    first = torch.tensor([[0, 0, 9, 9.0]])
    second = torch.tensor(
        [
            [0, 0, 9, 9],  # the same
            [5, 0, 14, 9],  # 50 common of 150
            [9, 9, 18, 18],  # one common pixel of 199
            [10, 0, 19, 9],  # side by side: none
            [2, 3, 4, 3],  # three pixels inside
            [0, 0, 0, 0],  # one pixel
            [-5, -5, 4, 4],  # 25 common of 175
        ],
        dtype=torch.float32,
    )
    expected = torch.tensor([[1, 50 / 150, 1 / 199, 0, 3 / 100, 1 / 100, 25 / 175]])
    torch.testing.assert_close(overlap(first, second), expected)
    torch.testing.assert_close(overlap(second, first), expected.T)


def test_iou_against_painted_pixels():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 30, (12, 2, 2)), axis=1)  # (box, low and high, x and y)
    masks = np.zeros((12, 30, 30), bool)
    for mask, ((x0, y0), (x1, y1)) in zip(masks, corners, strict=True):
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    boxes = torch.from_numpy(corners.reshape(12, 4)).float()
    common = (masks[:, None] & masks).sum((2, 3))
    union = (masks[:, None] | masks).sum((2, 3))
    np.testing.assert_allclose(overlap(boxes, boxes).numpy(), common / union, rtol=1e-6)


# Detection


class FakeDetector(Detector):
    """Proposals and their class confidences as given; the image does not matter."""

    def __init__(self, labels, boxes, confidences, index=None):
        super().__init__()
        self.labels = labels
        self.proposals = Proposals(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), index)
        self.confidences = torch.tensor(confidences, dtype=torch.float32).reshape(-1, len(labels))
        self.asked = []

    def features(self, images):
        assert images.shape[0] == 1
        return "features"

    def propose(self, features, *, nms, limit):
        self.asked.append((features, nms, limit))
        return [self.proposals]

    def confidence(self, features, proposals):
        assert features == "features" and proposals[0] is self.proposals
        return self.confidences


def attacked(network, boxes, classes, *, overlap=0.1, confidence=0.1, rule="derangement", rng=None):
    return detection_targets(
        network,
        torch.zeros(1, 3, 40, 40),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(classes, dtype=torch.int64),
        nms=0.9,
        limit=3000,
        overlap=overlap,
        confidence=confidence,
        rule=rule,
        rng=rng or generator("det"),
    )


# Two objects: class 3 (column 1) on pixels 0..9, class 7 (column 2) on pixels 5..14 of the same rows.
OBJECTS = [[0, 0, 9, 9], [5, 0, 14, 9]]


def test_a_target_covers_an_object_and_is_recognised_as_it():
    network = FakeDetector(
        (0, 3, 7),
        [
            [0, 0, 9, 9],  # IoU 1 and 1/3; sure of class 3
            [0, 0, 9, 9],  # IoU 1 with the first, but sure of class 7 only, which it covers by 1/3
            [0, 0, 9, 9],  # sure of neither
            [5, 0, 14, 9],  # IoU 1/3 and 1, sure of both: the larger IoU wins
            [20, 20, 29, 29],  # covers nothing
            [9, 0, 18, 9],  # IoU 10/190 and 60/140; sure of class 3 only, which it covers by less than 0.1
            [4, 0, 8, 9],  # IoU 50/100 and 40/110, sure of both
        ],
        [[0.1, 0.8, 0.1], [0.2, 0.05, 0.75], [1, 0, 0], [0.1, 0.6, 0.3], [0, 0.5, 0.5], [0.5, 0.5, 0], [0, 0.2, 0.8]],
    )
    pi = derangement(3, generator("det"))
    targets = attacked(network, OBJECTS, [3, 7])
    assert targets.proposals.boxes[:, 0].tolist() == [0, 0, 5, 4]
    assert targets.labels.tolist() == [1, 2, 2, 1]
    assert targets.adversarial.tolist() == [pi[1], pi[2], pi[2], pi[1]]
    assert (targets.count, targets.available) == (4, 7)
    assert network.asked == [("features", 0.9, 3000)]


def test_both_limits_are_exclusive():
    # IoU of the first proposal is exactly 1/2, of the second 51/100; confidence 0.5 and just above
    boxes = [[0, 0, 4, 9], [0, 0, 50, 0]]
    truth = [[0, 0, 9, 9], [0, 0, 99, 0]]
    for sure, kept in ((0.5, []), (0.5001, [1])):
        network = FakeDetector((0, 3), boxes, [[0, sure], [0, sure]])
        targets = attacked(network, truth, [3, 3], overlap=0.5, confidence=0.5)
        assert targets.proposals.boxes[:, 2].tolist() == [boxes[row][2] for row in kept]


def test_an_object_of_another_class_with_a_larger_overlap_does_not_hide_one_that_qualifies():
    network = FakeDetector((0, 3, 7), [[0, 0, 9, 9]], [[0.9, 0.05, 0.11]])
    assert attacked(network, OBJECTS, [3, 7]).labels.tolist() == [2]


def test_a_single_stage_network_keeps_its_anchors():
    network = FakeDetector((3, 7), [[0, 0, 9, 9], [20, 0, 29, 9], [5, 0, 14, 9]], [[1, 0]] * 3, torch.tensor([8, 5, 3]))
    targets = attacked(network, OBJECTS[:1], [3])
    assert targets.proposals.index.tolist() == [8, 3]
    assert targets.labels.tolist() == [0, 0] and targets.adversarial.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("proposals", "objects", "classes"),
    [([], OBJECTS, [3, 7]), ([[0, 0, 9, 9]], [], []), ([], [], []), ([[30, 30, 39, 39]], OBJECTS, [3, 7])],
)
def test_nothing_to_attack(proposals, objects, classes):
    network = FakeDetector((0, 3, 7), proposals, [[0, 0.5, 0.5]] * len(proposals))
    targets = attacked(network, objects, classes)
    assert targets.count == 0 and len(targets.proposals) == 0 and targets.available == len(proposals)
    assert targets.labels.shape == targets.adversarial.shape == (0,)


def test_an_object_of_an_unknown_class_is_named():
    with pytest.raises(ValueError, match=r"the image holds objects of classes \[20\], which the network does not know"):
        attacked(FakeDetector((0, 3), [[0, 0, 9, 9]], [[0, 1]]), OBJECTS, [3, 20])


def test_the_labels_do_not_depend_on_the_number_of_proposals():
    many = FakeDetector((0, 3, 7), [[0, 0, 9, 9]] * 5, [[0, 1, 0]] * 5)
    few = FakeDetector((0, 3, 7), [[0, 0, 9, 9]], [[0, 1, 0]])
    results = {
        attacked(network, OBJECTS, [3, 7], rng=generator("same")).adversarial[0].item() for network in (many, few)
    }
    assert len(results) == 1


def test_absent_labels_avoid_the_classes_of_all_objects():
    network = FakeDetector((0, 3, 7, 9, 11), [[0, 0, 9, 9]], [[0, 1, 0, 0, 0]])
    drawn = {attacked(network, OBJECTS, [3, 7], rule="absent", rng=generator(i)).adversarial.item() for i in range(40)}
    assert drawn == {3, 4}


@pytest.mark.gpu
def test_the_device_does_not_matter():
    here = segmentation_targets(MAP, LABELS, "derangement", False, generator("image"))
    there = here.to(torch.device("cuda"))
    assert there.labels.is_cuda and torch.equal(there.adversarial.cpu(), here.adversarial)
    network = FakeDetector((0, 3, 7), [[0, 0, 9, 9]], [[0, 1, 0]])
    expected = attacked(network, OBJECTS, [3, 7])
    network.proposals = Proposals(network.proposals.boxes.cuda())
    network.confidences = network.confidences.cuda()
    arguments = {"nms": 0.9, "limit": 3000, "overlap": 0.1, "confidence": 0.1, "rule": "derangement"}
    boxes, classes = torch.tensor(OBJECTS).float().cuda(), torch.tensor([3, 7]).cuda()
    image = torch.zeros(1, 3, 40, 40, device="cuda")
    found = detection_targets(network, image, boxes, classes, rng=generator("det"), **arguments)
    assert found.labels.is_cuda
    assert torch.equal(found.adversarial.cpu(), expected.adversarial)
