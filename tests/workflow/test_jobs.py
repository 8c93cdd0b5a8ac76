"""What the jobs read, write and are told, against paths and parameters written out by hand."""

import pytest
from overlays import merge

from dag.workflow import contents, jobs, paths, plan
from dag.workflow.names import stage_iterations

CONFIG = {
    "experiment": "e", "seed": 2017, "voc": None, "weights": None, "shard_size": 2, "given_up": ["s/0001"],
    "permutations": 1, "pixels": ["float"], "products": ["t", "f", "g", "c"],
    "classes": {"voc": {"names": ["ground", "thing"], "colours": ["#000000", "#ffffff"]}, "own": {"names": ["it"]}},
    "downloads": {"a.caffemodel": {"archive": "x.zip", "member": "m/a"}, "x.zip": {"urls": ["u"], "md5": "1"}},
    "networks": {
        "a": {"label": "A", "task": "segmentation", "architecture": "dag.data.mini:make",
              "files": {"caffemodel": "a.caffemodel", "means": "./own/means.npy"}},
        "b": {"label": "B", "task": "detection", "architecture": "z:z", "family": "f", "substitute": "C",
              "training": {"body": "body", "list": "Main/07"}},
        "c": {"label": "C", "task": "segmentation", "architecture": "z:z",
              "training": {"recipe": "r", "initial": {"network": "d"}}},
    },
    "image_sets": {"s": {"size": 5, "parts": [{"root": "{voc}/VOC2007", "list": "{voc}/VOC2007/l.txt"},
                                              {"root": "own", "list": "own/l.txt"}]}},
    "tables": {"t": {"layout": "transfer", "image_set": "s", "perturbations": ["none", "a+b.signs"], "victims": ["b"]}},
    "figures": {
        "f": {"kind": "examples", "image_set": "s", "panels": [{"perturbation": "a", "victims": ["a", "b"]}]},
        "g": {"kind": "gallery", "image_set": "s", "perturbations": ["a"], "victims": ["a"]},
        "c": {"kind": "convergence", "image_set": "s", "sources": ["a@v"]},
        "unused": {"kind": "shapes", "image_set": "s", "network": "a", "title": "", "size": 1},
    },
}  # fmt: skip


def test_where_weights_are():
    assert paths.weights(CONFIG, "a") == {
        "caffemodel": "resources/checked/a.caffemodel", "means": "own/means.npy"
    }  # fmt: skip
    assert paths.weights(CONFIG, "b") == {"state_dict": "resources/weights/b.pt"}
    trained = merge(CONFIG, {"networks": {"d": {"training": {"recipe": "r", "initial": "a.caffemodel"}}}})
    assert paths.initial_weights(trained, "c") == "resources/weights/d.pt"
    assert paths.initial_weights(trained, "d") == "resources/checked/a.caffemodel"


def test_a_member_that_the_user_has_is_not_extracted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.downloads(CONFIG, extracted=True) == ["a.caffemodel"]
    assert paths.archive(CONFIG, "a.caffemodel") == "resources/checked/x.zip"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.caffemodel").touch()
    assert paths.downloads(CONFIG | {"weights": "mine"}, extracted=True) == []
    (tmp_path / "resources/checked").mkdir(parents=True)
    (tmp_path / "resources/checked/a.caffemodel").touch()  # extracted before
    assert paths.downloads(CONFIG | {"weights": "mine"}, extracted=True) == ["a.caffemodel"]


def test_where_images_are():
    assert paths.image_lists(CONFIG, "s") == ["resources/VOCdevkit/VOC2007/l.txt", "own/l.txt"]
    assert paths.image_lists(CONFIG | {"voc": "/v"}, "s") == ["/v/VOC2007/l.txt", "own/l.txt"]
    assert jobs.image_set(CONFIG, "s") == {
        "name": "s", "size": 5, "sha256": None, "shard_size": 2,
        "format": "voc", "classes": {"names": ["ground", "thing"]},
        "parts": [{"root": "resources/VOCdevkit/VOC2007", "list": "resources/VOCdevkit/VOC2007/l.txt"},
                  {"root": "own", "list": "own/l.txt"}],
    }  # fmt: skip
    assert jobs.image_sets(CONFIG, "f")["s"].items() >= {"given_up": ["0001"], "victims": ["a", "b"]}.items()


def test_what_is_checked_of_images():
    """What the victims are scored on, and what the sources attack."""
    base = "results/e/s/checked"
    assert paths.checks(CONFIG, "t") == [f"{base}/{kind}.txt" for kind in ("image", "detection", "segmentation")]
    clean = merge(CONFIG, {"tables": {"t": {"perturbations": ["none"]}}})
    assert paths.checks(clean, "t") == [f"{base}/image.txt", f"{base}/detection.txt"]


