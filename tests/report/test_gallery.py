"""The gallery: pictures that are decoded, data that are parsed again, and the page in a browser if there is one."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dag.data.truths import Objects
from dag.evaluate.cells import Cell, write_manifest
from dag.report import gallery
from dag.workflow import store

REPORT = Path(__file__).parents[2] / "report"
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028'\"\\"


# Measures


def test_right_foreground_by_hand():
    truth = np.array([[0, 1, 1, 255], [0, 2, 2, 255]])
    # three of four object pixels; background and void do not count, neither right nor wrong
    assert gallery.right_foreground(truth, np.array([[7, 1, 3, 0], [7, 2, 2, 255]])) == 0.75
    assert gallery.right_foreground(truth, truth) == 1
    assert gallery.right_foreground(np.array([[0, 255]]), np.array([[0, 0]])) is None


def detections(*rows) -> dict:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return {"boxes": table[:, :4], "labels": table[:, 4].astype(int), "scores": table[:, 5]}


OBJECTS = Objects(
    np.array([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]], np.float32),
    np.array([1, 2, 2]),
    np.array([False, False, True]),
)


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([], 0),
        ([(0, 0, 9, 9, 1, 0.5), (20, 0, 29, 9, 2, 0.9)], 2),
        ([(0, 0, 9, 9, 1, 0.49)], 0),  # too low a score
        ([(0, 0, 9, 9, 2, 0.9)], 0),  # another class
        ([(0, 0, 9, 4, 1, 0.9)], 1),  # IoU 50/100
        ([(0, 0, 9, 3, 1, 0.9)], 0),  # IoU 40/100
        ([(0, 0, 9, 9, 1, 0.9), (0, 0, 9, 8, 1, 0.8)], 1),  # one object twice
        ([(40, 0, 49, 9, 2, 0.9)], 0),  # a difficult object
    ],
)
def test_found_by_hand(rows, count):
    assert gallery.found(OBJECTS, detections(*rows)) == count


def test_nothing_can_be_found_where_all_is_difficult():
    none = Objects(OBJECTS.boxes, OBJECTS.labels, np.ones(3, bool))
    empty = Objects(np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool))
    assert gallery.found(none, detections()) is None and gallery.found(empty, detections()) is None


def test_boxes_are_those_above_the_score_best_first():
    found = gallery.boxes(detections((1, 2, 3, 4.26, 5, 0.5), (0, 0, 1, 1, 6, 0.4), (0.123, 0, 1, 1, 7, 0.98765)))
    assert found == [[0.1, 0, 1, 1, 7, 0.988], [1, 2, 3, 4.3, 5, 0.5]]


def test_small_curve():
    assert gallery.small_curve([35, 18, 1, 0], 35) == "zi10"
    # one active target of thousands is not none
    assert gallery.small_curve([7000, 1, 0], 7000) == "z10"
    assert gallery.small_curve([], 0) == "" and gallery.small_curve([3], 5) == "l"
    straight = gallery.small_curve(list(range(350, -1, -1)), 350)
    assert len(straight) == gallery.SAMPLES and straight[0] == "z" and straight[-1] == "0"
    levels = [int(digit, 36) for digit in straight]
    assert np.abs(levels - np.linspace(35, 0, gallery.SAMPLES)).max() < 1


def test_picture_size_keeps_the_shape_and_enlarges_nothing():
    assert gallery.picture_size(96, 128) == (96, 128)
    assert gallery.picture_size(375, 500) == (150, 200) and gallery.picture_size(500, 333) == (200, 133)
    assert gallery.picture_size(2000, 3) == (200, 1)


# Pictures and records of a shard

HEIGHT, WIDTH = 24, 32
NET, DETECTOR, SUM = "net", "det@authors", "net+det@authors"
VICTIMS = {"seg": "segmentation", "det": "detection"}
PAIRS = {NET: ["seg", "det"], SUM: ["det"]}
IDS = ["a", "b"]


def annotate(root: Path) -> None:
    """Image a with a label map and a difficult object beside a plain one, b with an object alone."""
    for name in ("JPEGImages", "SegmentationClass", "Annotations"):
        (root / name).mkdir(parents=True)
    grey = {"a": 60, "b": 180}
    for image_id in IDS:
        Image.new("RGB", (WIDTH, HEIGHT), (grey[image_id],) * 3).save(
            root / "JPEGImages" / f"{image_id}.jpg", quality=100
        )
        objects = [(5, 5, 16, 16, 0)] + ([(20, 5, 30, 16, 1)] if image_id == "a" else [])
        text = "".join(
            f"<object><name>cat</name><difficult>{hard}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
            f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            for *box, hard in objects
        )
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{text}</annotation>")
    label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    label_map[:, :8], label_map[0] = 8, 255
    Image.fromarray(label_map).save(root / "SegmentationClass" / "a.png")


def shard(path: Path, kind: str, arrays: dict, **attributes) -> Path:
    path.parent.mkdir(parents=True)
    with store.writing(path, kind, list(arrays), {"of": str(path)}) as file:
        for image_id, array in arrays.items():
            file.put(image_id, array, attributes)
    return path


@pytest.fixture
def arguments(tmp_path) -> dict:
    root = tmp_path / "VOC"
    annotate(root)
    r = np.zeros((3, HEIGHT, WIDTH), np.float32)
    r[0, :, 16:] = 5  # red in the right half
    known = {"perceptibility": 0.01, "largest": 5.0}
    attack = {"status": "converged", "iterations": 2, "targets": 70, "active": np.array([70, 2, 0])}
    perturbations = {
        NET: shard(tmp_path / "net" / "0.h5", "perturbations", dict.fromkeys(IDS, r), **known, **attack),
        SUM: shard(tmp_path / "sum" / "0.h5", "perturbations", dict.fromkeys(IDS, -r), **known),
    }
    right = np.zeros((HEIGHT, WIDTH), np.uint8)
    right[:, :8] = 8
    wrong = right.copy()
    wrong[:, 4:8] = 12
    box = np.array([[4, 4, 15, 15, 8, 0.9], [4, 4, 15, 15, 8, 0.1]], np.float32)
    predicted = {
        ("seg", "none"): right,
        ("seg", NET): wrong,
        ("det", "none"): box,
        ("det", NET): box[:0],
        ("det", SUM): box,
    }
    cells = []
    for (victim, name), array in predicted.items():
        path = tmp_path / "predictions" / victim / name / "0.h5"
        shard(path, "predictions", dict.fromkeys(IDS, array))
        cells.append(Cell(victim, name, "float", None, path, {"of": str(path)}))
    write_manifest(tmp_path / "cells.json", cells)
    return {
        "folder": tmp_path / "pictures" / "0000",
        "images": [(root, image_id) for image_id in IDS],
        "pairs": PAIRS,
        "perturbations": perturbations,
        "manifest": tmp_path / "cells.json",
        "tasks": VICTIMS,
    }


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pictures_of_a_shard(arguments):
    folder = arguments["folder"]
    gallery.draw_shard(**arguments)
    names = {f"{number}.{suffix}" for number in (0, 1) for suffix in ("png", "webp")}
    assert set(files(folder)) == names | {f"{name}/{number}.webp" for name in PAIRS for number in (0, 1)}
    assert [path.name for path in folder.parent.iterdir()] == ["0000"]

    def close(picture, column, rows, columns, expected):
        found = picture[rows, column * WIDTH :][:, columns].reshape(-1, 3)
        assert np.abs(found.astype(int) - expected).max() <= 6

    # away from the edges, which lossy pictures blur
    left, right, rows = slice(3, 12), slice(20, 29), slice(3, -3)
    with Image.open(folder / "1.webp") as picture:
        close(np.asarray(picture), 0, rows, left, 180)
    for name, sign in ((NET, 1), (SUM, -1)):
        with Image.open(folder / name / "0.webp") as picture:
            strip = np.asarray(picture)
        assert strip.shape == (HEIGHT, 2 * WIDTH, 3)
        close(strip, 0, rows, left, 60)
        close(strip, 0, rows, right, [60 + 5 * sign, 60, 60])
        close(strip, 1, rows, left, 128)
        close(strip, 1, rows, right, [128 + 50 * sign, 128, 128])


def test_label_maps_of_a_shard_are_exact(arguments):
    gallery.draw_shard(**arguments)
    with Image.open(arguments["folder"] / "0.png") as picture:
        labels, colours = np.asarray(picture), np.asarray(picture.convert("RGB"))
    assert labels.shape == (3 * HEIGHT, 2 * WIDTH)
    tiles = labels.reshape(3, HEIGHT, 2, WIDTH).swapaxes(1, 2)
    (truth, clean), (nothing, seen), (_, unseen) = tiles
    assert (truth[0] == 255).all() and (truth[1:, :8] == 8).all() and (truth[1:, 8:] == 0).all()
    assert (clean[:, :8] == 8).all() and (seen[:, 4:8] == 12).all() and (seen[:, :4] == 8).all()
    # no truth stands beside perturbed images, and nobody showed the sum to the segmentation network
    assert (nothing == 255).all() and (unseen == 255).all()
    assert colours[HEIGHT, WIDTH].tolist() == [64, 0, 0]  # the cat of VOC's legend
    with Image.open(arguments["folder"] / "1.png") as picture:
        assert (np.asarray(picture)[:HEIGHT, :WIDTH] == 255).all()  # image b has no label map


def test_records_of_a_shard(arguments):
    records, details = gallery.draw_shard(**arguments)
    assert records["classes"] == [0, 8, 12, 255]
    a, b = records["images"]
    assert a == {
        "id": "a", "height": HEIGHT, "width": WIDTH, "classes": [8], "labelled": True, "objects": 1,
        "clean": {"seg": 1.0, "det": 1},
    }  # fmt: skip
    assert b["clean"] == {"det": 1} and b["labelled"] is False and b["classes"] == [8]
    one, _ = records["perturbations"][NET]
    assert one == {
        "status": "converged", "iterations": 2, "targets": 70, "curve": "z10", "perceptibility": 0.01, "largest": 5.0,
        "seen": {"seg": 0.5, "det": 0},
    }  # fmt: skip
    one, _ = records["perturbations"][SUM]
    assert [one[key] for key in ("status", "iterations", "targets", "curve")] == [None] * 4
    assert one["seen"] == {"det": 1}
    # 1-based in the annotation, 0-based here
    assert details["images"][0]["truth"] == [[4, 4, 15, 15, 8, 0], [19, 4, 29, 15, 8, 1]]
    assert details["images"][0]["clean"] == {"det": [[4, 4, 15, 15, 8, 0.9]]}
    assert details["perturbations"][NET][1] == {"active": [70, 2, 0], "seen": {"det": []}}
    assert details["perturbations"][SUM][1] == {"active": None, "seen": {"det": [[4, 4, 15, 15, 8, 0.9]]}}
    json.dumps([records, details], allow_nan=False)


def test_a_shard_is_drawn_alike_again_and_what_lay_there_goes(arguments):
    first = gallery.draw_shard(**arguments), files(arguments["folder"])
    (arguments["folder"] / "old.webp").write_text("")
    (arguments["folder"].parent / ".0000.part").mkdir()
    assert (gallery.draw_shard(**arguments), files(arguments["folder"])) == first


def test_a_perturbation_of_other_images_is_refused(arguments, tmp_path):
    zero = np.zeros((3, HEIGHT, WIDTH), np.float32)
    arguments["perturbations"][SUM] = shard(
        tmp_path / "x" / "0.h5", "perturbations", {"a": zero}, perceptibility=0.0, largest=0.0
    )
    with pytest.raises(ValueError, match="no image b; the shard belongs to another image set"):
        gallery.draw_shard(**arguments)
    assert not arguments["folder"].exists()


# Data

ABOUT = {"title": HOSTILE, "description": "", "image_set": "s", "experiment": "", "notice": ""}


def content(records: dict) -> dict:
    networks = {"seg": {"label": "Seg", "task": "segmentation"}, "det": {"label": "Det", "task": "detection"}}
    return gallery.data(ABOUT, networks, {NET: "Net", SUM: "Net + Det"}, PAIRS, {"0000": records, "0002": records})


def test_data_of_two_shards(arguments):
    records, _ = gallery.draw_shard(**arguments)
    found = content(records)
    assert found["images"]["id"] == ["a", "b", "a", "b"] and found["images"]["number"] == [0, 1, 0, 1]
    assert found["images"]["shard"] == ["0000", "0000", "0002", "0002"]
    # percent, and numbers of objects; None where there is no truth
    assert found["images"]["clean"] == [[100, None] * 2, [1, 1] * 2]
    one, other = found["perturbations"]
    assert one["seen"] == {0: [50, None] * 2, 1: [0, 0] * 2} and other["seen"] == {1: [1, 1] * 2}
    assert found["coloured"] == [0, 8, 12, 255]
    assert found["statuses"] == ["converged"] and one["status"] == [0] * 4 and other["status"] == [-1] * 4
    assert one["p"] == [10.0] * 4 and other["sources"] == [NET, DETECTOR]
    assert found["classes"][8] == ["cat", "#400000"] and found["classes"][255] == ["void", "#e0e0c0"]


def test_scripts_can_be_parsed_back_and_hold_any_id():
    text = gallery.script("gallery.start", {"id": [HOSTILE]})
    assert "<" not in text and text.isascii() and text.count("\n") == 1
    assert json.loads(text.removeprefix("gallery.start(").removesuffix(");\n")) == {"id": [HOSTILE]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        gallery.script("gallery.start", float("nan"))


def test_the_page_needs_nothing_from_outside_and_parses_no_data_as_html():
    page = gallery.page((REPORT / "gallery.html").read_text(), HOSTILE)
    assert "<img" not in page and "{{" not in page and page.count("&lt;/script&gt;") == 2
    css, js = ((REPORT / f"gallery.{suffix}").read_text() for suffix in ("css", "js"))
    addresses = re.findall(r"\w+://[^\"'\s)]*", page + css + js)
    assert addresses == ["http://www.w3.org/2000/svg"]  # a name, not a place
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bfetch\b|@import|url\(", css + js
    )
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {
        "gallery.css",
        "gallery.js",
        "data.js",
        "../../index.html",
    }


# The page in a browser


@pytest.fixture
def opened(arguments, tmp_path):
    """A function that opens a gallery of images with hostile ids at a hash and returns what the page became."""
    records, details = gallery.draw_shard(**arguments)
    records["images"][1]["id"] = HOSTILE
    folder = arguments["folder"].parents[1]
    (folder / "details").mkdir()
    for name in ("0000", "0002"):
        (folder / "details" / f"{name}.js").write_text(gallery.script("gallery.details", {"shard": name} | details))
    (folder / "data.js").write_text(gallery.script("gallery.start", content(records)))
    for suffix in ("css", "js"):
        (folder / f"gallery.{suffix}").write_text((REPORT / f"gallery.{suffix}").read_text())
    (folder / "index.html").write_text(gallery.page((REPORT / "gallery.html").read_text(), HOSTILE))

    def at(browser: str, place: str) -> str:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
        address = (folder / "index.html").as_uri() + place
        return subprocess.run(
            [browser, *options, address], capture_output=True, text=True, check=True, timeout=120
        ).stdout

    return at


@pytest.mark.browser
@pytest.mark.parametrize(
    ("place", "images", "examples"),
    [
        ("", 4, 8),
        ("#source=net", 4, 4),
        ("#status=converged", 4, 4),
        ("#status=none", 4, 4),
        ("#victim=seg", 4, 4),
        ("#class=8&id=A&source=net", 4, 4),  # </script>… has an a
        ("#class=9", 0, 0),
        ("#id=alert", 2, 4),
    ],
)
def test_filters_in_a_browser(opened, browser, place, images, examples):
    page = opened(browser, place)
    assert f"{images} of 4 images, {examples} of 8 examples" in page
    assert page.count('class="card"') == examples


@pytest.mark.browser
def test_order_in_a_browser(opened, browser):
    """Lost under the network's own perturbation: seg 100 → 50 and det 1 → 0 of image a, det alone of the other."""
    page = opened(browser, "#source=net&sort=loss-most")
    assert re.findall(r"lost: (-?\d+) points", page) == ["100", "100", "75", "75"]
    page = opened(browser, "#sort=iterations-most")  # sums, which have none, come last
    assert [bool(text) for text in re.findall(r'class="card".*?</h3>.*?(2 iterations)?</p>', page)] == [True] * 4 + [
        False
    ] * 4


@pytest.mark.browser
def test_an_example_in_a_browser(opened, browser):
    page = opened(browser, "#image=a&with=net")
    assert "<dialog" in page and 'open=""' in page
    assert "100 → 50 % of object pixels right" in page and "1 → 0 of 1 objects found" in page
    assert "cat (difficult)" in page and "cat 0.90" in page and "cat 0.10" not in page
    assert "70 of 70 targets active at the start, 0 after 2 iterations" in page
    # an id that looks like a script is text, and the detector of the sum is one of its sources
    page = opened(
        browser,
        "#image=%3C%2Fscript%3E%3Cimg+src%3Dx+onerror%3Dalert%281%29%3E%E2%80%A8%27%22%5C&with=net%2Bdet%40authors",
    )
    assert '<img src="x"' not in page and "Image &lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in page
    assert "(a source): 1 → 1 of 1 objects found" in page
