"""The page of results, read back with the standard library's parser: what it says, and that it holds together."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from dag.report import attack_frames, frames
from dag.report.figures import style
from dag.report.page import findings, page

ROOT = Path(__file__).parents[2]
TEMPLATE, STYLE = ROOT / "report" / "index.html.j2", ROOT / "report" / "index.css"
HOSTILE = """<script>alert("1")</script> & 'quotes' {{ 7 * 7 }}"""
VOID = {"meta", "img", "input", "br", "link", "hr", "path", "rect"}

NETWORKS = {
    "zf": {"label": "FR-ZF", "task": "detection", "family": "zf", "architecture": "zf"},
    "zf-b": {"label": "FR-ZF-B", "task": "detection", "family": "zf", "architecture": "zf"},
    "rn": {"label": "R-FCN†", "task": "detection", "family": "rn", "architecture": "rn"},
    "fcn": {"label": "FCN", "task": "segmentation", "family": "vgg", "architecture": "vgg"},
}
EXPERIMENT = {
    "name": "trial",
    "title": "A trial",
    "description": ["What it is.", "Second paragraph."],
    "kind": "miniature",
    "badge": "Miniature",
    "meaning": "Nothing here may be compared.",
    "seed": 7,
    "permutations": 3,
    "bootstrap": 1000,
    "images": {"test": {"images": 50, "given_up": 2, "origin": "made here"}},
    "networks": {
        name: entry
        | {"part": "victim", "weights": "trained here", "note": "", "substitute": HOSTILE if name == "rn" else ""}
        for name, entry in NETWORKS.items()
    },
    "weights": {"trained here": ["FR-ZF", "FR-ZF-B"], "published files": ["R-FCN†", "FCN"]},
    "attacks": [
        {"task": "detection", "variant": "", "text": "It goes on.", "settings": "", "options": ""},
        {"task": "detection", "variant": "nms-50", "text": "", "settings": "at IoU 0.5", "options": "stop: 0.1"},
    ],
    "pixels": ["float", "8-bit", "jpeg-75"],
    "controls": ["rows and columns shuffled"],
    "not_verified": ["That the sun rises."],
}  # fmt: skip

# Scores by perturbation and victim, clean 80 everywhere; companions are half of them.
SCORES = {
    "zf": {"zf": 8.0, "zf-b": 20.0, "rn": 76.0, "fcn": 81.0},
    "zf.permuted": {"zf": 79.0, "zf-b": 80.0, "rn": 80.5, "fcn": 80.0},
    "zf+fcn": {"zf": 4.0, "zf-b": 10.0, "rn": 60.0, "fcn": 12.0},
    "fcn": {"zf": 72.0, "zf-b": 70.0, "rn": 64.0, "fcn": 16.0},
}


def victim(name, pixels=("float", "8-bit", "jpeg-75"), missing=()):
    metrics = {"detection": ("mAP", "area mAP"), "segmentation": ("mIoU", "foreground mIoU")}
    task = NETWORKS[name]["task"]
    cells = []
    for kind in pixels:
        for perturbation in ("none", *SCORES):
            drop = 80.0 - SCORES.get(perturbation, {}).get(name, 80.0)
            drop -= 0.0 if kind == "float" or perturbation == "none" else drop / 2
            cells.append(
                {
                    "perturbation": perturbation, "pixels": kind, "score": 80.0 - drop, "score_se": 1.25,
                    "companion": 40.0 - drop / 2, "companion_se": 0.5, "drop": drop, "drop_se": 0.75,
                    "drop_low": drop - 1.5, "drop_high": drop + 1.5,
                    "perceptibility": 0.0 if perturbation == "none" else 0.0042, "linf": 9.0,
                }
            )  # fmt: skip
    return {
        "victim": name, "label": NETWORKS[name]["label"], "task": task, "image_set": "test", "images": 48,
        "missing": list(missing), "metric": metrics[task][0], "companion_metric": metrics[task][1], "cells": cells,
    }  # fmt: skip


LABELS = {name: entry["label"] for name, entry in NETWORKS.items()}
PAPER = {"none": {"zf": 58.7}, "zf": {"zf": 3.61, "p": 0.0024}}


def transfer(pixels=("float", "8-bit", "jpeg-75"), paper=None, victims=tuple(NETWORKS), missing=()):
    scores = [victim(name, pixels, missing) for name in victims]
    tables = [frames.transfer(scores, ["none", *SCORES], LABELS, {}, kind, paper) for kind in pixels]
    return pd.concat(tables)


def white_box():
    return pd.concat([frames.white_box([victim("zf")], ["zf"], kind, {"zf": {"ADVR": 3.61}}) for kind in ("float",)])


PRODUCTS = {
    "table1": {"title": "Table 1: white box", "description": "Own.", "layout": "white-box"},
    "table2": {"title": HOSTILE, "description": HOSTILE, "layout": "transfer"},
    "figure4": {"title": "Figure 4", "description": "Curves.", "kind": "convergence"},
    "table_mine": {"title": "Mine", "description": "", "layout": "transfer"},
    "novel": {"title": "New kind", "description": "Never seen.", "kind": "not known to the page", "layout": "pair"},
    "images": {"title": "All images", "description": "To browse.", "kind": "gallery"},
}
FILES = {
    **{
        name: [f"tables/{name}.{kind}" for kind in ("csv", "md", "tex", "svg", "png")]
        for name in ("table1", "table2", "table_mine")
    },
    "figure4": [f"figures/figure4.{kind}" for kind in ("csv", "svg", "png")],
    "novel": ["figures/novel.png"],
    "images": ["galleries/images/index.html", "galleries/images/gallery.css"],
}  # fmt: skip
CAPTION = """**{{ snakemake.params.entry["title"] }}.** {{ snakemake.params.entry["description"] }}

