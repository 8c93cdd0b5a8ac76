"""Verdicts on attacks that are known to be sound, and on attacks with one known fault each."""

import pandas as pd
import pytest

from dag.report.claims import ABSENT, FAILS, HOLDS, OPEN
from dag.report.self_tests import self_tests

KEPT, NOWHERE_ZERO, BETTER, FOUND, TO_ZERO, LARGER, MORE = range(7)


def row(attack, value, score, se=1.0, task="detection"):
    return {
        "victim": "net",
        "image_set": "s",
        "table": "t",
        "perturbation": f"net@{attack}-{value}" if value else "none",
        "chosen": "",
        "attack": attack,
        "value": value,
        "condition": f"ε = {value}" if value else "clean",
        "column_label": f"Net, {attack}",
        "task": task,
        "metric": "mAP",
        "companion_metric": "area mAP",
        "score": score,
        "score_se": se,
        "companion": score,
        "companion_se": se,
    }


def curve(*scores, attack="pgd", **more):
    """Clean, then at 2, 4, 8, ..."""
    return pd.DataFrame([row(attack, 2**k if k else 0, score, **more) for k, score in enumerate(scores)])


def source(largest=8.0, status="iteration limit", first=30, active=(30, 5), images=20, settings=None):
    record = {"status": status, "largest": largest, "targets": 40, "start": first, "active": list(active)}
    records = [{**record, "start": first + k % 3 - 1} for k in range(images)]  # of some spread
    known = {"budget": "linf", "eps": 8, "start": "uniform"} if settings is None else settings
    return {"source": "net@pgd-8", "label": "Net (pgd-8)", "settings": known, "records": records, "missing": []}


def plant(*left, label="Net (pgd-8)", eps=8, targets=200, image_set="s"):
    """What an attack leaves of the example in every image."""
    known = {"network": "net", "image_set": image_set, "label": label, "budget": "linf", "eps": eps}
    known |= {"objectness": False, "targets": targets}
    return [known | {"left": number} for number in left]


def verdict(test, budgets=None, iterations=None, sources=None, planted=()):
    empty = pd.DataFrame()
    frame = self_tests(
        empty if budgets is None else budgets,
        empty if iterations is None else iterations,
        sources or [source()],
        planted,
    )
    assert len(frame) == 7
    return frame.verdict[test]


@pytest.mark.parametrize(
    ("test", "given", "expected"),
    [
        (KEPT, {}, HOLDS),
        (KEPT, {"sources": [source(largest=8.000001)]}, FAILS),
        (KEPT, {"sources": [source(settings={})]}, ABSENT),
        (NOWHERE_ZERO, {}, HOLDS),
        (NOWHERE_ZERO, {"sources": [source(), source(status="no gradient")]}, FAILS),
        (BETTER, {}, HOLDS),
        (BETTER, {"sources": [source(first=5, active=(5, 38))]}, OPEN),  # 5 ± 1 of 40, the best iterate counts
        (BETTER, {"sources": [source(first=20, active=(38, 38))]}, FAILS),
        (BETTER, {"sources": [source(settings={"budget": "linf", "eps": 8})]}, ABSENT),
        (
            BETTER,
            {"sources": [source(settings={"budget": "linf", "eps": 8, "start": "uniform", "stages": [[1, 1]]})]},
            ABSENT,
        ),
        (FOUND, {}, ABSENT),
        (FOUND, {"planted": plant(0, 20)}, HOLDS),  # 100 % and 90 %
        (FOUND, {"planted": plant(0, 22)}, FAILS),
        (FOUND, {"planted": plant(100, 100) + plant(0, 0, label="Net (cospgd-8)")}, HOLDS),  # one of both suffices
        (FOUND, {"planted": plant(100, 100, eps=2) + plant(0, 0, label="Net (cospgd-8)")}, FAILS),  # of that budget
        (FOUND, {"planted": plant(100, 100, image_set="other") + plant(*20 * [0])}, FAILS),  # each image set by itself
        (FOUND, {"planted": plant(0, targets=0)}, ABSENT),
        (TO_ZERO, {"budgets": curve(80.0, 40.0, 10.0, 1.0)}, HOLDS),  # 1 + 1.96 < 4
        (TO_ZERO, {"budgets": curve(80.0, 40.0, 10.0, 3.0)}, OPEN),
        (TO_ZERO, {"budgets": curve(80.0, 40.0, 10.0, 9.0)}, FAILS),
        (TO_ZERO, {}, ABSENT),
        (LARGER, {"budgets": curve(80.0, 40.0, 10.0, 12.0)}, HOLDS),  # 2 is less than 1.96 √2
        (LARGER, {"budgets": curve(80.0, 40.0, 10.0, 13.0)}, FAILS),
        (LARGER, {"budgets": curve(80.0, 40.0)}, ABSENT),
        (MORE, {"iterations": curve(80.0, 40.0, 10.0, 1.0)}, HOLDS),
        (MORE, {"iterations": curve(80.0, 10.0, 40.0)}, FAILS),
    ],
)
def test_verdicts(test, given, expected):
    assert verdict(test, **given) == expected


