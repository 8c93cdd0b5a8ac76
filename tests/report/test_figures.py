import base64
import os
import re
from io import BytesIO

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from dag.data.voc import colour_map
from dag.report.figures import convergence, density, examples, heat_map, style


@pytest.fixture
def table():
    """Two rows of singles and sums around a clean row, two victims, the second without standard errors."""
    rows = [
        ("a+b", "sum", "a", 20.0, 60.0, True),
        ("a+b", "sum", "c", 70.0, 5.0, False),
        ("none", "none", "a", 80.0, 0.0, False),
        ("none", "none", "c", 75.0, 0.0, False),
        ("a", "single", "a", 30.0, 50.0, True),
        ("a", "single", "c", 76.0, -1.0, False),
    ]
    frame = pd.DataFrame(rows, columns=["perturbation", "group", "victim", "score", "drop", "white_box"])
    return frame.assign(
        row_label=frame.perturbation.str.upper(),
        column_label=frame.victim.map({"a": "FR-ZF-07", "c": "DeepLab-MNv2-0.5"}),
        metric="mAP",
        task="detection",
        score_se=frame.victim.map({"a": 2.5, "c": np.nan}),
        perceptibility=frame.perturbation.map({"none": 0, "a": 0.004, "a+b": 0.0062}),
        pixels="float",
    )


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_table_figure_draws_every_number_in_its_cell(table):
    axes = heat_map.table_figure(table, "Table 2").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["NONE", "A", "A+B"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["FR-ZF-07\nmAP", "DeepLab-\nMNv2-0.5\nmAP"]
    rows = dict(zip(["none", "a", "a+b"], axes.get_yticks(), strict=True))
    drawn = {(text.get_position()[0], text.get_position()[1]): text.get_text() for text in axes.texts}
    for cell in table.itertuples():
        x = {"a": 0.5, "c": 1.5}[cell.victim]
        assert drawn[x, rows[cell.perturbation]] == f"{cell.score:.1f}"
    assert texts(axes).count("± 2.5") == 3 and not any("nan" in text for text in texts(axes))
    assert {"4.0", "6.2"} <= set(texts(axes))


def test_table_figure_colours_are_drops_on_one_scale(table):
    figure = heat_map.table_figure(table)
    patches = [patch for patch in figure.axes[0].patches if patch.get_fill()]
    # Order of the frame, the largest drop is 60; a rise is as light as no drop.
    assert [patch.get_facecolor() for patch in patches] == [style.DROP(drop / 60) for drop in (60.0, 5, 0, 0, 50, 0)]
    assert figure.axes[1].get_ylim() == (0, 60)
    frames = [patch.get_xy() for patch in figure.axes[0].patches if not patch.get_fill()]
    assert [int(x) for x, _ in frames] == [0, 0] and len({y for _, y in frames}) == 2


def test_groups_stand_apart(table):
    ticks = heat_map.table_figure(table).axes[0].get_yticks()
    assert np.diff(ticks) == pytest.approx([1.3, 1.3])


def test_table_figure_of_a_white_box_frame(table):
    own = table[table.victim == "a"].assign(
        perturbation=["a.permuted", "none", "a"], condition=["PERM", "ORIG", "ADVR"], source="a"
    )
    axes = heat_map.table_figure(own.iloc[[1, 2, 0]]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ORIG", "ADVR", "PERM"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["FR-ZF-07"]
    assert "4.0" in texts(axes) and "6.2" not in texts(axes)


@pytest.fixture
def points():
    return pd.DataFrame(
        {
            "column_label": ["ZF-07", "ZF-0712"] * 3,
            "nms": [0.9, 0.9, 0.5, 0.5, 0.7, 0.7],
            "score": [13.8, 33.6, 28.0, 61.5, 15.6, 43.8],
            "score_se": [3.0, 3.5, 2.5, 2.0, 1.5, 1.0],
            "proposals": [1580, 1580, 171, 171, 577, 577],
            "targets": [216, 216, 10, 10, 46, 46],
            "perceptibility": [0.006, 0.006, 0.003, 0.003, 0.004, 0.004],
            "white_box": [True, False] * 3,
        }
    )


def test_density_draws_scores_errors_and_counts(points):
    upper, lower, strength = density.density(points, source="ZF-07").axes
    for bars, scores, errors in zip(
        upper.containers, ([28.0, 15.6, 13.8], [61.5, 43.8, 33.6]), ([2.5, 1.5, 3.0], [2.0, 1.0, 3.5]), strict=True
    ):
        line, _, (segments,) = bars
        assert line.get_xydata().T.tolist() == [[0.5, 0.7, 0.9], scores]
        halves = [(segment[1, 1] - segment[0, 1]) / 2 for segment in segments.get_segments()]
        assert halves == pytest.approx(errors)
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["ZF-07 (white box)", "ZF-0712 (black box)"]
    assert upper.get_title() == "perturbations of ZF-07"
    assert strength.lines[0].get_ydata() == pytest.approx([3, 4, 6])
    assert [line.get_ydata().tolist() for line in lower.lines] == [[171, 577, 1580], [10, 46, 216]]
    assert texts(lower) == ["proposals", "targets"]


def test_density_wants_one_number_of_targets_per_threshold(points):
    points.loc[0, "targets"] = 200
    with pytest.raises(ValueError, match="disagree about the number of targets"):
        density.density(points)


def test_convergence_averages_over_the_images_with_targets():
    curves = {
        "Alex": [np.array([8, 4, 0]), np.array([4, 0]), np.array([], int), np.array([6, 5, 3, 2, 0])],
        "ZF": [np.array([10, 7]), np.array([0])],
    }
    left, right = convergence.convergence(curves, {"Alex": "segmentation", "ZF": "detection"}).axes
    assert left.lines[0].get_ydata().tolist() == [6, 3, 1, pytest.approx(2 / 3), 0]
    # The first attack ended with 7 active targets (no gradient) and keeps them.
    assert right.lines[0].get_ydata().tolist() == [5, 3.5]
    assert [axes.get_legend().get_texts()[0].get_text() for axes in (left, right)] == [
        "Alex: 2.3 iterations",
        "ZF: 0.5 iterations",
    ]
    assert [left.get_ylabel(), right.get_ylabel()] == ["active pixels per image", "active proposals per image"]
    # Quartiles of 8, 4, 6 are 5 and 7.
    band = left.collections[0].get_paths()[0].vertices
    assert sorted(set(band[band[:, 0] == 0, 1])) == [5, 7]


def test_convergence_has_a_panel_for_every_variant_that_ends_with_its_lines():
    curves = {"A (x)": [np.array([100, 0])], "A": [np.array([200, 50, 1, 1, 1, 0])], "B": [np.array([90, 3, 0])]}
    figure = convergence.convergence(curves, dict.fromkeys(curves, "detection"), {"A (x)": "x"})
    right, left = figure.axes
    assert [axes.get_title() for axes in (left, right)] == ["Detection", "Detection, x"]
    assert [len(axes.lines) for axes in (left, right)] == [2, 1]
    # 1 of 200 is less than 1 %, 3 of 90 is not
    assert left.get_xlim() == (0, 2) and left.get_xlabel() == "iteration (longest attack: 5)"
    assert right.get_xlim() == (0, 1) and right.get_xlabel() == "iteration"
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[1] > 200


def test_convergence_of_one_task_has_one_panel():
    assert len(convergence.convergence({"ZF": [np.array([1, 0])]}, {"ZF": "detection"}).axes) == 1
    with pytest.raises(ValueError, match="source ZF: no image has targets"):
        convergence.convergence({"ZF": [np.array([])]}, {"ZF": "detection"})


def row(**changes):
    label_map = np.zeros((30, 40), np.uint8)
    label_map[5:20, 5:20] = 1
    r = np.zeros((3, 30, 40), np.float32)
    r[0, 0, 0], r[1, 0, 1] = 4, -60
    one = {
        "label": "FCN-Alex*",
        "status": "converged",
        "image": np.full((3, 30, 40), 253, np.float32),
        "perturbation": r,
        "truth": label_map,
        "before": label_map * 15,
        "after": label_map * 20,
    }
    return one | changes


def detections(*items):
    boxes, labels, scores = zip(*items, strict=True)
    return {"boxes": np.array(boxes, np.float32), "labels": np.array(labels), "scores": np.array(scores, np.float32)}


def shown(axes):
    return np.asarray(axes.images[0].get_array())


def test_examples_show_the_arrays():
    one = row()
    one["truth"][0, :] = 255
    figure = examples.examples([one])
    image, perturbation, perturbed, truth, before, after = figure.axes
    assert (shown(image) == 253).all()
    # Magnified by ten around 128, and truncated; the perturbed image is truncated at 255.
    assert shown(perturbation)[0, :3].tolist() == [[168, 128, 128], [128, 0, 128], [128, 128, 128]]
    assert shown(perturbed)[0, :3].tolist() == [[255, 253, 253], [253, 193, 253], [253, 253, 253]]
    assert shown(truth)[[0, 10, 25], [0, 10, 30]].tolist() == [[224, 224, 192], [128, 0, 0], [0, 0, 0]]
    assert shown(before)[10, 10].tolist() == colour_map()[15].tolist()
    assert shown(after)[10, 10].tolist() == colour_map()[20].tolist()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["background", "aeroplane", "person", "tvmonitor", "void"]
    # p = sqrt((4^2 + 60^2) / 1200) / 255 = 6.8e-3.
    assert figure.texts[0].get_text() == "FCN-Alex*: converged, max |r| = 60.0, p = 6.8 · 10⁻³"
    assert {"perturbation × 10\n(grey: 0)", "ground truth"} <= {text.get_text() for text in figure.texts}


def test_detections_are_drawn_above_the_threshold():
    before = detections(([2, 3, 22, 23], 15, 0.4), ([10, 12, 30, 28], 3, 0.9), ([1, 1, 9, 9], 7, 0.51))
    truth = {"boxes": np.array([[5, 5, 20, 20]], np.float32), "labels": np.array([12])}
    figure = examples.examples([row(truth=truth, before=before, after=detections(([0, 0, 5, 5], 1, 0.1)))])
    *_, true, clean, perturbed = figure.axes
    assert texts(true) == ["dog"]
    assert texts(clean) == ["bird 0.90", "car 0.51"] and not perturbed.texts and not perturbed.patches
    boxes = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in clean.patches]
    assert boxes == [(10, 12, 20, 16), (1, 1, 8, 8)]
    assert all(isinstance(patch, Rectangle) for patch in clean.patches)
    assert clean.patches[0].get_edgecolor() == to_rgba(colour_map()[3] / 255)
    assert figure.texts[-1].get_text() == "Detections with a score of at least 0.5." and not figure.legends
    assert len(examples.examples([row(before=before)], threshold=0.3).axes[4].patches) == 3


def test_rows_share_columns_and_may_be_of_different_size_and_task():
    small = row(
        label="R-FCN-RN101",
        image=np.zeros((3, 50, 20), np.float32),
        perturbation=np.ones((3, 50, 20), np.float32),
        truth={"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)},
        before=detections(([15, 1, 30, 60], 20, 1.0)),
        after=detections(([15, 1, 19, 49], 20, 1.0)),
    )
    del small["status"]
    figure = examples.examples([row(), small], truth_title="wanted")
    words = [text.get_text() for text in figure.texts]
    assert len(figure.axes) == 12 and words.count("wanted") == 1
    assert any(word.startswith("R-FCN-RN101: max |r| = 1.0") for word in words)
    left = [axes.get_position(original=True).x0 for axes in figure.axes]
    assert left[:6] == left[6:]
    # A box that sticks out is drawn up to the border.
    assert figure.axes[10].patches[0].get_width() == 4


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"label map of shape \(3, 3\) does not fit an image"):
        examples.examples([row(after=np.zeros((3, 3), np.uint8))])
    with pytest.raises(ValueError, match="does not fit an image"):
        examples.examples([row(perturbation=np.zeros((3, 3, 3), np.float32))])


def victims(one):
    """A detector and a segmentation network that see an example, each with its own ground truth."""
    boxes = {"boxes": np.array([[5, 5, 20, 20]], np.float32), "labels": np.array([12])}
    before, after = detections(([2, 3, 22, 23], 15, 0.8)), detections(([2, 3, 22, 23], 8, 0.7))
    return [
        {"label": "ZF", "truth": boxes, "before": before, "after": after},
        {"label": "Alex", "truth": one["truth"], "before": one["before"], "after": one["after"]},
    ]


def test_transfer_examples_put_clean_above_perturbed():
    one = row()
    block = {key: one[key] for key in ("image", "perturbation")} | {"label": "r1 + r5", "victims": victims(one)}
    figure = examples.transfer_examples([block, block | {"victims": victims(one)[:1]}])
    assert len(figure.axes) == 8 + 6
    clean, perturbed = figure.axes[:4], figure.axes[4:8]
    assert texts(clean[2]) == ["person 0.80"] and texts(perturbed[2]) == ["cat 0.70"]
    assert (shown(clean[0]) == 253).all() and shown(perturbed[0])[0, 1].tolist() == [253, 193, 253]
    assert shown(perturbed[1])[0, 0].tolist() == [168, 128, 128]
    assert shown(perturbed[3])[10, 10].tolist() == colour_map()[20].tolist()
    assert clean[0].get_position().y0 > perturbed[0].get_position().y1
    words = [text.get_text() for text in figure.texts]
    assert words.count("clean") == words.count("perturbed") == 2 and {"ZF", "Alex"} <= set(words)
    # the truth of both tasks: boxes on the label map; of a detector alone: boxes on the image
    assert shown(clean[1])[10, 10].tolist() == [128, 0, 0] and texts(clean[1]) == ["dog"]
    assert shown(figure.axes[9])[10, 10].tolist() == [253] * 3 and texts(figure.axes[9]) == ["dog"]


def test_paired_examples_put_the_truth_between_clean_and_perturbed():
    one = row()
    block = {key: one[key] for key in ("image", "perturbation")} | {"label": "r1 + r5", "victims": victims(one)}
    figure = examples.paired_examples([block], note="Chosen by lot.")
    assert len(figure.axes) == 3 * 3
    image, perturbation, perturbed, *others = figure.axes
    assert (shown(image) == 253).all() and shown(perturbation)[0, 0].tolist() == [168, 128, 128]
    assert shown(perturbed)[0, 1].tolist() == [253, 193, 253]
    assert [texts(axes) for axes in others[:3]] == [["person 0.80"], ["dog"], ["cat 0.70"]]
    colours = [shown(axes)[10, 10].tolist() for axes in others[3:]]
    assert colours == colour_map()[[15, 1, 20]].tolist()
    left = [axes.get_position().x0 for axes in figure.axes]
    assert left[:3] == left[3:6] == left[6:] and left[0] < left[1] < left[2]
    words = [text.get_text() for text in figure.texts]
    assert {"image", "ZF", "Alex", "clean", "perturbed"} <= set(words)
    assert words[-1] == "Chosen by lot.\nDetections with a score of at least 0.5."


def test_classes_are_named_where_they_are_widest():
    label_map = np.zeros((300, 400), np.uint8)
    label_map[:, 100:110] = 1  # too narrow for a name
    label_map[100:200, 200:400], label_map[120:140, 0:90] = 15, 255
    label_map[0:20, 300:400] = 15  # less wide than the other region of its class
    *_, truth, _, _ = examples.examples([row(
        image=np.zeros((3, 300, 400)), perturbation=np.zeros((3, 300, 400)), truth=label_map, before=label_map,
        after=label_map,
    )]).axes  # fmt: skip
    assert texts(truth) == ["person"]
    x, y = truth.texts[0].get_position()
    assert 140 < y < 160 and 240 < x < 360


def test_names_have_the_contrast_of_black_or_white_that_is_higher():
    """By WCAG 2: black on mid green (0, 0.5, 0) 4.1 and white 5.1; black on (0.5, 0.5, 0.5) 5.3 and white 3.9."""
    assert [style.ink(shade) for shade in [(0, 0.5, 0), (0.5, 0.5, 0.5), (64 / 255, 0, 0)]] == [
        "white",
        "black",
        "white",
    ]


def test_regions_are_outlined_since_their_colour_may_hardly_differ_from_black():
    label_map = np.zeros((30, 40), np.uint8)
    label_map[5:20, 5:20] = 8  # cat is (64, 0, 0)
    *_, truth, before, _ = examples.examples([row(truth=label_map, before=label_map * 0)]).axes
    assert to_rgba("white") in {tuple(colour) for lines in truth.collections for colour in lines.get_edgecolor()}
    assert not before.collections


def test_small_images_are_embedded_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 30, 40)).astype(np.float32)
    style.save(examples.examples([row(image=noise)]), tmp_path / "figure.svg")
    embedded = re.findall(r'base64,([^"]+)"', (tmp_path / "figure.svg").read_text())
    images = [Image.open(BytesIO(base64.b64decode(text))) for text in embedded]
    assert [image.size for image in images] == [(40, 30)] * 6
    assert (tmp_path / "figure.svg").stat().st_size < 100_000


