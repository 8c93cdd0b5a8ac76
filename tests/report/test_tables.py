import math
import re

import pandas as pd
import pytest

from dag.report import attack_frames, frames, printing, wording

LABELS = {"zf": "FR-ZF", "alex": "FCN-Alex*", "black": "R-FCN_50"}
SYMBOLS = {"zf": "r1", "alex": "r5"}


def cell(perturbation, score, score_se=2.0, drop=0.0, drop_se=0.0, p=0.0, pixels="float"):
    return {
        "perturbation": perturbation,
        "pixels": pixels,
        "score": score,
        "score_se": score_se,
        "companion": score / 2,
        "companion_se": score_se / 2,
        "drop": drop,
        "drop_se": drop_se,
        "drop_low": drop - 2 * drop_se,
        "drop_high": drop + 2 * drop_se,
        "beyond": {},
        "perceptibility": p,
        "linf": 1000 * p,
    }


def budget_cell(perturbation, score, passes, also, chosen=None):
    found = {"also": {name: {"value": value, "se": 1.0} for name, value in also.items()}, "passes": passes}
    return cell(perturbation, score, drop=80.0 - score, p=0.01) | found | ({"chosen": chosen} if chosen else {})


SERIES = [
    {"network": "alex", "attack": "pgd", "sources": {8: "alex@pgd-8", 2: "alex@pgd-2"}},
    {"network": "alex", "attack": "cospgd", "sources": {8: "alex@cospgd-8"}},
    {"network": "zf", "attack": "pgd", "sources": {8: "zf@pgd-8"}},
]


@pytest.fixture
def attacked():
    alex = [
        budget_cell("none", 80.0, 0, {"pixel accuracy": 90.0}),
        budget_cell("alex@pgd-8", 5.0, 21, {"pixel accuracy": 20.0}),
        budget_cell("alex@pgd-2", 30.0, 21, {"pixel accuracy": 50.0}),
        budget_cell("alex@cospgd-8", 2.0, None, {"pixel accuracy": 10.0}),
        budget_cell("worst of all@8", 1.0, None, {"pixel accuracy": 9.0}, {"alex@pgd-8": 1, "alex@cospgd-8": 59}),
    ]
    zf = [
        budget_cell("none", 85.0, 0, {"objects found": 70.0}),
        budget_cell("zf@pgd-8", 3.0, 21, {"objects found": 4.0}),
    ]
    return [victim("alex", "segmentation", alex), victim("zf", "detection", zf)]


def test_robustness_has_a_row_for_every_attack_and_one_for_the_worst(attacked):
    frame = frames.robustness(attacked, SERIES, "eps", "float")
    rows = [tuple(row) for row in frame[["source", "condition", "score"]].itertuples(index=False)]
    assert rows == [
        ("alex@pgd", "clean", 80.0),
        ("alex@pgd", "ε = 2", 30.0),
        ("alex@pgd", "ε = 8", 5.0),
        ("alex@cospgd", "clean", 80.0),
        ("alex@cospgd", "ε = 8", 2.0),
        ("alex@worst of all", "clean", 80.0),
        ("alex@worst of all", "ε = 8", 1.0),
        ("zf@pgd", "clean", 85.0),
        ("zf@pgd", "ε = 8", 3.0),
    ]
    assert frame.chosen[6] == "alex@pgd-8: 1 alex@cospgd-8: 59" and set(frame.chosen.drop(6)) == {""}
    assert list(frames.conditions(frame)) == ["clean", "ε = 2", "ε = 8"]


