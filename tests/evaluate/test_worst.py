from itertools import product

import numpy as np
import pytest

from dag.evaluate.metrics import mean_iou
from dag.evaluate.worst import worst_confusions, worst_detections


def miou(confusions, chosen):
    return float(mean_iou(sum(confusions[attack, image] for image, attack in enumerate(chosen))))


def test_exchange_by_hand():
    # Two images, two attacks.  Each attack ruins one image: together mIoU is (0 + 0) / 2, alone it is not.
    right, wrong = [[2, 0], [0, 2]], [[0, 2], [2, 0]]
    confusions = np.array([[wrong, right], [right, wrong]])
    assert worst_confusions(confusions, np.random.default_rng(0)).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_exchange_ends_where_no_other_choice_for_one_image_is_lower(seed):
    rng = np.random.default_rng(seed)
    confusions = rng.integers(0, 50, (3, 5, 4, 4))
    chosen = worst_confusions(confusions, np.random.default_rng(seed))
    reached = miou(confusions, chosen)
    assert reached <= min(miou(confusions, [attack] * 5) for attack in range(3))
    for image, attack in product(range(5), range(3)):
        other = chosen.copy()
        other[image] = attack
        assert miou(confusions, other) >= reached - 1e-12
    # and not far from the best of all 3^5 choices: an exchange may end in a local minimum
    assert reached <= min(miou(confusions, all_) for all_ in product(range(3), repeat=5)) + 3


def test_the_lowest_score_then_the_most_false_positives_then_the_first():
    scores = [[20, 10, 10, 0, np.nan], [10, 10, 10, 0, np.nan]]
    false = [[0.0, 0.5, 2.0, 0.7, 0.1], [0.0, 1.5, 2.0, 0.0, 0.2]]
    assert worst_detections(scores, false).tolist() == [1, 1, 0, 0, 1]