Lines are *means*,
{% if snakemake.params.entry["kind"] == "convergence" %}bands{% else %}bars{% endif %} quartiles of \\|r\\|.
"""
CLAIMS = [
    ("It < works", "3.4", "By `eye`.", "1 of 2", "holds"),
    ("More", "4.1", "By ear.", "0 of 2", "does not hold"),
    ("Much more", "4.2", "By ear.", "0 of 2", "does not hold"),
    ("Most", "our question", "By nose.", "", "cannot be asked here"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A finished run: every file that the workflow would have made beside the page."""
    tmp_path = tmp_path_factory.mktemp("results")
    for path in (path for paths in FILES.values() for path in paths):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".png":
            Image.fromarray(np.zeros((30, 60, 3), np.uint8)).save(file, dpi=(300, 300))
        else:
            file.write_text("content " * (100 if file.suffix == ".svg" else 1))
    for name in ("0001/0", "0000/10", "0000/0", "0000/2"):
        file = tmp_path / f"galleries/images/pictures/{name}.webp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(file)
    white_box().to_csv(tmp_path / "tables/table1.csv", index=False)
    transfer(missing=["000001", "000007"]).to_csv(tmp_path / "tables/table2.csv", index=False)
    transfer(("float",), PAPER).to_csv(tmp_path / "tables/table_mine.csv", index=False)
    columns = ["claim", "paper", "measure", "value", "verdict"]
    pd.DataFrame(CLAIMS, columns=columns).to_csv(tmp_path / "tables/claims.csv", index=False)
    tests = [("Scores fall", "convergence", "By count.", "3 of 3", "holds")]
    pd.DataFrame(tests, columns=columns).to_csv(tmp_path / "tables/self_tests.csv", index=False)
    records = [
        {"status": "converged", "iterations": 12, "targets": 40, "perceptibility": 0.003, "largest": 8.0},
        {"status": "no targets", "iterations": 0, "targets": 0, "perceptibility": 0.0, "largest": 0.0},
    ]
    source = {"source": "zf", "label": "FR-ZF", "task": "detection", "records": records}
    attack_frames.statuses([source]).to_csv(tmp_path / "tables/statuses.csv", index=False)
    attack_frames.perceptibility(transfer(("float",))).to_csv(tmp_path / "tables/perceptibility.csv", index=False)
    for name in ("claims", "self_tests", "statuses", "perceptibility"):
        (tmp_path / f"tables/{name}.md").write_text("")
    (tmp_path / "provenance.json").write_text("{}")
    return tmp_path