def test_robustness_in_print(attacked):
    text = printing.to_markdown(frames.robustness(attacked, SERIES, "eps", "float"))
    lines = [[part.strip(" *") for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["network", "metric", "clean", "ε = 2", "ε = 8", "p / 10⁻³", "passes"]
    pgd, cospgd, worst, zf = lines[2:6]
    assert pgd == ["FCN-Alex\\*, pgd", "mIoU", "80.0 ± 2.0", "30.0 ± 2.0 ↓", "5.0 ± 2.0 ↓", "10.0", "21"]
    assert cospgd[3:] == ["–", "2.0 ± 2.0 ↓", "10.0", "–"] and worst[0].endswith("worst of all")
    assert zf[1] == "mAP" and zf[2].startswith("85.0 ± 2.0") and zf[3:5] == ["–", "3.0 ± 2.0 ↓"]
    accuracy = text[text.index("pixel accuracy, %") :]
    assert "9.0 ± 1.0" in accuracy and "FR-ZF, pgd" not in accuracy[: accuracy.index("objects found, %")]
    assert "Worst of all: on every image" in text and "score of at least 0.5" in text
    printing.to_latex(frames.robustness(attacked, SERIES, "eps", "float"))


def test_a_metric_that_is_the_companion_has_one_block(attacked):
    """Without background the companion of mIoU is a metric that every segmentation network has."""
    alone = [attacked[0] | {"companion_metric": "pixel accuracy"}]
    text = printing.to_markdown(frames.robustness(alone, SERIES[:2], "eps", "float"))
    assert text.count("pixel accuracy, %:") == 1


def victim(name, task, cells, images=60, image_set="test"):
    metrics = {"detection": ("mAP", "area mAP"), "segmentation": ("mIoU", "foreground mIoU")}[task]
    return {
        "victim": name,
        "label": LABELS[name],
        "task": task,
        "image_set": image_set,
        "images": images,
        "metric": metrics[0],
        "companion_metric": metrics[1],
        "cells": cells,
    }


@pytest.fixture
def scores():
    zf = [
        cell("none", 85.1),
        cell("zf", 12.5, 2.1, 72.6, 2.5, 0.0083),
        cell("zf.permuted", 84.9, 2.0, 0.2, 0.5, 0.0083),
        cell("zf+alex", 11.0, 2.0, 74.1, 2.5, 0.009),
        cell("zf+alex.permuted", 85.0, 2.0, 0.1, 0.3, 0.009),
        cell("none", 85.1, pixels="8-bit"),
        cell("zf", 15.5, 2.1, 69.6, 2.5, 0.0086, pixels="8-bit"),
    ]
    black = [
        cell("none", 81.9),
        cell("zf", 73.8, 3.0, 8.1, 2.0, 0.0083),
        cell("zf+alex", 69.9, 3.0, 12.0, 2.0, 0.009),
        cell("zf+alex.permuted", 82.4, 2.0, -0.5, 0.1, 0.009),
    ]
    return [victim("zf", "detection", zf), victim("black", "detection", black)]


ROWS = ["none", "zf", "zf+alex", "zf+alex.permuted"]


@pytest.fixture
def frame(scores):
    return frames.transfer(scores, ROWS, LABELS, SYMBOLS, "float")


def test_a_table_says_which_images_are_missing(scores):
    def text(*missing):
        given_up = [entry | {"missing": list(ids)} for entry, ids in zip(scores, missing, strict=True)]
        frame = frames.transfer(given_up, ROWS, LABELS, SYMBOLS, "float")
        assert frame.missing.tolist() == [" ".join(ids) for ids in missing] * len(ROWS)
        return printing.to_markdown(frame)

    assert "; 60 of 62 images of test, missing: 7, 8." in text("78", "78")
    many = [f"i{number}" for number in range(10)]
    assert "60 of 70 images of test, missing: i0, i1, i2, i3, i4, i5, i6, i7 and 2 more (all in the CSV file)" in text(
        many, many
    )
    scores[1]["image_set"] = "other"
    assert "FR-ZF: 60 images of test; R-FCN\\_50: 60 of 61 images of other, missing: x." in text([], ["x"])
    assert "missing" not in text([], [])


def test_transfer_has_one_row_per_cell_in_the_order_asked_for(frame):
    assert list(zip(frame.perturbation, frame.victim, strict=True)) == [
        (row, col) for row in ROWS for col in ("zf", "black")
    ]
    assert frame.score.tolist() == [85.1, 81.9, 12.5, 73.8, 11.0, 69.9, 85.0, 82.4]
    assert frame["drop"].tolist() == [0, 0, 72.6, 8.1, 74.1, 12.0, 0.1, -0.5]
    assert frame.group.tolist() == ["none"] * 2 + ["single"] * 2 + ["sum"] * 2 + ["permuted"] * 2
    assert frame.white_box.tolist() == [False, False, True, False, True, False, False, False]
    assert frame["mark"].tolist() == ["", "", "↓", "↓", "↓", "↓", "", "↑"]
    assert frame.row_label.tolist()[::2] == ["none", "FR-ZF (r1)", "r1 + r5", "r1 + r5 (permuted)"]
    assert set(frame.pixels) == {"float"} and set(frame.images) == {60}


def test_transfer_takes_the_pixels_asked_for(scores):
    frame = frames.transfer(scores[:1], ["none", "zf"], LABELS, SYMBOLS, "8-bit")
    assert frame.score.tolist() == [85.1, 15.5]


def test_csv_keeps_everything(frame, tmp_path):
    frame.to_csv(tmp_path / "table.csv", index=False)
    again = pd.read_csv(tmp_path / "table.csv", keep_default_na=False, na_values={"score": [""]})
    pd.testing.assert_frame_equal(again, frame, check_dtype=False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none", "none"),
        ("zf", "FR-ZF (r1)"),
        ("black", "R-FCN_50"),
        ("zf@algorithm-1", "FR-ZF (r1, algorithm-1)"),
        ("black@algorithm-1.permuted", "R-FCN_50 (algorithm-1, permuted)"),
        ("zf.permuted-2", "FR-ZF (r1, permuted 2)"),
        ("zf+alex", "r1 + r5"),
        ("zf+black", "r1 + R-FCN_50"),
        ("zf+alex.permuted", "r1 + r5 (permuted)"),
        ("zf@x+alex@x.permuted", "r1 + r5 (x, permuted)"),
        ("zf@x+alex", "r1@x + r5"),
    ],
)
def test_row_labels(name, text):
    assert wording.row_label(name, LABELS, SYMBOLS) == text


def test_a_variant_of_the_own_attack_is_white_box(scores):
    scores[0]["cells"].append(cell("zf@algorithm-1", 33.0, p=0.005))
    frame = frames.transfer(scores[:1], ["zf@algorithm-1"], LABELS, SYMBOLS, "float")
    assert frame.white_box.tolist() == [True]


def test_white_box_table(scores):
    frame = frames.white_box(scores[:1], ["zf"], "float")
    assert frame.condition.tolist() == ["ORIG", "ADVR", "PERM"]
    assert frame.perturbation.tolist() == ["none", "zf", "zf.permuted"]
    assert frame.score.tolist() == [85.1, 12.5, 84.9]
    scores[0]["cells"] += [cell("zf@a-1", 33.0), cell("zf@a-1.permuted", 84.0)]
    both = frames.white_box(scores[:1], ["zf", "zf@a-1"], "float")
    assert both.score.tolist() == [85.1, 12.5, 84.9, 85.1, 33.0, 84.0]
    assert list(both.column_label.unique()) == ["FR-ZF", "FR-ZF (a-1)"]
    with pytest.raises(ValueError, match="vgg"):
        frames.white_box(scores[:1], ["vgg"], "float")


def test_all_networks_of_an_ensemble_are_white_boxes(scores):
    scores[0]["cells"].append(cell("alex@both", 33.0, p=0.005) | {"made_from": ["alex", "zf"]})
    frame = frames.transfer(scores[:1], ["alex@both"], LABELS, SYMBOLS, "float")
    assert scores[0]["victim"] == "zf" and frame.white_box.tolist() == [True]


def test_the_caption_says_how_often_an_attack_was_drawn(scores):
    assert "draws of adversarial labels" not in printing.to_markdown(frames.white_box(scores[:1], ["zf"], "float"))
    (own,) = [one for one in scores[0]["cells"] if (one["perturbation"], one["pixels"]) == ("zf", "float")]
    own["draws"] = 3
    text = printing.to_markdown(frames.white_box(scores[:1], ["zf"], "float"))
    assert "ADVR: mean over 3 draws of adversarial labels and random starts, whose spread is part of" in text


def test_pairs_are_the_cells_that_were_asked_for(scores):
    wanted = [("zf", "black"), ("zf", "zf")]
    frame = frames.pairs(scores, wanted, LABELS, SYMBOLS, "float")
    assert list(zip(frame.perturbation, frame.victim, strict=True)) == wanted
    assert frame.score.tolist() == [73.8, 12.5] and frame.white_box.tolist() == [False, True]


def test_scaled_perturbations_and_controls_have_names_in_print():
    assert wording.row_label("zf.p-4", LABELS, SYMBOLS) == "FR-ZF (r1, p = 4 · 10⁻³)"
    assert wording.row_label("zf+alex.p-16.gaussian", LABELS, SYMBOLS) == "r1 + r5 (p = 16 · 10⁻³, Gaussian noise)"
    assert wording.row_label("zf.signs-2", LABELS, SYMBOLS) == "FR-ZF (r1, random signs 2)"


def test_every_control_is_explained_where_it_occurs(scores):
    scores[0]["cells"] += [cell("zf.gaussian", 84.0), cell("zf.p-4", 50.0)]
    frame = frames.transfer(scores[:1], ["zf", "zf.p-4", "zf.permuted", "zf.gaussian"], LABELS, SYMBOLS, "float")
    assert frame.group.tolist() == ["single", "single", "permuted", "gaussian"]
    assert frame.white_box.tolist() == [True, True, False, False]
    text = printing.to_markdown(frame)
    assert "Gaussian noise: Gaussian noise of the perturbation's perceptibility, mean over the draws." in text
    assert "random signs" not in text


def test_differences_are_against_clean_images_and_controls(scores):
    scores[0]["cells"][1]["beyond"] = {"permuted": {"difference": 70.0, "low": 66.0, "high": 73.0}}
    scores[1]["cells"][1] |= {"drop": 1.0, "drop_low": -2.0, "drop_high": 4.0}
    frame = frames.differences(scores, [("none", "zf"), ("zf", "zf"), ("zf", "black")], LABELS, SYMBOLS, "float")
    assert frame.against.tolist() == ["clean", "permuted", "clean"]
    assert frame.difference.tolist() == [72.6, 70, 1] and frame.low.tolist() == [67.6, 66, -2]
    assert frame.resolved.tolist() == [True, True, False] and frame.white_box.tolist() == [True, True, False]


def test_classes_that_the_images_lack_are_left_out(scores):
    scores[0]["cells"][0]["per_class"] = {"cat": 90.0, "dog": 80.0, "cow": None}
    scores[0]["cells"][1]["per_class"] = {"cat": 30.0, "dog": 80.0, "cow": 0.0}
    frame = frames.per_class(scores, [("zf", "zf")], LABELS, SYMBOLS, "float")
    assert frame["class"].tolist() == ["cat", "dog"]
    assert frame["drop"].tolist() == [60, 0] and frame.clean.tolist() == [90, 80]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 8, "↓"),
        (0, 8, ""),
        (-0.1, 8, ""),
        (-8, -0.1, "↑"),
        (-8, 0, ""),
        (0, 0, ""),
        (5, 5, "↓"),  # the same in all resamples of several images; of one image no interval is known
        (math.nan, math.nan, ""),
    ],
)
def test_marks_are_the_95_percent_interval(low, high, expected):
    assert frames.mark(low, high) == expected


