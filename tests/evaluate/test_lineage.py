"""Relations, agreement and means of pairs by hand; the bootstrap over lineages against explicit copies."""

from itertools import permutations

import numpy as np
import pytest

from dag.evaluate import lineage
from dag.networks.likeness import Likeness


def relative(family, of, parent=None, **arguments):
    return {"family": family, "lineage": of, "parent": parent, "arguments": arguments}


KIN = {
    "a": relative("esp", "a", width=1, size=256),
    "a2": relative("esp", "a", "a", width=1, size=384),
    "a3": relative("esp", "a", "a", width=1, size=512),
    "b": relative("esp", "b", width=2, size=256),
    "c": relative("dice", "c", size=256),
}


@pytest.mark.parametrize(
    ("source", "victim", "found"),
    [
        ("a", "a", {"white box"}),
        ("a", "a2", {"same lineage", "parent to child"}),
        ("a2", "a", {"same lineage", "child to parent"}),
        ("a2", "a3", {"same lineage"}),
        # of another size, as children are; of the same size
        ("b", "a2", {"same architecture, other lineage", "same architecture, matched"}),
        ("b", "a", {"same architecture, other lineage"}),
        ("c", "a", {"other architecture"}),
    ],
)
def test_relations(source, victim, found):
    assert lineage.relations(source, victim, KIN) == found


def test_an_argument_that_two_networks_leave_out_is_one_that_they_share():
    """Children say their size, parents have the default."""
    kin = {
        "s": relative("esp", "s", width=1),
        "s2": relative("esp", "s", "s", width=1, size=384),
        "l": relative("esp", "l", width=2),
        "l2": relative("esp", "l", "l", width=2, size=384),
    }
    matched = {(a, b): lineage.MATCHED in lineage.relations(a, b, kin) for a in ("s", "s2") for b in ("l", "l2")}
    assert matched == {("s", "l"): False, ("s", "l2"): True, ("s2", "l"): True, ("s2", "l2"): False}


def test_what_networks_have_in_common():
    assert lineage.in_common(KIN["a"], KIN["a2"]) == ["family", "lineage", "width"]
    assert lineage.in_common(KIN["a"], KIN["b"]) == ["family", "size"]
    assert lineage.in_common(KIN["b"], KIN["c"]) == ["size"]


def test_attacks_are_called_by_variant_and_scale():
    names = ["a", "a@cospgd-8", "a.p-4", "a@cospgd-8.p-25"]
    assert [lineage.attack_of(name) for name in names] == ["dag", "cospgd-8", "dag.p-4", "cospgd-8.p-25"]


def test_agreement_by_hand():
    first = [np.array([[0, 0, 0, 5]]), np.array([[7, 7, 0, 0]])]
    second = [np.array([[0, 0, 3, 5]]), np.array([[7, 0, 2, 0]])]
    # 3 of 4 and 2 of 4 pixels; of those that either takes for an object 1 of 2 and 1 of 3
    found = lineage.agreement(first, second, ground=0)
    assert found == {"pixels_agree": pytest.approx(62.5), "objects_agree": pytest.approx(100 * (1 / 2 + 1 / 3) / 2)}
    # the background is another class, or there is none
    assert lineage.agreement(first[:1], second[:1], ground=5)["objects_agree"] == pytest.approx(100 * 2 / 3)
    assert lineage.agreement(first, second, ground=None)["objects_agree"] == found["pixels_agree"]
    nothing = [np.zeros((2, 2), int)]
    assert lineage.agreement(nothing, nothing, ground=0) == {"pixels_agree": 100.0, "objects_agree": None}


def test_pairs_by_hand():
    known = {"perceptibility": 0.004}
    scores = {
        ("a2", "none", "float"): (np.array([50.0, 40.0, 0.0]), {"perceptibility": 0.0}),
        ("a2", "a@x", "float"): (np.array([40.0, 10.0, 0.0]), known),
        ("a2", "c@x", "float"): (np.array([50.0, 44.0, 0.0]), known),
    }
    weights = {frozenset("ac"): Likeness(0.1, 1, 2), frozenset(("a", "a2")): Likeness(0.9, 3, 4)}
    labels = {frozenset(("a", "a2")): {"pixels_agree": 80.0, "objects_agree": 60.0}}
    akin, strange = lineage.pairs(scores, KIN, weights, labels)
    np.testing.assert_allclose(akin["drop"], [10, 30, 0])
    np.testing.assert_allclose(akin["lost"], [20, 75, np.nan])
    np.testing.assert_allclose(strange["lost"], [0, -10, np.nan])
    text = lineage.summary(akin)
    assert (text["relations"], text["in_common"]) == ("parent to child; same lineage", "family; lineage; width")
    assert (text["correlation"], text["layers"], text["of"], text["objects_agree"]) == (0.9, 3, 4, 60.0)
    assert (text["drop"], text["lost"], text["clean"], text["perceptibility"]) == (10, 20, 50, 0.004)
    assert (text["drop_low"], text["drop_high"]) == (pytest.approx(0.75), pytest.approx(29.25))
    assert strange["correlation"] is None and strange["layers"] is None and strange["pixels_agree"] is None