def written(folder, products=PRODUCTS, experiment=EXPERIMENT):
    captions = {"figure4": CAPTION}
    return page(experiment, products, FILES, captions, folder, TEMPLATE, STYLE)


@pytest.fixture(scope="module")
def reader(results):
    """The page of all products, read back."""
    return Reader(written(results))


class Reader(HTMLParser):
    """Checks that every element is closed in its turn, and keeps elements with their text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        element = {"tag": tag, "attributes": dict(attributes), "text": "", "inside": list(self.open)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {[e['tag'] for e in self.open]}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag="", style="", within=None):
        """Elements by tag and class, in order, of the whole page or within the element with an id."""
        return [
            element
            for element in self.elements
            if tag in ("", element["tag"])
            and (not style or style in element["attributes"].get("class", "").split())
            and (within is None or any(outer is within for outer in element["inside"]))
        ]

    def product(self, name):
        """The article of a table or figure."""
        (heading,) = [element for element in self.elements if element["attributes"].get("id") == name]
        return [element for element in heading["inside"] if element["tag"] == "article"][-1]


def luminance(colour: str) -> float:
    return style.luminance(to_rgb(colour))


def squeezed(element) -> str:
    return " ".join(element["text"].split())


def test_the_page_holds_together(results):
    """Elements nest, ids are there once, links lead to what exists, and nothing comes from elsewhere."""
    html = written(results)
    reader = Reader(html)
    ids = [element["attributes"]["id"] for element in reader.elements if "id" in element["attributes"]]
    assert len(ids) == len(set(ids))
    linked = [
        element["attributes"][key]
        for element in reader.elements
        for key in ("href", "src")
        if key in element["attributes"]
    ]
    for link in linked:
        assert link[1:] in ids if link.startswith("#") else (results / link).is_file(), link
    assert {f"#{name}" for name in PRODUCTS} <= set(linked)
    assert {path for paths in FILES.values() for path in paths if "galleries" not in path} <= set(linked)
    assert not reader.all("script") and not reader.all("link") and "://" not in html and "@import" not in html
    labelled = [element["attributes"].get("aria-labelledby") for element in reader.elements]
    assert {name for name in labelled if name} <= set(ids)
    assert all(element["attributes"]["alt"] for element in reader.all("img"))
    assert len(reader.all("h1")) == 1 and reader.all("html")[0]["attributes"]["lang"] == "en"


def test_the_page_is_the_same_every_time(results):
    assert written(results) == written(results)


def test_what_the_configuration_says_is_text_and_never_markup(results):
    html = written(
        results, experiment=EXPERIMENT | {"title": HOSTILE, "description": [HOSTILE], "not_verified": [HOSTILE]}
    )
    reader = Reader(html)
    assert not reader.all("script")
    assert [element["text"] for element in reader.all("h1")] == [HOSTILE]
    assert reader.all("title")[0]["text"] == f"{HOSTILE} (Miniature)"
    assert HOSTILE in [element["text"] for element in reader.all("p", within=reader.product("table2"))]
    # as attributes too
    regions = [element["attributes"]["aria-label"] for element in reader.all("div", "scroll")]
    assert f"{HOSTILE}, float" in regions


def test_nobody_takes_a_miniature_for_the_paper(reader):
    """The kind stands in the head that stays in sight, in the title, and in the caption of every table and figure."""
    (head,) = reader.all("header")
    assert squeezed(head) == "Miniature trial Nothing here may be compared."
    assert reader.all("body")[0]["attributes"]["class"] == "miniature"
    captions = reader.all("caption") + reader.all("figcaption")
    assert len(captions) >= 10 and all(squeezed(caption).startswith("Miniature.") for caption in captions)
    css = STYLE.read_text()
    assert re.search(r"header\.top \{ position: sticky", css) and ".miniature {" in css


def test_what_the_experiment_is(reader):
    text = squeezed(reader.all("main")[0])
    for fact in (
        "Miniature: trial, seed 7",
        "50 of test, made here (2 more given up)",
        "4 in all.",
        "2 trained here: FR-ZF, FR-ZF-B",
        "Attack on detection It goes on.",
        "nms-50, detection: Settings: at IoU 0.5. Single rules changed: stop: 0.1.",
        "float pixels, not rounded; pixels rounded to 8 bits; images saved as JPEG files of quality 75",
        "rows and columns shuffled (means of 3 draws)",
        "1,000 resamples",
        "That the sun rises.",
    ):
        assert fact in text, fact


def test_sections_stand_in_order_and_only_where_there_is_something(reader, results):
    def sections(page):
        return [squeezed(element) for element in page.all("h2")]

    assert sections(reader) == [
        "1 What this is", "2 What came out", "3 The paper's tables", "4 The paper's figures", "5 Beyond the paper",
        "6 The attacks", "7 Gallery", "8 How it was made",
    ]  # fmt: skip
    assert sections(Reader(written(results, {"novel": PRODUCTS["novel"]}))) == [
        "1 What this is", "2 What came out", "3 Beyond the paper", "4 The attacks", "5 How it was made",
    ]  # fmt: skip
    titles = [squeezed(element) for element in reader.all("h3")]
    assert [title for title in titles if title[0].isdigit()] == [
        "3.1 Table 1: white box#", f"3.2 {' '.join(HOSTILE.split())}#", "4.1 Figure 4#", "5.1 Mine#", "5.2 New kind#",
        "7.1 All images#",
    ]  # fmt: skip


def numbers(reader, name, style, view=1):
    """Row label -> texts of the cells of a table, as one of score, drop, companion."""
    (table,) = [element for element in reader.all("div", f"view-{view}", within=reader.product(name))]
    found = {}
    for row in reader.all("tr", within=table):
        header = [squeezed(element) for element in reader.all("th", within=row)]
        spans = [squeezed(element) for element in reader.all("span", style, within=row)]
        if spans:
            found[header[0]] = spans
    return found


def test_cells_show_the_numbers_of_the_scores(reader):
    scores = numbers(reader, "table2", "score")
    assert list(scores) == ["none", "FR-ZF", "FR-ZF (permuted)", "FR-ZF + FCN", "FCN"]
    assert scores["none"] == ["80.0 ± 1.2"] * 4
    assert scores["FR-ZF"] == ["8.0 ± 1.2↓", "20.0 ± 1.2↓", "76.0 ± 1.2↓", "81.0 ± 1.2"]
    assert numbers(reader, "table2", "drop")["FR-ZF"] == [
        "72.0 [70.5, 73.5]↓", "60.0 [58.5, 61.5]↓", "4.0 [2.5, 5.5]↓", "-1.0 [-2.5, 0.5]",
    ]  # fmt: skip
    assert numbers(reader, "table2", "companion")["FCN"] == ["36.0 ± 0.5", "35.0 ± 0.5", "32.0 ± 0.5", "8.0 ± 0.5"]
    # half of the drop on other pixels
    assert numbers(reader, "table2", "score", view=3)["FR-ZF"][0] == "44.0 ± 1.2↓"
    assert numbers(reader, "table1", "score") == {"FR-ZF": ["– / 80.0 ± 1.2", "3.61 / 8.0 ± 1.2↓", "– / 79.0 ± 1.2"]}


def test_every_number_of_the_csv_files_is_on_the_page(reader, results):
    for name in ("table1", "table2", "table_mine"):
        frame = pd.read_csv(results / f"tables/{name}.csv")
        shown = [squeezed(element) for element in reader.all("span", "score", within=reader.product(name))]
        shown = [text.split(" / ")[-1].rstrip("↓↑ ") for text in shown]
        assert sorted(shown) == sorted(f"{row.score:.1f} ± {row.score_se:.1f}" for row in frame.itertuples())


def test_a_cell_has_all_its_numbers_as_a_tip(reader):
    tips = [
        element["attributes"]["title"].split("\n")
        for element in reader.all("td", "cell", within=reader.product("table2"))
    ]
    assert tips[4] == [
        "mAP 8.00 ± 1.25",
        "drop from clean 72.0 [70.5, 73.5], 95 % interval",
        "area mAP 4.00 ± 0.50",
        "p 4.20 · 10⁻³, largest |r| 9.0 grey levels",
        "48 of 50 images of test, missing: 000001, 000007",
        "white box: the victim's own perturbation takes part",
    ]
    assert "48 of 50 images of test, missing: 000001, 000007." in squeezed(reader.product("table2"))


def test_images_of_shards_that_were_given_up_are_named_wherever_there_are_counts(results, tmp_path):
    assert "missing images" not in written(results)
    shutil.copytree(results, tmp_path / "copy")
    for name in ("statuses", "perceptibility"):
        path = tmp_path / f"copy/tables/{name}.csv"
        frame = pd.read_csv(path)
        frame.assign(missing=" ".join(f"{k:06}" for k in range(1, 11))).to_csv(path, index=False)
    text = written(tmp_path / "copy")
    assert text.count("missing images") == 2
    assert "000001, 000002, 000003, 000004, 000005, 000006, 000007, 000008 and 2 more (all in the CSV file)" in text


def test_white_box_cells_are_framed(reader):
    view = reader.all("div", "view-1", within=reader.product("table2"))[0]
    framed = [
        squeezed(reader.all("span", "score", within=cell)[0]) for cell in reader.all("td", "white-box", within=view)
    ]
    assert framed == ["8.0 ± 1.2↓", "4.0 ± 1.2↓", "12.0 ± 1.2↓", "16.0 ± 1.2↓"]


def test_values_of_the_paper_stand_before_ours(reader):
    scores = numbers(reader, "table_mine", "score")
    assert scores["none"][:2] == ["58.70 / 80.0 ± 1.2", "– / 80.0 ± 1.2"]
    assert scores["FR-ZF"][0] == "3.61 / 8.0 ± 1.2↓"
    texts = [squeezed(element) for element in reader.all("td", "number", within=reader.product("table_mine"))]
    assert texts == ["", "2.4 / 4.2", "– / 4.2", "– / 4.2", "– / 4.2"]
    assert "not known to this project" in squeezed(reader.product("table_mine"))
    assert "not known to this project" not in squeezed(reader.product("table2"))


def test_columns_stand_below_their_task(reader):
    groups = reader.all("th", "group", within=reader.product("table2"))[:2]
    assert [(squeezed(group), group["attributes"]["colspan"]) for group in groups] == [
        ("detection, mAP", "3"), ("segmentation, mIoU", "1"),
    ]  # fmt: skip


def test_switches_have_one_choice_per_kind_of_pixels(results):
    html = written(results)
    reader = Reader(html)
    article = reader.product("table2")
    inputs = [e["attributes"] for e in reader.all("input", within=article)]
    assert [e["value"] for e in inputs if e["name"] == "table2-pixels"] == ["1", "2", "3"]
    assert [e["value"] for e in inputs if "checked" in e] == ["1", "score"]
    assert len(reader.all("div", "view", within=article)) == 3
    # every choice has its rule of style
    assert all(f'value="{n}"]:checked) .view:not(.view-{n})' in html for n in (1, 2, 3))
    assert not any(e["attributes"].get("name") == "table_mine-pixels" for e in reader.all("input"))


def background(element) -> str:
    return re.search(r"background:(#[0-9a-f]{6})", element["attributes"]["style"])[1]


def test_colours_follow_the_drop_and_are_legible(reader):
    view = reader.all("div", "view-1", within=reader.product("table2"))[0]
    cells = reader.all("td", "cell", within=view)
    lights = {}
    for cell in cells:
        light = luminance(background(cell))
        ink = 1.0 if "dark" in cell["attributes"]["class"].split() else 0.0
        assert (max(light, ink) + 0.05) / (min(light, ink) + 0.05) >= 4.5
        lights[float(squeezed(reader.all("span", "score", within=cell)[0]).split()[0])] = light
    falling = [lights[score] for score in sorted(score for score in lights if score < 80)]
    assert falling == sorted(falling) and len(set(falling)) == len(falling)
    assert {background(cell) for cell in cells[:4]} == {"#ffffff"}
    # one scale for the page: the same drop has the same colour in another table
    other = reader.all("td", "cell", within=reader.product("table_mine"))
    assert [background(cell) for cell in other] == [background(cell) for cell in cells]
    (ramp, *_) = reader.all("span", "ramp", within=reader.product("table2"))
    assert "points: 0 80" in squeezed(reader.all("p", "legend", within=reader.product("table2"))[0])
    assert len(reader.all("i", within=ramp)) == 11


def test_luminance_of_known_colours():
    assert [luminance(colour) for colour in ("#000000", "#ffffff")] == [0, pytest.approx(1)]
    assert luminance("#ff0000") == pytest.approx(0.2126) and luminance("#808080") == pytest.approx(0.21586, abs=1e-4)


def test_the_words_of_the_style_sheet_are_legible():
    """Ink of verdicts and heads against their backgrounds: at least 4.5, WCAG's AA."""
    css = STYLE.read_text()
    pairs = re.findall(r"color: (#[0-9a-f]{6}); background: (#[0-9a-f]{6})", css)
    kinds = re.findall(r"--kind: (#[0-9a-f]{6})", css)
    soft = re.search(r"--soft: (#[0-9a-f]{6})", css)[1]
    pairs += [(kind, "#ffffff") for kind in kinds] + [(soft, "#ffffff"), (soft, "#f5f6f8")]
    assert len(pairs) >= 11
    for pair in pairs:
        low, high = sorted(map(luminance, pair))
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