def test_markdown_is_an_aligned_table(frame):
    text = printing.to_markdown(frame, "Table 2", companion="none")
    assert text == (
        "### Table 2\n"
        "\n"
        "mAP, %:\n"
        "\n"
        "| perturbation       |            FR-ZF |    R-FCN\\_50 | p / 10⁻³ |\n"
        "| ------------------ | ---------------: | -----------: | -------: |\n"
        "| none               |   85.1 ± 2.0     | 81.9 ± 2.0   |          |\n"
        "| FR-ZF (r1)         | **12.5 ± 2.1 ↓** | 73.8 ± 3.0 ↓ |      8.3 |\n"
        "| r1 + r5            | **11.0 ± 2.0 ↓** | 69.9 ± 3.0 ↓ |      9.0 |\n"
        "| r1 + r5 (permuted) |   85.0 ± 2.0     | 82.4 ± 2.0 ↑ |      9.0 |\n"
        "\n"
        "mAP in %; float pixels, not rounded; 60 images of test. ± is one standard error (bootstrap over the images). "
        "↓ (↑): lower (higher) than clean, the 95 % interval of the difference (paired) without zero. "
        "Bold: the victim's own perturbation takes part (white box). "
        "permuted: rows and columns of the perturbation shuffled, mean over the draws. "
        "p: perceptibility, mean over the images.\n"
    )