def test_long_captions_and_notes_stay_on_the_page(monkeypatch):
    one = row(label="a very long label of an example that would not fit on any page at full size " * 2)
    figure = examples.examples([one], note="many words " * 40)
    assert fits(figure) and overlaps(figure, monkeypatch) == []
    assert "many words" in figure.texts[-1].get_text() and figure.texts[-1].get_text().count("\n") > 1


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_save_writes_the_format_of_the_suffix_and_the_same_every_time(tmp_path, points, suffix):
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    paths = [tmp_path / f"{name}.{suffix}" for name in ("first", "second")]
    for path in paths:
        style.save(density.density(points), path)
    contents = [path.read_bytes() for path in paths]
    assert contents[0].startswith(start) and len(contents[0]) > 5000
    assert contents[0] == contents[1]
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in paths)


def test_save_leaves_the_old_file_if_drawing_fails(tmp_path, points, monkeypatch):
    path = tmp_path / "figure.svg"
    path.write_text("old")
    figure = density.density(points)

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(MemoryError):
        style.save(figure, path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["figure.svg"]
    with pytest.raises(ValueError, match="figures are written as svg, pdf, png; change the suffix"):
        style.save(figure, tmp_path / "figure.jpg")


def test_the_style_of_the_caller_is_left_alone(points):
    before = dict(matplotlib.rcParams)
    density.density(points)
    assert dict(matplotlib.rcParams) == before


def overlaps(figure, monkeypatch):
    """Pairs of texts of a figure that cover each other; ticks outside the axes exist, but are not drawn."""
    drawn, draw = {}, Text.draw
    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", lambda text, renderer: (drawn.update({id(text): text}), draw(text, renderer))[1])
        figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in drawn.values() if text.get_text()]
    assert boxes
    return [
        (a, b)
        for k, (a, one) in enumerate(boxes)
        for b, other in boxes[k + 1 :]
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]


def fits(figure):
    """Whether everything that is drawn lies on the page (in inches)."""
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height


def test_no_text_covers_another_or_leaves_the_page(table, points, monkeypatch):
    long = table.assign(row_label=table.row_label.replace("A+B", "r1 + r3 + r5 + r7 (algorithm-1, permuted)"))
    one = row(label="DeepLab-MNv2-0.5")
    curves = {"FR-VGG-0712": [np.arange(100, -1, -1)], "DeepLab-MNv2-0.5": [np.arange(9000, -1, -90)]}
    tasks = {"FR-VGG-0712": "detection", "DeepLab-MNv2-0.5": "segmentation"}
    for figure in (
        heat_map.table_figure(long, "A table"),
        heat_map.table_figure(long[long.victim == "a"]),
        density.density(points),
        convergence.convergence(curves, tasks),
        examples.examples([one, one]),
        examples.transfer_examples([one | {"victims": [one] * 4}]),
        examples.paired_examples([one | {"victims": [one] * 2}], note="A note."),
    ):
        assert overlaps(figure, monkeypatch) == [] and fits(figure)