def test_figures_of_any_kind_are_shown_at_the_size_of_print(reader):
    # the lighter one of both pictures; 60 dots at 300 per inch are 0.2 inches, on the page 0.3
    (image,) = reader.all("img", within=reader.product("figure4"))
    assert image["attributes"] | {"alt": ""} == {
        "src": "figures/figure4.png", "alt": "", "width": "29", "height": "14", "loading": "lazy",
    }  # fmt: skip
    (caption,) = reader.all("figcaption", within=reader.product("figure4"))
    assert squeezed(caption) == "Miniature. Curves.Lines are means, bands quartiles of |r|."
    (image,) = reader.all("img", within=reader.product("novel"))
    assert image["attributes"]["src"] == "figures/novel.png"


def test_a_gallery_is_a_link_with_its_first_images(results):
    reader = Reader(written(results))
    shown = [element["attributes"]["src"] for element in reader.all("img", within=reader.product("images"))]
    assert shown == [f"galleries/images/pictures/{name}.webp" for name in ("0000/0", "0000/2", "0000/10", "0001/0")]
    links = [element["attributes"]["href"] for element in reader.all("a", within=reader.product("images"))]
    assert links == ["#images", "galleries/images/index.html"]


def test_claims_have_their_verdicts(reader):
    article = reader.product("claims")
    counts = [squeezed(element) for element in reader.all("li", within=article)]
    assert counts == ["✓ holds 1", "✗ does not hold 2", "? not resolved 0", "– cannot be asked here 1"]
    rows = [[squeezed(cell) for cell in reader.all("td", within=row)] for row in reader.all("tr", within=article)[1:]]
    assert rows == [
        ["✓ holds", "It < works (section 3.4)", "1 of 2By eye."],
        ["✗ does not hold", "More (section 4.1)", "0 of 2By ear."],
        ["✗ does not hold", "Much more (section 4.2)", "0 of 2By ear."],
        ["– cannot be asked here", "Most (our question)", "By nose."],
    ]