def test_what_all_makes():
    base = "results/e"
    assert paths.everything(CONFIG) == [
        *(f"{base}/tables/t.{kind}" for kind in ("csv", "md", "tex", "svg", "png")),
        f"{base}/figures/f.svg", f"{base}/figures/f.png",
        *(f"{base}/galleries/g/{name}" for name in ("index.html", "gallery.css", "gallery.js", "data.js")),
        *(f"{base}/figures/c.{kind}" for kind in ("csv", "svg", "png")),
        *(f"{base}/tables/{name}.csv" for name in ("claims", "perceptibility", "self_tests", "statuses")),
        f"{base}/index.html", f"{base}/provenance.json",
    ]  # fmt: skip
    # a shard that is given up is nowhere
    assert paths.manifests(CONFIG, "t") == [f"{base}/cells/t/s/{shard}.json" for shard in ("0000", "0002")]
    assert paths.source_shards(CONFIG, [("a@v", "s")]) == [
        f"{base}/s/perturbations/a@v/{shard}.h5" for shard in ("0000", "0002")
    ]
    assert paths.made(CONFIG)["c"]["shapes"] == []
    shapes = paths.made(CONFIG | {"products": ["unused"]})
    assert shapes["unused"]["shapes"] == [f"{base}/shapes/unused.h5"]


def test_what_predict_is_told():
    assert jobs.cells(CONFIG, "t", "s") == {"b": ["none", "a+b.signs-1"]}
    assert jobs.cell_weights(CONFIG, "t", "s") == ["resources/weights/b.pt"]
    assert jobs.cell_perturbations(CONFIG, "t", "s", "0002") == ["results/e/s/perturbations/a+b.signs-1/0002.h5"]
    assert jobs.row_shards(CONFIG, "f") == [f"results/e/s/perturbations/a/{shard}.h5" for shard in ("0000", "0002")]
    assert jobs.row_shards(CONFIG, "g", "0002") == ["results/e/s/perturbations/a/0002.h5"]
    assert jobs.shape_settings(CONFIG, "unused") == {"size": 1}


def test_what_training_and_downloads_are_told():
    assert jobs.training_inputs(CONFIG, "b") == {
        "images": "resources/mini/train/ImageSets/Main/07.txt", "body": "resources/weights/bodies/body.pt"
    }  # fmt: skip
    assert jobs.download(CONFIG, "x.zip") == {"md5": "1"} and jobs.mirrors(CONFIG, "x.zip") == ["u"]
    assert jobs.mirrors(CONFIG | {"weights": "mine"}, "a.caffemodel") == ["mine"]
    network = jobs.network(CONFIG, "a")
    assert network["files"] == paths.weights(CONFIG, "a") and network["code"] == jobs.code("dag.data.mini")
    assert network["classes"] == {"names": ["ground", "thing"]}
    own = merge(CONFIG, {"networks": {"a": {"classes": "own"}}})
    assert jobs.network(own, "a")["classes"] == {"names": ["it"]}


def test_names_in_print():
    assert plan.printed_networks(CONFIG, ["b"]) == {"b": {"label": "B†", "task": "detection"}}
    assert plan.families(CONFIG) == {"a": "a", "b": "f", "c": "c"}
    assert plan.mentioned(plan.product(CONFIG, "t")) == ["a", "b"]
    assert plan.mentioned(plan.product(CONFIG, "c")) == ["a"]


@pytest.mark.parametrize(("names", "matches"), [(["a.b", "c"], ["a.b", "c"]), ([], [])])
def test_a_pattern_of_names_matches_these_alone(names, matches):
    import re

    found = [text for text in ("a.b", "axb", "c", "", "d") if re.fullmatch(plan.one_of(names), text)]
    assert found == matches