def pair(source, victim, lost, attack="dag", pixels="float", **known):
    related = lineage.relations(source, victim, KIN)
    return {
        "attack": attack,
        "pixels": pixels,
        "relations": [name for name in lineage.RELATIONS if name in related],
        "lineages": [KIN[source]["lineage"], KIN[victim]["lineage"]],
        "lost": np.atleast_1d(np.asarray(lost, float)),
        **dict.fromkeys(lineage.LIKENESS),
        **known,
    }


def by_relation(rows):
    return {(row["attack"], row["pixels"], row["relation"]): row for row in rows}


def test_means_and_differences_by_fractions():
    """Losses in eighths, so that every mean is exact."""
    rows = lineage.groups(
        [
            pair("a", "a", 90, correlation=1.0),
            pair("a", "a2", 30, correlation=0.75),
            pair("a2", "a", 10, correlation=0.5),
            pair("a", "b", 4),
            pair("b", "a2", 1),
            pair("c", "a", -2),
            pair("a", "c", 3),
            pair("a", "a2", 24, pixels="8-bit"),
        ],
        resamples=9,
        seed=1,
    )
    found = by_relation(rows)
    means = {relation: row["lost"] for (_, pixels, relation), row in found.items() if pixels == "float"}
    assert means == {
        "white box": 90,
        "parent to child": 30,
        "child to parent": 10,
        "same lineage": 20,
        "same architecture, matched": 1,
        "same architecture, other lineage": 2.5,
        "other architecture": 0.5,
        "same lineage - same architecture, matched": 19,
        "same lineage - same architecture, other lineage": 17.5,
        "same architecture, other lineage - other architecture": 2,
        "parent to child - child to parent": 20,
    }
    assert found["dag", "float", "same lineage"]["pairs"] == 2
    assert found["dag", "float", "same lineage"]["correlation"] == 0.625
    assert found["dag", "float", "other architecture"]["correlation"] is None
    assert found["dag", "8-bit - float", "parent to child"]["lost"] == -6
    assert found["dag", "8-bit - float", "parent to child"]["pairs"] is None


def test_attacks_are_not_mixed():
    found = by_relation(lineage.groups([pair("a", "a2", 4), pair("a", "a2", 8, attack="pgd-8")], 9, 1))
    assert found["dag", "float", "same lineage"]["lost"] == 4
    assert found["pgd-8", "float", "same lineage"]["lost"] == 8


def test_the_interval_over_images_is_paired():
    """Of 41 resamples the interval is from the second to the last but one; what two pairs share cancels."""
    shared = np.arange(41.0)
    lost = np.concatenate([[20.0], shared])
    rows = by_relation(lineage.groups([pair("a", "a2", lost + 7), pair("a", "b", lost)], 9, 1))
    row = rows["dag", "float", "same lineage"]
    assert (row["images_low"], row["images_high"]) == (pytest.approx(8), pytest.approx(46))
    difference = rows["dag", "float", "same lineage - same architecture, other lineage"]
    assert (difference["lost"], difference["images_low"], difference["images_high"]) == (7, 7, 7)


def test_the_interval_over_networks_by_the_binomial_distribution():
    """White box losses 0, 0, 3: the mean of three drawn lineages is k of Binomial(3, 1/3), 0 to 3 with 95 %."""
    rows = lineage.groups([pair("a", "a", 0), pair("b", "b", 0), pair("c", "c", 3)], 20000, 5)
    assert (rows[0]["lost"], rows[0]["networks_low"], rows[0]["networks_high"]) == (1, 0, 3)


def test_two_lineages_tell_nothing_of_other_networks():
    [row] = lineage.groups([pair("a", "a", 0), pair("b", "b", 3)], 9, 5)
    assert row["networks_low"] is None and row["networks_high"] is None


def test_a_draw_of_lineages_is_a_set_of_copies():
    """Every draw against the mean over all pairs of copies of different lineages, and of networks within a copy."""
    units, names = ["a", "b", "c"], {"a": ["a", "a2"], "b": ["b"], "c": ["c"]}
    rng = np.random.default_rng(2)
    lost = {(source, victim): rng.normal() for source in KIN for victim in KIN}
    drawn = np.array([[1, 1, 1], [2, 1, 0], [0, 3, 0], [1, 0, 2]])
    between = [("a", "b"), ("a2", "b"), ("b", "a"), ("b", "c"), ("c", "a2")]
    _, found = lineage._means([pair(*two, lost[two]) for two in between], units, drawn)
    for counts, mean in zip(drawn, found, strict=True):
        copies = [unit for unit, count in zip(units, counts, strict=True) for _ in range(count)]
        values = [
            lost[source, victim]
            for one, other in permutations(copies, 2)
            for source in names[one]
            for victim in names[other]
            if (source, victim) in between and one != other
        ]
        assert mean == pytest.approx(np.mean(values)) if values else np.isnan(mean)
    within = [("a", "a2"), ("b", "b"), ("c", "c")]
    _, found = lineage._means([pair(*two, lost[two]) for two in within], units, drawn)
    expected = [np.average([lost[two] for two in within], weights=counts) for counts in drawn]
    np.testing.assert_allclose(found, expected)