def test_the_clean_row_comes_first_wherever_it_was_asked_for(scores):
    frame = frames.transfer(scores, ["zf", "none"], LABELS, SYMBOLS, "float")
    rows = [line.split("|")[1].strip() for line in printing.to_markdown(frame).splitlines() if line.startswith("|")]
    assert rows[:4] == ["perturbation", rows[1], "none", "FR-ZF (r1)"]


def test_companion_in_a_second_block_or_in_brackets(frame):
    block = printing.to_markdown(frame)
    assert "area mAP, %:" in block and "**6.2 ± 1.1**" in block
    assert len([line for line in block.splitlines() if line.startswith("|")]) == 12
    brackets = printing.to_markdown(frame, companion="brackets")
    assert "**12.5 ± 2.1 ↓ (6.2 ± 1.1)**" in brackets and "in brackets area mAP" in brackets
    with pytest.raises(ValueError, match="companion 'both' is unknown"):
        printing.to_markdown(frame, companion="both")


def test_mixed_tasks_and_image_sets_are_said(scores):
    alex = victim("alex", "segmentation", [cell("none", 65.5), cell("zf", 57.2, p=0.004)], 72, "masks")
    frame = frames.transfer([scores[0], alex], ["none", "zf"], LABELS, SYMBOLS, "float")
    text = printing.to_markdown(frame)
    for words in (
        "FR-ZF, mAP",
        "FCN-Alex\\*, mIoU",
        "FCN-Alex\\*, foreground mIoU",
        "p / 10⁻³, test",
        "p / 10⁻³, masks",
        "FR-ZF: 60 images of test; FCN-Alex\\*: 72 images of masks.",
    ):
        assert words in text
    own = frames.white_box([scores[0]], [scores[0]["victim"]], "float")
    assert "metric" not in printing.to_markdown(own)