def test_self_tests_have_their_verdicts(reader):
    article = reader.product("self_tests")
    rows = [[squeezed(cell) for cell in reader.all("td", within=row)] for row in reader.all("tr", within=article)[1:]]
    assert rows == [["✓ holds", "Scores fall (convergence)", "3 of 3By count."]]


def test_attacks(reader):
    (row,) = reader.all("tr", within=reader.product("statuses"))[1:]
    texts = [squeezed(cell) for cell in reader.all("th", within=row) + reader.all("td", within=row)]
    assert texts == ["FR-ZF", "detection", "2", "1", "0", "1", "0", "0", "12.0", "12", "40", "3.0", "8.0"]
    rows = reader.all("tr", within=reader.product("perceptibility"))
    assert [squeezed(reader.all("th", within=row)[0]) for row in rows[1:]] == [
        "FR-ZF", "FR-ZF (permuted)", "FR-ZF + FCN", "FCN",
    ]  # fmt: skip


def test_findings_are_computed():
    """By hand: own perturbations leave 8 and 16 of 80; others take 60, 4, -1 (zf) and 8, 10, 16 (fcn)."""
    found = {
        finding["text"]: (finding["value"], finding["detail"])
        for finding in findings([transfer(), white_box()], NETWORKS)
    }
    assert found == {
        "of the clean score is left under a network's own perturbation (white box), detection": (
            "10 %", "median of 1 cell, 10 to 10 %",
        ),
        "of the clean score is left under a network's own perturbation (white box), segmentation": (
            "20 %", "median of 1 cell, 20 to 20 %",
        ),
        # 44 and 48 of 80
        "of the clean score is left when the same perturbed images are rounded to 8 bits": (
            "58 %", "median of 2 cells; 15 % on float pixels",
        ),
        "points lost under the control, perturbations with rows and columns shuffled": (
            "0.0", "median of 4 cells, -0.5 to 1.0",
        ),
        # -1, 4, 8, 10, 16, 60
        "points lost under the perturbation of another network (black box)": (
            "9.0", "median of 6 cells; in 5 of them the loss is more than chance",
        ),
        "points: the strongest transfer within an architecture, FR-ZF → FR-ZF-B": (
            "60.0", "80.0 → 20.0 mAP; the largest of 1 cell",
        ),
        "points: the strongest transfer to another architecture, FCN → R-FCN†": (
            "16.0", "80.0 → 64.0 mAP; the largest of 5 cells",
        ),
        "points: the strongest transfer to the other task, FCN → R-FCN†": (
            "16.0", "80.0 → 64.0 mAP; the largest of 4 cells",
        ),
    }  # fmt: skip


