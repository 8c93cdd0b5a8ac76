"""Truth and predictions between the classes of a network and of an image set, by hand."""

import numpy as np
import pytest

from dag.data.classes import OTHER, VOID, ClassList, match
from dag.data.truths import Objects, for_image_set, for_network, predicted, without

NETWORK = ClassList(("tv", "cup", "dog"))
IMAGES = ClassList(("rest", "dog", "tree", "tvmonitor"), background="rest")
GROUNDED = ClassList(("cup", "ground", "dog"), background="ground")


def objects(*labels: int, difficult=()) -> Objects:
    boxes = np.arange(4 * len(labels), dtype=np.float32).reshape(-1, 4)
    return Objects(boxes, np.array(labels), np.isin(np.arange(len(labels)), difficult))


def rows(*labels: int, scores=None) -> np.ndarray:
    scores = np.linspace(0.9, 0.1, len(labels)) if scores is None else scores
    boxes = np.arange(4 * len(labels)).reshape(-1, 4)
    return np.column_stack([boxes, labels, scores]).astype(np.float32)


def test_truth_for_a_network():
    truth = np.array([[0, 1, 2], [3, VOID, 1]], np.uint8)
    assert for_network(truth, match(NETWORK, IMAGES)).tolist() == [[VOID, 2, VOID], [0, VOID, 2]]
    assert for_network(truth, match(GROUNDED, IMAGES)).tolist() == [[1, 2, VOID], [VOID, VOID, 2]]
    found = for_network(objects(2, 1, 3, difficult=[1]), match(NETWORK, IMAGES))
    assert found.labels.tolist() == [2, 0] and found.difficult.tolist() == [True, False]
    assert found.boxes[:, 0].tolist() == [4, 8]


def test_predictions_for_an_image_set():
    """A cup is background where both know one, and else no class of the image set."""
    seen = np.array([[0, 1, 2]], np.uint8)
    assert for_image_set(seen, match(NETWORK, IMAGES)).tolist() == [[3, OTHER, 1]]
    assert for_image_set(seen, match(GROUNDED, IMAGES)).tolist() == [[0, 0, 1]]
    assert for_image_set(seen, match(GROUNDED, NETWORK)).tolist() == [[1, OTHER, 2]]
    found = for_image_set(rows(1, 2, 0, 1), match(NETWORK, IMAGES))
    assert found[:, 4].tolist() == [1, 3] and found[:, 0].tolist() == [4, 8]
    assert for_image_set(rows(), match(NETWORK, IMAGES)).shape == (0, 6)


@pytest.mark.parametrize("other", [NETWORK, GROUNDED])
def test_one_list_changes_nothing(other):
    same = match(other, other)
    truth = np.array([[0, 1, 2, VOID]], np.uint8)
    assert np.array_equal(for_network(truth, same), truth) and np.array_equal(for_image_set(truth, same), truth)
    labels = other.foreground
    assert np.array_equal(for_image_set(rows(*labels), same), rows(*labels))
    assert for_network(objects(*labels), same).labels.tolist() == labels


def test_what_does_not_count_is_counted():
    truth, count = without(np.array([[0, 2, 2], [3, VOID, 1]], np.uint8), [2, 3])
    assert truth.tolist() == [[0, VOID, VOID], [VOID, VOID, 1]] and count == 3
    truth, count = without(objects(2, 1, 2, difficult=[2]), [2])
    assert truth.difficult.tolist() == [True, False, True] and count == 1  # one did not count before


def test_the_clean_prediction_as_truth():
    seen = np.array([[0, 1]], np.uint8)
    assert predicted(seen).tolist() == seen.tolist()
    # a class of the network that the image set lacks
    other = predicted(np.array([[0, OTHER], [VOID, 2]], np.uint8))
    assert other.tolist() == [[0, VOID], [VOID, 2]] and other.dtype == np.uint8
    found = predicted(rows(2, 1, 2, scores=[0.9, 0.5, 0.49]))
    assert found.labels.tolist() == [2, 1] and not found.difficult.any() and found.boxes.dtype == np.float32