def test_a_changed_image_concerns_its_shard_and_a_loss_that_counts_pixels_all(tmp_path, monkeypatch):
    """Jobs see a change in their parameters; shard 0 holds a and b, shard 2 holds e."""
    monkeypatch.chdir(tmp_path)
    variants = {"balanced": {"worst_of": ["mce", "bal"]}, "mce": {}, "bal": {"objective": "mce-bal"}}
    config = merge(CONFIG, {"attacks": {"segmentation": {}, "detection": {}}, "variants": variants})
    config["image_sets"]["s"]["parts"] = [{"root": "own", "list": "own/l.txt"}]
    config["image_sets"]["s"]["sha256"] = "1"
    config["figures"]["unused"]["images"] = ["e"]

    def ask() -> dict[str, str]:
        contents._known.clear()
        asked = {
            "perturb a 0": jobs.attack_contents(config, "s", "a", "0000"),
            "perturb a 2": jobs.attack_contents(config, "s", "a", "0002"),
            "perturb b 0": jobs.attack_contents(config, "s", "b", "0000"),
            "perturb a balanced 2": jobs.attack_contents(config, "s", "a@balanced", "0002"),
            "predict 0": jobs.shard_contents(config, "s", "0000", "image"),
            "predict 2": jobs.shard_contents(config, "s", "0002", "image"),
            "score t": jobs.image_sets(config, "t"),
            "score f": jobs.image_sets(config, "f"),
            "shape": jobs.shape_contents(config, "unused"),
        }
        return {name: repr(found) for name, found in asked.items()}

    assert all("None" in found for found in ask().values())
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("Annotations", "xml")):
        (tmp_path / "own" / folder).mkdir(parents=True)
        for image_id in "abcde":
            (tmp_path / "own" / folder / f"{image_id}.{ending}").write_text(image_id)
    (tmp_path / "own" / "l.txt").write_text("a\nb\nc\nd\ne\n")
    before = ask()
    assert not any("None" in found for found in before.values())

    def changed(path: str) -> set[str]:
        nonlocal before
        (tmp_path / "own" / path).write_text("other")
        before, old = ask(), before
        return {name for name in old if before[name] != old[name]}

    assert changed("JPEGImages/a.jpg") == {"perturb a 0", "perturb b 0", "predict 0"}
    assert changed("SegmentationClass/a.png") == {"perturb a 0", "perturb a balanced 2", "score f"}
    assert changed("Annotations/a.xml") == {"perturb b 0", "score t", "score f"}
    assert changed("JPEGImages/e.jpg") == {"perturb a 2", "perturb a balanced 2", "predict 2", "shape"}
    # of a shard that is given up nothing counts
    assert changed("JPEGImages/c.jpg") == changed("Annotations/c.xml") == set()


def test_which_attacks_have_to_find_a_planted_example():
    """Those within a budget, on one network, that run on the engine; on the first shard that is not given up."""
    ball = {"budget": "linf", "eps": 8}
    variants = {
        "in": ball,
        "worst": {"worst_of": ["in", "own"]},
        "worst-in": {"worst_of": ["in"]},
        "own": ball | {"function": "x:y"},
        "theirs": ball | {"perturbation": "folder"},
        "both": ball | {"ensemble": ["c"]},
        "di": ball | {"diversity": 0.5},
    }
    rows = ["none", "a", *(f"a@{name}" for name in variants), "c@in"]
    table = {"layout": "transfer", "image_set": "s", "perturbations": rows, "victims": ["a"]}
    config = merge(
        CONFIG,
        {
            "attacks": {"segmentation": {"step": 1}, "detection": {}},
            "variants": variants,
            "tables": {"t": table},
            "products": ["t"],
        },
    )
    assert plan.planted_sources(config) == {("a", "s"): ["a@in", "a@worst-in"], ("c", "s"): ["c@in"]}
    assert paths.planted(config) == ["results/e/s/planted/a.json", "results/e/s/planted/c.json"]
    assert jobs.planted(config, "c", "s") == {"c@in": {"step": 1} | ball}
    gone = config | {"given_up": ["s/0000", "s/0001", "s/0002"]}
    assert plan.planted_sources(gone) == {} and paths.planted(gone) == []


@pytest.mark.parametrize(
    ("iterations", "expected"), [(100, [30, 30, 40]), (15, [4, 5, 6]), (25, [8, 7, 10]), (5, [2, 1, 2])]
)
def test_stages_share_the_iterations(iterations, expected):
    """Of SEA; ends at 0.3, 0.6 and 1 of them, rounded half to even."""
    settings = {"stages": [[2, 0.3], [1.5, 0.3], [1, 0.4]], "iterations": iterations}
    assert stage_iterations(settings) == expected and sum(expected) == iterations


def test_pixels_of_shards_that_are_given_up_are_not_counted():
    attacks = {"segmentation": {}, "detection": {}}
    config = merge(CONFIG, {"attacks": attacks, "variants": {"bal": {"objective": "mce-bal"}, "mce": {}}})
    assert jobs.uncounted(config, "s", "a@bal") == ["0001"] and jobs.uncounted(config, "s", "a@mce") == []