def test_few_images_resolve_nothing_but_what_is_exact():
    frame = self_tests(curve(80.0, 40.0, 1.0), pd.DataFrame(), [source(images=9)], plant(0))
    assert frame.verdict.tolist() == [HOLDS, OPEN, OPEN, OPEN, OPEN, OPEN, ABSENT]


def test_what_is_wrong_is_named():
    frame = self_tests(curve(80.0, 1.0, 30.0), pd.DataFrame(), [source(largest=9.0)], ())
    assert frame.value[KEPT] == "Net (pgd-8): 9 of 8"
    assert frame.value[LARGER] == "Net, pgd: 1.0 at ε = 2, 30.0 at ε = 4"
    assert frame.value[TO_ZERO] == "Net, pgd: mAP 30.0 ± 1.0 of 80.0 at ε = 4"


def test_the_attacks_with_the_least_difference_are_named():
    sources = [source(active=(30, last)) | {"label": f"Net ({last})"} for last in (5, 20, 10, 1)]
    value = self_tests(pd.DataFrame(), pd.DataFrame(), sources, ()).value[BETTER]
    assert value.startswith("4 attacks") and [f"Net ({n})" in value for n in (5, 20, 10, 1)] == [
        True,
        True,
        True,
        False,
    ]


def test_a_row_of_a_table_and_of_a_figure_counts_once():
    once = curve(80.0, 40.0, 10.0, 1.0)
    value = self_tests(pd.concat([once, once], ignore_index=True), pd.DataFrame(), [source()], ()).value[LARGER]
    assert value == "2 comparisons, no rise"


def test_attacks_that_miss_a_planted_example_are_named():
    planted = plant(0, 4) + plant(20, 60, label="Net (pgd-2)", eps=2) + plant(30, 70, label="Net (weak)", eps=2)
    value = self_tests(pd.DataFrame(), pd.DataFrame(), [source()], planted).value[FOUND]
    assert value == (
        "3 attacks, the best of each network and budget at least 80 %; "
        "below 95 % are 2: Net (weak) 75 %, Net (pgd-2) 80 %"
    )


def test_the_worst_of_every_table_counts():
    """And one network on two image sets is asked twice."""
    first, second = (
        curve(80.0, 40.0, last, attack="worst of all").assign(table=name, chosen=name, perturbation="worst of all")
        for name, last in (("one", 30.0), ("two", 0.5))
    )
    for order in ((first, second), (second, first)):
        frame = self_tests(pd.concat(order, ignore_index=True), pd.DataFrame(), [source()], ())
        assert frame.verdict[TO_ZERO] == HOLDS and frame.value[LARGER] == "2 comparisons, no rise"
    elsewhere = curve(80.0, 40.0, 30.0).assign(image_set="other")
    frame = self_tests(pd.concat([curve(80.0, 40.0, 0.5), elsewhere]), pd.DataFrame(), [source()], ())
    assert frame.verdict[TO_ZERO] == FAILS