def test_unknown_standard_errors_are_left_out(scores):
    for one in scores[0]["cells"]:
        one |= dict.fromkeys(["score_se", "companion_se", "drop_se", "drop_low", "drop_high"])
    text = printing.to_markdown(frames.transfer(scores[:1], ["none", "zf"], LABELS, SYMBOLS, "float"))
    assert "**12.5**" in text and "±" not in text and "↓" not in text


def test_documents_have_a_heading_per_frame(frame, scores):
    text = printing.document("Tables", {"Table 2": frame, "Table 1": frames.white_box(scores[:1], ["zf"], "float")})
    assert re.findall(r"^#+ .*$", text, re.M) == ["## Tables", "### Table 2", "### Table 1"]


def balanced(text):
    """Braces and environments of LaTeX text close in the order in which they open."""
    depth = 0
    for sign in re.sub(r"\\[{}]", "", text):
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    open_environments = []
    for verb, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if verb == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    return depth == 0 and not open_environments and text.count("$") % 2 == 0


@pytest.mark.parametrize("companion", ["block", "brackets", "none"])
def test_latex_is_well_formed(frame, companion):
    text = printing.to_latex(frame, "100 % of A_1 & B*", companion)
    assert balanced(text.replace(r"\%", ""))
    assert r"\caption{100 \% of A\_1 \& B{*}. mAP" in text
    assert not re.search(r"(?<!\\)[%#_]", text)
    assert r"R-FCN\_50" in text and r"p / $10^{-3}$" in text
    # Every line of the table body has as many cells as the table has columns.
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    counts = {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if " & " in line}
    assert counts == {3} and r"\begin{tabular}{lrrr}" in text
    assert not re.search(r"[^\x00-\x7f]", text)