def test_findings_say_nothing_that_the_cells_do_not():
    assert findings([], NETWORKS) == []
    alone = frames.transfer([victim("rn", ("float",))], ["none"], LABELS, {}, "float")
    assert findings([alone], NETWORKS) == []


def test_a_table_without_intervals_shows_standard_errors(results, tmp_path):
    """Results of an earlier version have none."""
    frame = transfer().drop(columns=["drop_low", "drop_high"])
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    frame.to_csv(tmp_path / "tables/table2.csv", index=False)
    assert numbers(Reader(written(tmp_path)), "table2", "drop")["FR-ZF"][0] == "72.0 ± 0.8↓"


def test_the_glossary_holds_what_the_page_uses(reader):
    (glossary,) = reader.all("details", "glossary")
    terms = {squeezed(term) for term in reader.all("dt", within=glossary)}
    assert {"victim", "white box", "mAP", "mIoU", "8-bit", "permuted", "p"} <= terms
    # no label of this experiment ends in these, and no Gaussian noise was added
    assert not {"*", "-07", "-0712", "Gaussian noise", "NMS"} & terms


def test_the_diagram_is_legible_on_a_small_screen(reader):
    """On 400 px, of which the margins take 30, every text of the narrow diagram is at least 12 px high."""
    (narrow,) = [element for element in reader.all("svg") if element["attributes"]["class"] == "narrow"]
    width = float(narrow["attributes"]["viewbox"].split()[2])
    sizes = [float(text["attributes"].get("font-size", 16)) for text in reader.all("text", within=narrow)]
    assert len(sizes) >= 13 and min(sizes) * 370 / width >= 12
    assert not re.search(r"\.diagram[^}]*min-width", STYLE.read_text())
    small = re.search(r"@media \(max-width: 40rem\) \{(.*?)\n\}", STYLE.read_text(), re.DOTALL)[1]
    assert ".diagram .wide { display: none; }" in small and ".diagram .narrow { display: block; }" in small


@pytest.mark.parametrize("name", ["examples.rst", "shapes.rst", "figure3.rst", "index.html.j2"])
def test_texts_draw_no_conclusion_that_nobody_computed(name):
    text = " ".join((ROOT / "report" / name).read_text().split())
    for conclusion in ("looks like", "nobody sees", "shows us", "the less", "needs a much stronger"):
        assert conclusion not in text


def test_an_independent_start_has_a_card_of_its_own():
    networks = NETWORKS | {"zf-b": NETWORKS["zf-b"] | {"family": "zf-b"}}
    found = {finding["text"]: finding["value"] for finding in findings([transfer()], networks)}
    start = "points: the strongest transfer within an architecture"
    assert {text: value for text, value in found.items() if text.startswith(start)} == {
        f"{start}, to a network from an independent start, FR-ZF → FR-ZF-B": "60.0"
    }
