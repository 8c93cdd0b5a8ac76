"""Figures beyond the paper: what is drawn is what the frames say, on cases made by hand."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from dag.evaluate import lineage as numbers
from dag.report.figures import budget, classes, files, intervals, lineage, matrix, strength
from dag.report.figures.style import DROP

# Two architectures, their networks named in turn; what each source (row) takes from each victim's 80 points.
FAMILIES = {"vgg-1": "vgg", "zf-1": "zf", "vgg-2": "vgg", "zf-2": "zf"}
TAKEN = pd.DataFrame(
    {"vgg-1": [72, 8, 60, 4], "zf-1": [4, 76, 8, 56], "vgg-2": [56, 4, 76, 0], "zf-2": [8, 64, 4, 72]},
    index=["vgg-1", "zf-1", "vgg-2", "zf-2"],
    dtype=float,
)


def cells(taken=TAKEN, **columns):
    rows = [
        {
            "perturbation": source,
            "row_label": source.upper(),
            "group": "single",
            "victim": victim,
            "column_label": victim.upper(),
            "task": "detection",
            "metric": "mAP",
            "pixels": "float",
            "score": 80 - drop,
            "drop": drop,
            "drop_low": drop - 5,
            "drop_high": drop + 3,
            "mark": "↓" if drop > 5 else "",
            "white_box": source == victim,
            "perceptibility": 0.004,
        }
        for source, drops in taken.iterrows()
        for victim, drop in drops.items()
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_what_is_lost_is_a_share_of_the_clean_score():
    # 60 of 80 points, 3 of 4, 0 of 50, and a gain of 5 on 50
    frame = pd.DataFrame({"score": [20.0, 1.0, 50.0, 55.0], "drop": [60.0, 3.0, 0.0, -5.0]})
    assert matrix.lost(frame).tolist() == [75, 75, 0, -10]


def test_rows_that_are_alike_stand_together():
    leaves, tree = matrix.order(TAKEN.to_numpy())
    assert {frozenset(leaves[:2]), frozenset(leaves[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    # the nearest two: rows 1 and 3 differ by (4, 20, 4, 8), rows 0 and 2 by (12, 4, 20, 4)
    assert tree[0, 2] == pytest.approx(np.sqrt(4**2 + 20**2 + 4**2 + 8**2))
    assert matrix.order(TAKEN.to_numpy()[:2]) == ([0, 1], None)


def test_a_matrix_may_keep_the_order_that_is_given():
    given = matrix.transfer_matrix(cells(), FAMILIES, given=True)
    labels = [label.get_text() for label in given.axes[0].get_yticklabels()]
    assert labels == ["VGG-1", "ZF-1", "VGG-2", "ZF-2"]
    ordered = matrix.transfer_matrix(cells(), FAMILIES)
    assert len(ordered.axes) == len(given.axes) + 2  # its trees


def test_the_matrix_shows_every_pair_in_the_order_of_the_trees():
    figure = matrix.transfer_matrix(cells(), FAMILIES)
    axes = figure.axes[0]
    rows = [label.get_text().lower() for label in axes.get_yticklabels()]
    columns = [label.get_text().lower().split("\n")[0] for label in axes.get_xticklabels()]
    assert sorted(rows) == sorted(columns) == sorted(FAMILIES)
    assert {FAMILIES[rows[0]], FAMILIES[rows[1]]} in ({"vgg"}, {"zf"})
    drawn = {(text.get_position()[1] - 0.5, text.get_position()[0] - 0.5): text for text in axes.texts}
    shades = {patch.get_xy()[::-1]: patch.get_facecolor() for patch in axes.patches if patch.get_width() == 1}
    frames = [patch for patch in axes.patches if not patch.get_fill()]
    for i, source in enumerate(rows):
        for j, victim in enumerate(columns):
            share = 100 * TAKEN.loc[source, victim] / 80
            assert drawn[i, j].get_text() == f"{share:.0f}"
            assert drawn[i, j].get_fontweight() == ("bold" if TAKEN.loc[source, victim] > 5 else "normal")
            assert shades[i, j] == pytest.approx(DROP(share / 100))
            framed = any(int(patch.get_x()) == j and int(patch.get_y()) == i for patch in frames)
            assert framed == (source == victim)
    # one colour per family, at rows and columns alike
    squares = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill()]
    left = [to_hex(patch.get_facecolor()) for patch in squares if patch.get_x() < 0]
    assert (left[0] == left[1]) and (left[2] == left[3]) and left[0] != left[2]


def test_a_matrix_needs_every_pair_and_every_family():
    with pytest.raises(ValueError, match="lacks victim 'zf-2' under 'vgg-2'; give all pairs"):
        matrix.transfer_matrix(cells().query("not (perturbation == 'vgg-2' and victim == 'zf-2')"), FAMILIES)
    with pytest.raises(ValueError, match="network 'zf-2' has no family"):
        matrix.transfer_matrix(cells(), {"vgg-1": "vgg", "zf-1": "zf", "vgg-2": "vgg"})


def scaled():
    """One source and noise at three strengths on two victims, and the source as it is."""
    taken = pd.DataFrame({"a": [8.0, 24, 56, 72], "b": [0.0, 4, 8, 6]}, index=["x.p-1", "x.p-2", "x.p-4", "x"])
    frame = cells(taken)
    noise = cells(taken.iloc[:3] / 8).assign(group="gaussian")
    noise["perturbation"] += ".gaussian"
    frame = pd.concat([frame, noise], ignore_index=True)
    p = frame.perturbation.str.extract(r"p-(\d)")[0].astype(float).fillna(3.1)
    base = frame.perturbation.str.replace(r"\.p-\d", "", regex=True)
    return frame.assign(
        perceptibility=p / 1000, base=base, base_label=base.str.upper(), scaled=frame.perturbation != base
    )


def test_strength_draws_drops_over_perceptibility():
    figure = strength.strength(scaled())
    first, second = figure.axes
    assert first.get_title() == "A (mAP)" and second.get_title() == "B (mAP)"
    attack, noise = (container[0] for container in first.containers)
    assert attack.get_xydata().tolist() == [[1, 8], [2, 24], [4, 56]]
    assert noise.get_xydata().tolist() == [[1, 1], [2, 3], [4, 7]]
    (low, high), *_ = (segment[:, 1] for segment in first.containers[0][2][0].get_segments())
    assert (low, high) == (3, 11)
    hollow = [line for line in first.lines if line.get_markerfacecolor() == "none"]
    assert [line.get_xydata().tolist() for line in hollow] == [[[3.1, 72]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["X", "X.GAUSSIAN", "as the attack left it"]
    # controls are grey, whatever else there is
    assert noise.get_color() == "0.55" and attack.get_color() != "0.55"


def test_files_are_drawn_in_the_order_of_the_configuration():
    kinds = ["float", "8-bit", "jpeg-90"]
    taken = TAKEN.loc[["vgg-1"], ["vgg-1", "zf-1"]]
    frame = pd.concat([cells(taken / (k + 1)).assign(pixels=kind) for k, kind in enumerate(kinds)], ignore_index=True)
    (axes,) = files.files(frame).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["float", "8-bit", "JPEG 90"]
    own, other = (container[0].get_ydata().tolist() for container in axes.containers)
    assert own == [72, 36, 24] and other == pytest.approx([4, 2, 4 / 3])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["VGG-1 (white box)", "ZF-1"]


def test_classes_keep_their_row_in_every_panel():
    frame = pd.DataFrame(
        [("x", "a", "cat", 90, 10), ("x", "a", "dog", 80, 70), ("x", "b", "dog", 60, 0)],
        columns=["perturbation", "victim", "class", "clean", "score"],
    ).assign(row_label="X", column_label=["A", "A", "B"], task="detection")
    first, second = classes.classes(frame).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["cat", "dog"]
    assert [line.get_xydata().tolist() for line in first.lines] == [[[90, 0], [80, 1]], [[10, 0], [70, 1]]]
    assert [line.get_xydata().tolist() for line in second.lines] == [[[60, 1]], [[0, 1]]]


def test_intervals_are_filled_where_they_leave_out_zero():
    frame = pd.DataFrame(
        [("x", "a", "clean", 30, 20, 40, True, True), ("x", "a", "permuted", 1, -2, 4, False, True),
         ("y", "a", "clean", 3, -1, 6, False, False)],
        columns=["perturbation", "victim", "against", "difference", "low", "high", "resolved", "white_box"],
    ).assign(row_label=lambda frame: frame.perturbation.str.upper(), column_label="A", metric="mAP")  # fmt: skip
    figure = intervals.intervals(frame)
    (axes,) = figure.axes
    marks = [line for line in axes.lines if line.get_marker() not in (None, "None", "")]
    assert [line.get_xdata()[0] for line in marks] == [30, 1, 3]
    assert [line.get_markerfacecolor() != "white" for line in marks] == [True, False, False]
    bars = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2 and line not in marks]
    assert bars[:3] == [[20, 40], [-2, 4], [-1, 6]]
    # the line of x lies above that of y, the clean image above the control
    heights = [line.get_ydata()[0] for line in marks]
    assert heights == sorted(heights)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["against clean image", "against permuted"]


def lineage_frames(pixels=("float",)):
    """Means and pairs of two attacks, numbers that are all different."""
    related = [numbers.OWN, numbers.LINEAGE, numbers.ARCHITECTURE, numbers.OTHER]
    rows = [
        {"attack": attack, "pixels": kind, "relation": relation, "lost": 10.0 * k + start, "perceptibility": 0.004}
        | {
            "pairs": 12 if " - " not in relation else None,
            "correlation": 0.875 if k == 1 else None,
            "objects_agree": None,
        }
        for start, attack in ((2.5, "dag"), (6.25, "cospgd-8"))
        for kind in pixels
        for k, relation in enumerate([*related, f"{numbers.LINEAGE} - {numbers.ARCHITECTURE}"])
    ]
    groups = pd.DataFrame(rows)
    groups = groups.assign(
        images_low=groups.lost - 1, images_high=groups.lost + 2, networks_low=None, networks_high=None
    )
    points = [
        {"attack": attack, "pixels": "float", "relations": words, "correlation": likeness, "lost": lost}
        for attack in ("dag", "cospgd-8")
        for words, likeness, lost in [
            (numbers.OWN, None, 99.0),
            (f"{numbers.TO_CHILD}; {numbers.LINEAGE}", 0.875, 40.0),
            (numbers.ARCHITECTURE, -0.0625, 20.0),
            (numbers.OTHER, None, 5.0),
        ]
    ]
    pairs = pd.DataFrame(points)
    return pairs.assign(lost_low=pairs.lost - 3, lost_high=pairs.lost + 4), groups


def test_the_figure_of_lineages_has_a_point_a_pair_at_its_likeness():
    pairs, groups = lineage_frames()
    figure = lineage.lineage(pairs, groups)
    above = figure.axes[: len(groups.attack.unique())]
    assert [axes.get_title().split("\n")[0] for axes in above] == ["dag", "cospgd-8"]
    for axes in above:
        drawn = [tuple(point) for box in axes.containers for point in box[0].get_xydata()]
        assert (0.875, 40) in drawn and (-0.0625, 20) in drawn
        # no layer in common: left of every correlation; a network under its own perturbation is no pair
        assert [y for x, y in drawn if x < -0.1] == [5] and len(drawn) == 3
        (bars,) = [box[2][0].get_segments() for box in axes.containers if box[0].get_xydata()[0, 1] == 40]
        assert np.ptp(bars[0][:, 1]) == pytest.approx(7)


def test_the_figure_of_lineages_prints_every_mean_and_difference():
    pairs, groups = lineage_frames()
    figure = lineage.lineage(pairs, groups)
    below = figure.axes[2:4]
    names = [label.get_text() for label in below[0].get_yticklabels()]
    assert names == [
        "white box\n12 networks",
        "same lineage\n12 pairs, weights 0.88",
        "same architecture, other lineage\n12 pairs",
        "other architecture\n12 pairs",
        "same lineage −\nsame architecture, other lineage",
    ]
    rows = list(groups.relation[:5])
    for axes, attack in zip(below, ("dag", "cospgd-8"), strict=True):
        mine = groups[groups.attack == attack]
        said = {text.get_text(): text.xy[1] for text in axes.texts}
        assert said == {f"{row.lost:.1f}": rows.index(row.relation) for row in mine.itertuples()}


def test_other_pixels_stand_beside_exact_ones():
    pairs, groups = lineage_frames(("float", "8-bit"))
    axes = lineage.lineage(pairs, groups).axes[2]
    faces = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"]
    assert faces.count("white") == 5 and len(faces) == 10


# Score against the budget: network, attack, value, score
SPENT = [
    ("a", "pgd", 0, 80.0), ("a", "pgd", 2, 30.0), ("a", "pgd", 8, 5.0),
    ("a", "cospgd", 0, 80.0), ("a", "cospgd", 8, 1.0),
    ("b", "pgd", 0, 60.0), ("b", "pgd", 2, 20.0), ("b", "pgd", 8, 10.0),
]  # fmt: skip


@pytest.mark.parametrize(("along", "words"), [("eps", "grey levels"), ("iterations", "iterations")])
def test_scores_against_the_budget(along, words):
    frame = pd.DataFrame(SPENT, columns=["victim", "attack", "value", "score"])
    frame = frame.assign(label=frame.victim.str.upper(), metric="mIoU", score_se=1.5)
    figure = budget.budget(frame, along)
    assert [axes.get_title() for axes in figure.axes] == ["A", "B"] and words in figure.get_supxlabel()
    lines = [[line.lines[0].get_xydata().tolist() for line in axes.containers] for axes in figure.axes]
    assert lines == [[[[2, 30], [8, 5]], [[8, 1]]], [[[2, 20], [8, 10]]]]
    clean = [[line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] for axes in figure.axes]
    assert [80.0 in heights for heights in clean] == [True, False] and 60.0 in clean[1]
    (low, high) = figure.axes[1].containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == (18.5, 21.5)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pgd", "cospgd", "clean"]