def test_latex_cells(frame):
    lines = printing.to_latex(frame, companion="none").splitlines()
    assert lines[lines.index(r"\midrule") + 2] == (
        r"FR-ZF (r1) & \textbf{12.5 $\pm$ 2.1 $\downarrow$} & 73.8 $\pm$ 3.0 $\downarrow$ & 8.3 \\"
    )


def test_perceptibility_has_one_row_per_perturbation(frame):
    table = attack_frames.perceptibility(frame)
    assert table.row_label.tolist() == ["FR-ZF (r1)", "r1 + r5", "r1 + r5 (permuted)"]
    assert table.perceptibility.tolist() == [0.0083, 0.009, 0.009]
    assert table.linf.tolist() == [8.3, 9.0, 9.0]
    assert "| FR-ZF (r1)         |      test |     60 |  float |      8.3 |     8.3 |" in printing.to_markdown(table)
    assert balanced(printing.to_latex(table))


def test_the_table_of_perceptibility_says_which_images_are_missing(scores):
    def table(*missing):
        given_up = [entry | {"missing": ids.split()} for entry, ids in zip(scores, missing, strict=True)]
        return attack_frames.perceptibility(frames.transfer(given_up, ROWS, LABELS, SYMBOLS, "float"))

    assert table("7 8", "7 8").missing.tolist() == ["7 8"] * 3
    text = printing.to_markdown(table("7 8", "7 8"))
    assert text.endswith(" Computed on 60 of 62 images of test, missing: 7, 8.\n") and text.count("missing") == 1
    assert "missing: 7, 8." in printing.to_latex(table("7 8", "7 8"))
    scores[1]["image_set"] = "other"
    assert printing.to_markdown(table("", "x")).endswith(
        " Computed on 60 images of test; 60 of 61 images of other, missing: x.\n"
    )
    assert "missing" not in printing.to_markdown(table("", ""))


def test_the_table_of_statuses_says_which_images_are_missing():
    def text(*missing):
        records = [record("converged", 10, 100)] * 3
        return printing.to_markdown(
            attack_frames.statuses(
                [
                    {"source": name, "label": name, "task": "detection", "records": records, "missing": ids.split()}
                    for name, ids in zip(("zf", "vgg"), missing, strict=True)
                ]
            )
        )

    assert text("7 8", "7 8").endswith(" Computed on 3 of 5 images, missing: 7, 8.\n")
    assert text("", "x").endswith(" Computed on zf: 3 images; vgg: 3 of 4 images, missing: x.\n")
    assert "missing" not in text("", "")


def record(status, iterations, targets, p=0.004, largest=7.0):
    return {
        "status": status,
        "iterations": iterations,
        "targets": targets,
        "perceptibility": p,
        "largest": largest,
        "active": [1],
    }


def test_statuses():
    zf = [
        record("converged", 10, 100),
        record("converged", 20, 200, 0.006, 9.5),
        record("converged", 0, 30, 0.0, 0.0),
        record("iteration limit", 150, 70, 0.01, 30.25),
        record("no targets", 0, 0, 0.0, 0.0),
    ]
    alex = [record("no targets", 0, 0, 0.0, 0.0)]
    table = attack_frames.statuses(
        [
            {"source": "zf", "label": "FR-ZF", "task": "detection", "records": zf},
            {"source": "alex", "label": "FCN-Alex*", "task": "segmentation", "records": alex},
        ]
    )
    first = table.iloc[0]
    assert first[["images", "converged", "iteration_limit", "no_targets", "no_gradient", "no_step"]].tolist() == [
        5, 3, 1, 1, 0, 1,
    ]  # fmt: skip
    # Means over the four images with targets.
    assert first[["iterations_mean", "iterations_max", "targets_mean", "linf_max"]].tolist() == [45, 150, 100, 30.25]
    assert first.perceptibility_mean == pytest.approx(0.005)
    text = printing.to_markdown(table)
    assert "45.0" in text and "5.0" in text and "–" in text and "nan" not in text
    assert balanced(printing.to_latex(table))


def test_errors_say_what_where_and_what_to_do(scores):
    def transfer(rows, pixels="float"):
        return frames.transfer(scores, rows, LABELS, SYMBOLS, pixels)

    with pytest.raises(ValueError, match="row 'alex', column 'zf': no score with float pixels; compute it or take"):
        transfer(["none", "alex"])
    with pytest.raises(ValueError, match="row 'none', column 'black': no score with 8-bit pixels"):
        transfer(["none"], "8-bit")
    with pytest.raises(ValueError, match="pixels 'png' is unknown; choose from float, 8-bit"):
        transfer(["none"], "png")
    with pytest.raises(ValueError, match="names network 'vgg', which has no label"):
        transfer(["vgg"])
    with pytest.raises(ValueError, match="a row or a column occurs twice"):
        transfer(["none", "none"])
    scores[0]["cells"].append(cell("zf", 13.0))
    with pytest.raises(ValueError, match="victim 'zf' under 'zf' with float pixels has two scores"):
        transfer(["none"])
    scores[0]["cells"][-1] = cell("alex", 0.5) | {"score": None}
    with pytest.raises(ValueError, match="has score None, which is not a percentage"):
        transfer(["none"])
    scores[0]["cells"][-1] = cell("alex", 101)
    with pytest.raises(ValueError, match="has score 101, which is not a percentage"):
        transfer(["none"])
    scores[0]["cells"][-1] = cell("alex", 50, drop=math.nan)
    with pytest.raises(ValueError, match="victim 'zf' under 'alex' with float pixels has no drop from the clean score"):
        transfer(["none"])
    del scores[0]["cells"][-1]["linf"]
    with pytest.raises(ValueError, match="a cell of victim 'zf': linf missing; compute it again"):
        transfer(["none"])


def test_stale_perceptibility_is_an_error(scores):
    scores[1]["cells"][1]["perceptibility"] = 0.01
    frame = frames.transfer(scores, ROWS, LABELS, SYMBOLS, "float")
    with pytest.raises(ValueError, match="perturbation 'zf' has perceptibility 0.0083 to 0.01 on test"):
        attack_frames.perceptibility(frame)


def test_an_experiment_without_transfer_has_an_empty_table_of_perceptibility():
    empty = pd.DataFrame(columns=attack_frames.COLUMNS)
    assert printing.document("Perceptibility", {"All perturbations": empty}).count("\n| ") == 2
    assert balanced(printing.to_latex(empty))


def test_perceptibility_of_a_single_draw_and_of_the_mean_over_several(scores):
    """Two white-box tables, one of which repeats the attack: both values are shown."""
    single = frames.white_box(scores[:1], ["zf"], "float")
    own = next(cell for cell in scores[0]["cells"] if cell["perturbation"] == "zf")
    own.update(draws=3, perceptibility=0.01)
    table = attack_frames.perceptibility(pd.concat([single, frames.white_box(scores[:1], ["zf"], "float")]))
    visible = table[~table.row_label.str.contains("permuted")]
    assert dict(zip(visible.row_label, visible.perceptibility, strict=True)) == {
        "FR-ZF": 0.0083,
        "FR-ZF (mean of 3 draws)": 0.01,
    }


def test_statuses_reject_what_they_do_not_know():
    source = {"source": "zf", "label": "FR-ZF", "task": "detection", "records": [record("stuck", 1, 1)]}
    with pytest.raises(ValueError, match="source 'zf' has images of status"):
        attack_frames.statuses([source])
    with pytest.raises(ValueError, match="source 'zf' has no image records"):
        attack_frames.statuses([source | {"records": []}])


def test_values_of_the_paper_stand_before_ours_and_never_replace_them(scores):
    paper = {"none": {"zf": 58.7}, "zf": {"zf": 3.61, "black": 75.87, "p": 0.0024}}
    frame = frames.transfer(scores, ROWS, LABELS, SYMBOLS, "float", paper)
    assert frame.paper.tolist()[:4] == [58.7, pytest.approx(math.nan, nan_ok=True), 3.61, 75.87]
    assert frame.score.tolist() == [85.1, 81.9, 12.5, 73.8, 11.0, 69.9, 85.0, 82.4]
    lines = printing.to_markdown(frame, companion="none").splitlines()
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[2] == ["none", "58.70 / 85.1 ± 2.0", "– / 81.9 ± 2.0", ""]
    assert cells[3] == ["FR-ZF (r1)", "3.61 / 12.5 ± 2.1 ↓", "75.87 / 73.8 ± 3.0 ↓", "2.4 / 8.3"]
    assert cells[5][1:] == ["– / 85.0 ± 2.0", "– / 82.4 ± 2.0 ↑", "– / 9.0"]
    assert "Paper / here" in lines[-1]
    visible = attack_frames.perceptibility(frame)
    assert visible.paper_p.tolist()[0] == 0.0024 and visible.paper_p.isna().tolist() == [False, True, True]


def test_values_of_the_paper_in_a_white_box_table(scores):
    frame = frames.white_box(scores[:1], ["zf"], "float", {"zf": {"ORIG": 58.7, "ADVR": 3.61}})
    assert frame.set_index("condition").paper.round(2).to_dict() == {
        "ORIG": 58.7,
        "ADVR": 3.61,
        "PERM": pytest.approx(math.nan, nan_ok=True),
    }
    row = printing.to_markdown(frame, companion="none").splitlines()[4]
    assert [cell.strip(" *") for cell in row.strip("|").split("|")][1:] == [
        "58.70 / 85.1 ± 2.0",
        "3.61 / 12.5 ± 2.1 ↓",
        "– / 84.9 ± 2.0",
        "– / 8.3",
    ]


def test_without_values_of_the_paper_nothing_is_said_of_it(frame):
    assert "paper" not in frame and "Paper" not in printing.to_markdown(frame)


def test_iterations_of_the_paper_stand_beside_ours():
    record = {"status": "converged", "iterations": 40, "targets": 9, "perceptibility": 0.003, "largest": 5.0}
    sources = [{"source": name, "label": name, "task": "detection", "records": [record]} for name in ("zf", "alex")]
    frame = attack_frames.statuses(sources, {"zf": 47.05})
    assert frame.iterations_paper.tolist() == [47.05, pytest.approx(math.nan, nan_ok=True)]
    assert frame.iterations_mean.tolist() == [40, 40]
    assert "iterations_paper" not in attack_frames.statuses(sources)


def test_a_substitute_is_named_under_every_table(frame):
    notes = {"FCN-Alex*†": "trained here_again"}
    assert printing.to_markdown(frame, notes=notes).strip().endswith(r"FCN-Alex\*†: trained here\_again")
    assert r"FCN-Alex{*}$\dagger$: trained here\_again}" in printing.to_latex(frame, notes=notes)
    assert printing.document("T", {"a": frame, "b": frame}, notes=notes).count("trained here") == 2
