"""The configuration: every mistake gets one sentence that names the place, and what follows from it is counted
by hand."""

import re
from pathlib import Path

import pytest
import yaml
from overlays import merge

from dag.data import image_sets
from dag.workflow import comparisons, configuration, digests, jobs, layers, paths, plan

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "config" / "schemas" / "config.schema.yaml"


def read(*names: str) -> dict:
    merged: dict = {}
    for name in names:
        merged = merge(merged, yaml.safe_load((ROOT / "config" / name).read_text()))
    return merged


BASE = read(*(f"{name}.yaml" for name in layers.DEFAULTS))
OVERLAYS = sorted(
    {path.name for path in (ROOT / "config").glob("*.yaml")} - {f"{name}.yaml" for name in layers.DEFAULTS}
)


def changed(overlay: dict) -> dict:
    return merge(BASE, overlay)


def message(config: dict) -> str:
    with pytest.raises(ValueError, match="^configuration, ") as caught:
        configuration.check(config, SCHEMA)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500, text
    return text


def table(**entry) -> dict:
    """A transfer table, with some entries changed."""
    base = {"title": "", "description": "", "layout": "transfer", "image_set": "mini-test"}
    return {"tables": {"mine": base | {"perturbations": ["none"], "victims": ["mini-fr-zf-07"]} | entry}}


def trained(**entry) -> dict:
    """The training of a network by a recipe, with some entries changed."""
    return {"networks": {"fcn-alex-star": {"training": entry}}}


def figure(**entry) -> dict:
    return {"figures": {"mine": {"title": "", "description": "", "image_set": "mini-test"} | entry}}


def rows(*perturbations: str) -> dict:
    return table(perturbations=list(perturbations))


def panel(perturbation: str, victim: str, images: int = 1) -> dict:
    panels = [{"perturbation": perturbation, "victims": [victim]}]
    return figure(kind="examples", images=images, arrangement="rows", panels=panels)


def shaped(**entry) -> dict:
    """Shaped examples, with some entries changed."""
    base = {"kind": "shapes", "network": "mini-fcn-vgg", "images": 1, "shapes": {"circle": "bus"}, "size": 0.5}
    return figure(**base | {"attack": {"iterations": 9, "step": 0.5, "stop": 0}} | entry)


# Sound configurations


def test_the_default_is_sound():
    configuration.check(BASE, SCHEMA)


# What an overlay is laid upon, as its first lines say.
BELOW = {"robustness.yaml": ("pocket.yaml", "zoo.yaml")}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_is_sound(name):
    overlay = read(*BELOW.get(name, ()), name)
    configuration.check(layers.with_defended(layers.without_nulls(merge(BASE, overlay))), SCHEMA)


def test_null_takes_away_what_a_network_has():
    entry = {"files": {"caffemodel": "x"}, "arguments": {"body": "zf", "mean": [1, 2, 3]}, "label": "N"}
    config = merge({"networks": {"n": entry}, "voc": None}, {"networks": {"n": {"files": None}}})
    config = merge(config, {"networks": {"n": {"arguments": {"mean": None}}}})
    assert layers.without_nulls(config) == {
        "networks": {"n": {"arguments": {"body": "zf"}, "label": "N"}},
        "voc": None,
    }


JPEG = {"label": "J", "of": "mini-fcn-vgg", "defence": "jpeg", "arguments": {"quality": 75}}
BLUR = {"label": "B", "of": "j", "defence": "blur", "arguments": {"sigma": 1}}


def behind(**networks) -> dict:
    return layers.with_defended(changed({"networks": networks}))


def test_a_network_behind_defences_is_that_network_and_they():
    config = behind(j=JPEG, b=BLUR)
    configuration.check(config, SCHEMA)
    plain, both = (jobs.network(config, name) for name in ("mini-fcn-vgg", "b"))
    assert plain["defences"] == [] and both["name"] == "b" and both["task"] == "segmentation"
    assert [(one["name"], one["function"], one["arguments"]) for one in both["defences"]] == [
        ("j", "dag.networks.defences:jpeg", {"quality": 75}),
        ("b", "dag.networks.defences:blur", {"sigma": 1}),
    ]
    assert {key: both[key] for key in ("architecture", "arguments", "files", "code")} == {
        key: plain[key] for key in ("architecture", "arguments", "files", "code")
    }
    assert paths.weights(config, "b") == paths.weights(config, "mini-fcn-vgg")
    assert plan.families(config)["b"] == plan.families(config)["mini-fcn-vgg"]
    assert len({plan.architectures(config)[name] for name in ("mini-fcn-vgg", "j", "b")}) == 3
    assert plan.defended(config) == ["j", "b"]


def test_a_defence_has_files_of_its_own():
    own = {"label": "D", "of": "mini-fcn-vgg", "defence": "dag.networks.defences:blur", "files": {"weights": "./d.pt"}}
    config = behind(d=own)
    configuration.check(config, SCHEMA)
    assert paths.weights(config, "d") == paths.weights(config, "mini-fcn-vgg") | {"d:weights": "d.pt"}


@pytest.mark.parametrize(
    ("networks", "says"),
    [
        ({"j": JPEG | {"of": "mini-fcn-vgh"}}, "'mini-fcn-vgh' is not in networks; did you mean 'mini-fcn-vgg'?"),
        ({"j": JPEG | {"defence": "jpg"}}, "there is no defence 'jpg'; did you mean 'jpeg'?; known are rounding, jpeg"),
        ({"j": JPEG | {"arguments": {}}}, "the arguments of jpeg are quality, not none"),
        (
            {"j": JPEG | {"arguments": {"quality": 1, "size": 2}}},
            "the arguments of jpeg are quality, not quality, size",
        ),
        ({"j": JPEG | {"defence": "dag.networks.defences:jpg"}}, "there is no jpg in dag.networks.defences; did you"),
        ({"j": JPEG | {"architecture": "a:b"}}, "architecture is that of the network which it is `of`, mini-fcn-vgg"),
        ({"j": JPEG | {"task": "detection"}}, "its task is that of mini-fcn-vgg, segmentation; leave it out"),
        ({"j": JPEG | {"of": "b"}, "b": BLUR}, "it is a defence of 'b', which is one of it"),
        ({"j": {"label": "J", "of": "mini-fcn-vgg"}}, "'defence' is a required property"),
    ],
)
def test_defences_that_cannot_be_made(networks, says):
    assert says in message(behind(**networks))


@pytest.mark.parametrize("overlay", [rows("j"), rows("mini-fcn-alex+j@pgd-8"), rows("b")])
def test_a_source_needs_a_gradient(overlay):
    says = "behind the defence jpeg, which has no gradient or is random, so it is no source; name mini-fcn-vgg as the"
    assert says in message(merge(behind(j=JPEG, b=BLUR), overlay))


def test_blur_has_a_gradient():
    configuration.check(merge(behind(b=BLUR | {"of": "mini-fcn-vgg"}), rows("b", "b@pgd-8")), SCHEMA)


def theirs(folder, **changes) -> dict:
    return merge(rows("mini-fcn-vgg@theirs"), {"variants": {"theirs": {"perturbation": str(folder)} | changes}})


def test_perturbations_of_others_are_a_folder(tmp_path):
    configuration.check(changed(theirs(tmp_path, budget="linf", eps=8, unclipped=True)), SCHEMA)
    for changes, says in (
        ({"objective": "ce"}, "attack theirs: the perturbation is there already; leave objective out"),
        ({"function": "a.py:f"}, "attack theirs: the perturbation is there already; leave function out"),
        ({"eps": 8}, "eps is the radius of a budget"),
    ):
        assert says in message(changed(theirs(tmp_path, **changes)))
    assert f"attack theirs: there is no folder {tmp_path}/gone" in message(changed(theirs(tmp_path / "gone")))
    other = merge(rows("mini-fcn-vgg@theirs"), {"variants": {"theirs": {"unclipped": True}}})
    assert "unclipped is about the files of a `perturbation`; leave it out" in message(changed(other))


def ensemble(*networks: str, **changes) -> dict:
    variants = {"variants": {"both": {"ensemble": list(networks)} | changes}}
    return merge(rows("mini-fcn-vgg@both", "mini-fcn-vgg@both+mini-dl-vgg", "mini-dl-vgg"), variants)


def test_an_ensemble_is_made_from_several_networks():
    config = changed(ensemble("mini-fcn-alex", "mini-fcn-vgg"))
    configuration.check(config, SCHEMA)
    assert plan.attacked(config, "mini-fcn-vgg@both") == ["mini-fcn-vgg", "mini-fcn-alex"]
    assert plan.attacked(config, "mini-fcn-vgg") == ["mini-fcn-vgg"]
    assert plan.ensembles(config, config["tables"]["mine"]) == {
        "mini-fcn-vgg@both": ["mini-fcn-vgg", "mini-fcn-alex"],
        "mini-fcn-vgg@both+mini-dl-vgg": ["mini-fcn-vgg", "mini-fcn-alex", "mini-dl-vgg"],
    }
    for changes, says in (
        (ensemble("mini-fr-zf-07"), "attack both: an ensemble has one task, segmentation, and mini-fr-zf-07 another"),
        (ensemble("mini-fcn"), "'mini-fcn' is not in networks"),
        (ensemble("mini-fcn-alex", diversity=0.5), "attack both: an ensemble has no diversity; leave one of them out"),
        (ensemble("mini-fcn-alex", function="a.py:f"), "attack both: an ensemble has no function"),
    ):
        assert says in message(changed(changes))


def test_an_export_is_made_of_arrays():
    config = changed({"export": {"mini-test": ["mini-fcn-vgg@pgd-8", "mini-fcn-vgg+mini-fcn-alex.p-4.signs-2"]}})
    configuration.check(config, SCHEMA)
    folder = "results/mini/export/mini-test"
    assert paths.exported(config) == [
        f"{folder}/mini-fcn-vgg@pgd-8",
        f"{folder}/mini-fcn-vgg+mini-fcn-alex.p-4.signs-2",
    ]
    for name in ("none", "mini-fcn-vgg.permuted"):
        says = f"configuration, export.mini-test: perturbation '{name}' is no array; name a source, a sum, or one draw"
        assert says in message(changed({"export": {"mini-test": [name]}}))
    assert "'mini' is not in image_sets" in message(changed({"export": {"mini": ["mini-fcn-vgg"]}}))


def test_retrained_networks_ask_for_no_released_weights():
    config = layers.without_nulls(merge(BASE, yaml.safe_load((ROOT / "config" / "retrained.yaml").read_text())))
    full_size = [entry for entry in config["networks"].values() if ".caffe." in entry["architecture"]]
    assert len(full_size) >= 12 and all("recipe" in entry["training"] for entry in full_size)
    assert all("substitute" in entry for entry in full_size)


@pytest.mark.parametrize(
    "overlay",
    [
        rows("none", "mini-fcn-alex@authors", "mini-fcn-alex+mini-fr-zf-07@nms-50", "mini-fcn-alex.permuted"),
        rows("mini-fcn-alex+mini-fr-zf-07.permuted-3"),
        {"attacks": {"detection": {"options": {"strength": None, "stop": 0.1}}}},
        {"variants": {"weak": {"step": 0.1, "options": {"strength": [0.35, 0.5]}}}},
        {"pixels": ["float"]},
        {"products": ["table2"]},
        {"products": ["figure4"]},
        figure(kind="gallery", perturbations=["mini-fcn-alex.permuted-1"], victims=["mini-fr-zf-07"]),
        figure(kind="lineage", perturbations=["mini-fcn-alex@pgd-8.p-4", "mini-fcn-vgg"], victims=["mini-fcn-alex"]),
        figure(kind="lineage", panels=[{"perturbation": "mini-fcn-alex", "victims": ["mini-fcn-vgg"]}]),
        figure(kind="gallery", panels=[{"perturbation": "mini-fcn-alex", "victims": ["mini-fr-zf-07"]}]),
    ],
)
def test_these_are_sound(overlay):
    configuration.check(changed(overlay), SCHEMA)


# Mistakes

MISTAKES = {
    "an unknown key": ({"shards": 3}, "top level: unknown key 'shards'; known keys are attacks, "),
    "an unknown key deep inside": (
        {"attacks": {"detection": {"gamma": 1}}},
        "attacks.detection: unknown key 'gamma'; known keys are arguments, budget, confidence, ",
    ),
    "an unknown rule": ({"attacks": {"segmentation": {"options": {"clip": True}}}}, "attacks.segmentation.options: "),
    "a wrong type": ({"seed": "x"}, "seed: 'x' is not of type 'integer'"),
    "a number for a mapping": ({"tables": 3}, "tables: 3 is not of type 'object'"),
    "a text for a list": (table(victims="x"), "tables.mine.victims: 'x' is not of type 'array'"),
    "zero": ({"shard_size": 0}, "shard_size: 0 is less than the minimum of 1"),
    "a share above one": ({"attacks": {"detection": {"nms": 1.5}}}, "attacks.detection.nms: 1.5 is greater than"),
    "a step of zero": ({"attacks": {"detection": {"step": 0}}}, "attacks.detection.step: 0 is less than or equal"),
    "unknown rules": ({"attacks": {"segmentation": {"rules": "paper"}}}, "attacks.segmentation.rules: 'paper' is"),
    "no float pixels": ({"pixels": ["8-bit"]}, "pixels: ['8-bit'] must contain 'float'"),
    "unknown pixels": ({"pixels": ["float", "16-bit"]}, "pixels: pixels '16-bit' is unknown; choose from float, 8-bit"),
    "a product twice": ({"products": ["table1", "table1"]}, "products: "),
    "no products": ({"products": []}, "products: "),
    "a shard given up that is not there": (
        {"given_up": ["mini-test/9999"]}, "given_up: there is no shard mini-test/9999; write image set/shard",
    ),
    "an unknown image set given up": ({"given_up": ["voc/0000"]}, "given_up: there is no shard voc/0000"),
    "all is given up": (
        {"shard_size": 2000, "given_up": ["mini-test/0000"]}, "given_up: no shard of mini-test is left; take one out",
    ),
    "an unknown product": ({"products": ["table9"]}, "products.0: 'table9' is not in tables or figures; did you mean"),
    "an unknown layout": (table(layout="square"), "tables.mine.layout: 'square' is not one of"),
    "a table without victims": (
        {"tables": {"mine": {"title": "", "description": "", "layout": "transfer", "image_set": "mini-test",
                             "perturbations": ["none"]}}},
        "tables.mine: 'victims' is a required property",
    ),
    "a figure of an unknown kind": (figure(kind="pie"), "figures.mine.kind: 'pie' is not one of"),
    "a figure without its sources": (figure(kind="convergence"), "figures.mine: 'sources' is a required property"),
    "an unknown image set": (table(image_set="voc"), "tables.mine.image_set: 'voc' is not in image_sets"),
    "an unknown victim": (table(victims=["fr"]), "tables.mine.victims.0: 'fr' is not in networks"),
    "a victim twice": (table(victims=["mini-fr-zf-07"] * 2), "tables.mine.victims: "),
    "a row twice": (rows("none", "none"), "tables.mine.perturbations: "),
    "an unknown source": (rows("fr"), "tables.mine: perturbation 'fr': network 'fr' is not in networks"),
    "an unknown source in a sum": (
        rows("mini-fr-zf-07+fr"), "tables.mine: perturbation 'mini-fr-zf-07+fr': network 'fr' is not in networks",
    ),
    "an unknown variant": (
        rows("mini-fr-zf-07@x"), "tables.mine: perturbation 'mini-fr-zf-07@x': variant 'x' is not in variants",
    ),
    "a malformed row": (rows("Mini"), "tables.mine: perturbation 'Mini': 'Mini' is not the name of a perturbation"),
    "a source twice in a sum": (
        rows("mini-fr-zf-07+mini-fr-zf-07"),
        "tables.mine: perturbation 'mini-fr-zf-07+mini-fr-zf-07': 'mini-fr-zf-07+mini-fr-zf-07' adds the same",
    ),
    "a draw too many": (rows("mini-fr-zf-07.permuted-4"), "tables.mine: perturbation 'mini-fr-zf-07.permuted-4': "),
    "a control of a control": (
        rows("mini-fr-zf-07.permuted-1.permuted"), "tables.mine: perturbation 'mini-fr-zf-07.permuted-1.permuted'",
    ),
    "a control of nothing": (rows("none.permuted"), "tables.mine: perturbation 'none.permuted'"),
    "a white-box table of a sum": (
        {"tables": {"mine": {"title": "", "description": "", "layout": "white-box", "image_set": "mini-test",
                             "sources": ["mini-fr-zf-07+mini-fr-vgg-07"]}}},
        "tables.mine: perturbation 'mini-fr-zf-07+mini-fr-vgg-07': only sources are shown here; name one",
    ),
    "a convergence of a sum": (
        figure(kind="convergence", sources=["mini-fr-zf-07+mini-fr-vgg-07"]),
        "figures.mine: perturbation 'mini-fr-zf-07+mini-fr-vgg-07'",
    ),
    "a convergence of nothing": (figure(kind="convergence", sources=["none"]), "figures.mine: perturbation 'none'"),
    "a density of a sum": (
        figure(kind="density", perturbations=["mini-fr-zf-07+mini-fr-vgg-07"], victims=["mini-fr-zf-07"]),
        "figures.mine: perturbation 'mini-fr-zf-07+mini-fr-vgg-07'",
    ),
    "a matrix with a control": (
        figure(kind="matrix", perturbations=["mini-fcn-vgg.permuted"], victims=["mini-fcn-vgg"]),
        "figures.mine: perturbation 'mini-fcn-vgg.permuted': only sources are shown here",
    ),
    "strengths of what is scaled": (
        figure(kind="strength", perturbations=["mini-fcn-vgg.p-2"], perceptibilities=[1], victims=["mini-fcn-vgg"]),
        "figures.mine: perturbation 'mini-fcn-vgg.p-2': the figure scales a source",
    ),
    "a key under its old name": (
        figure(kind="strength", perturbations=["mini-fcn-vgg"], strengths=[1], victims=["mini-fcn-vgg"]),
        "figures.mine.strengths: this key is called perceptibilities now; rename it",
    ),
    "the list of products under its old name": ({"targets": ["table1"]}, "targets: this key is called products now"),
    "strengths of a name that is none": (
        figure(kind="strength", perturbations=["FCN"], perceptibilities=[1], victims=["mini-fcn-vgg"]),
        "figures.mine: perturbation 'FCN': 'FCN' is not the name of a perturbation",
    ),
    "controls of a control": (
        figure(kind="intervals", perturbations=["mini-fcn-vgg.signs"], controls=["signs"], victims=["mini-fcn-vgg"]),
        "figures.mine: perturbation 'mini-fcn-vgg.signs': the figure adds the controls itself",
    ),
    "an unknown control": (
        figure(kind="intervals", perturbations=["mini-fcn-vgg"], controls=["noise"], victims=["mini-fcn-vgg"]),
        "figures.mine.controls.0: 'noise' is not one of",
    ),
    "classes without panels": (figure(kind="classes"), "figures.mine: 'panels' is a required property"),
    "an example of a mean": (
        panel("mini-fr-zf-07.permuted", "mini-fr-zf-07"),
        "figures.mine: perturbation 'mini-fr-zf-07.permuted'",
    ),
    "an example of nothing": (
        panel("none", "mini-fr-zf-07"),
        "figures.mine: perturbation 'none'",
    ),
    "a gallery of a mean": (
        figure(kind="gallery", perturbations=["mini-fr-zf-07.permuted"], victims=["mini-fr-zf-07"]),
        "figures.mine: perturbation 'mini-fr-zf-07.permuted'",
    ),
    "a gallery of nothing": (
        figure(kind="gallery", perturbations=["none"], victims=["mini-fr-zf-07"]),
        "figures.mine: perturbation 'none'",
    ),
    "a gallery without victims": (
        figure(kind="gallery", perturbations=["mini-fr-zf-07"]),
        "figures.mine: ",
    ),
    "a gallery that says twice who sees what": (
        figure(kind="gallery", perturbations=["mini-fr-zf-07"], victims=["mini-fr-zf-07"],
               panels=[{"perturbation": "mini-fr-zf-07", "victims": ["mini-fr-zf-07"]}]),
        "figures.mine: ",
    ),
    "a gallery of two image sets": (
        figure(kind="gallery", perturbations=["mini-fr-zf-07"], victims=["mini-fr-zf-07"],
               other_image_sets={"mini-fr-zf-07": "voc07-test"}),
        "figures.mine: a gallery shows one image set; make one gallery for each",
    ),
    "an unknown victim in a panel": (
        panel("mini-fr-zf-07", "fr"),
        "figures.mine.panels.0.victims.0: 'fr' is not in networks",
    ),
    "no images in examples": (
        panel("mini-fr-zf-07", "mini-fr-zf-07", images=0),
        "figures.mine.images: ",
    ),
    "named images that are to be chosen": (
        merge(panel("mini-fr-zf-07", "mini-fr-zf-07"), {"figures": {"mine": {"images": ["1"], "choose": "clean"}}}),
        "figures.mine: choose has no say in images that are named; give their number",
    ),
    "rows of several victims": (
        figure(kind="examples", images=1, arrangement="rows", panels=[
            {"perturbation": "mini-fr-zf-07", "victims": ["mini-fr-zf-07", "mini-fcn-alex"]}
        ]),
        "figures.mine: a panel of the arrangement rows has one victim, not 2; make a panel for each, or choose",
    ),
    "an unknown way to choose": (
        merge(panel("mini-fr-zf-07", "mini-fr-zf-07"), {"figures": {"mine": {"choose": "effect"}}}),
        "figures.mine.choose: 'effect' is not one of",
    ),
    "an order of what is no matrix": (
        merge(panel("mini-fr-zf-07", "mini-fr-zf-07"), {"figures": {"mine": {"order": "given"}}}),
        "figures.mine: order is for the rows and columns of a matrix; leave it out",
    ),
    "a lineage of a sum": (
        figure(kind="lineage", perturbations=["mini-fcn-alex+mini-fcn-vgg"], victims=["mini-fcn-alex"]),
        "figures.mine: perturbation 'mini-fcn-alex+mini-fcn-vgg': only what one network has made stands in a lineage",
    ),
    "a lineage of an ensemble": (
        figure(kind="lineage", perturbations=["mini-fcn-alex@x"], victims=["mini-fcn-alex"])
        | {"variants": {"x": {"ensemble": ["mini-fcn-vgg"]}}},
        "figures.mine: perturbation 'mini-fcn-alex@x': an ensemble has no lineage; name a source",
    ),
    "lineages without victims": (
        figure(kind="lineage", perturbations=["mini-fcn-alex"]), "figures.mine: give exactly one of"
    ),
    "lineages of two tasks": (
        figure(kind="lineage", perturbations=["mini-fcn-alex"], victims=["mini-fcn-alex", "mini-fr-zf-07"]),
        "figures.mine: losses of two tasks or image sets have no mean; make one figure for each",
    ),
    "an unknown parent": (
        {"networks": {"mini-fcn-alex": {"parent": "mini-fcn-alx"}}},
        "networks.mini-fcn-alex.parent: 'mini-fcn-alx' is not in networks; did you mean 'mini-fcn-alex'?",
    ),
    "a parent of another lineage": (
        {"networks": {"mini-fcn-alex": {"parent": "mini-fcn-vgg", "lineage": "alex"}}},
        "networks.mini-fcn-alex: parent 'mini-fcn-vgg' is of another lineage; give both the same",
    ),
    "shapes of an unknown network": (shaped(network="fcn"), "figures.mine.network: 'fcn' is not in networks"),
    "shapes of a detector": (
        shaped(network="mini-fr-zf-07"), "figures.mine: network 'mini-fr-zf-07' labels no pixels; name one for",
    ),
    "shapes on chosen images": (
        shaped(choose="clean"), "figures.mine: choose is for examples, whose victims have clean scores; leave it out",
    ),
    "an unknown shape": (
        shaped(shapes={"star": "bus"}),
        "figures.mine.shapes: unknown key 'star'; known keys are circle, square, strips",
    ),
    "a shape of background": (shaped(shapes={"circle": "background"}), "figures.mine: a shape cannot be 'background'"),
    "a shape of no class": (shaped(shapes={"circle": "plate"}), "figures.mine: 'plate' is none of the classes"),
    "a shape that is too large": (shaped(size=1.5), "figures.mine.size: 1.5 is greater than"),
    "shapes without limit": (
        shaped(attack={"step": 0.5, "stop": 0}), "figures.mine.attack: 'iterations' is a required property",
    ),
    "a network called none": (
        {"networks": {"none": BASE["networks"]["mini-fr-zf-07"]}}, "networks: ",
    ),
    "a network in capitals": ({"networks": {"FR": BASE["networks"]["mini-fr-zf-07"]}}, "networks: 'FR' does not match"),
    "a network without weights": (
        {"networks": {"fr": {"label": "", "task": "detection", "architecture": "a:b"}}}, "networks.fr: give exactly",
    ),
    "a network with two origins": (
        {"networks": {"mini-fr-zf-07": {"files": {"state_dict": "x.pt"}}}},
        "networks.mini-fr-zf-07: give exactly one of files and training",
    ),
    "an unknown task": ({"networks": {"mini-fr-zf-07": {"task": "depth"}}}, "networks.mini-fr-zf-07.task: 'depth' "),
    "an architecture without function": (
        {"networks": {"mini-fr-zf-07": {"architecture": "dag.networks.mini.fcn"}}},
        "networks.mini-fr-zf-07.architecture: ",
    ),
    "an unknown body": (
        {"networks": {"mini-fr-zf-07": {"training": {"body": "big"}}}},
        "networks.mini-fr-zf-07.training.body: 'big' is not in bodies",
    ),
    "bf16 on proposals": (
        rows("none", "mini-fr-zf-07@rough") | {"variants": {"rough": {"precision": "bf16"}}},
        "tables.mine: perturbation 'mini-fr-zf-07@rough': attack rough: precision bf16 is for segmentation",
    ),
    "a budget without a radius": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"objective": "ce", "budget": "linf"}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: eps is the radius of a budget; give both",
    ),
    "a radius without a budget": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"objective": "ce", "eps": 8}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: eps is the radius of a budget; give both",
    ),
    "auto-pgd without a loss": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"steps": "apgd", "budget": "linf", "eps": 8}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: apgd follows the value of a loss, and dag has none",
    ),
    "a random start without a ball": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"start": "uniform"}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: apgd, a uniform start and stages need a budget",
    ),
    "stages that do not add up": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"budget": "linf", "eps": 8, "stages": [[2, 0.5]]}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: the shares of the iterations in stages must add up",
    ),
    "balanced classes of proposals": (
        rows("none", "mini-fr-zf-07@apgd-mce-bal-8"),
        "tables.mine: perturbation 'mini-fr-zf-07@apgd-mce-bal-8': attack apgd-mce-bal-8: mce-bal weights pixels",
    ),
    "objectness of pixels": (
        rows("none", "mini-fcn-alex@vanishing-8"),
        "tables.mine: perturbation 'mini-fcn-alex@vanishing-8': attack vanishing-8: vanishing attacks the objectness",
    ),
    "objectness of images that move": (
        rows("none", "mini-fr-zf-07@x") | {"variants": {"x": {"objective": "vanishing", "diversity": 0.5}}},
        "tables.mine: perturbation 'mini-fr-zf-07@x': attack x: vanishing attacks the objectness of anchors, which",
    ),
    "the worst of attacks on other targets": (
        rows("none", "mini-fr-zf-07@x") | {"variants": {"x": {"worst_of": ["vanishing-8", "pgd-8"]}}},
        "tables.mine: perturbation 'mini-fr-zf-07@x': attack x: the attacks of worst_of have one set",
    ),
    "the worst of attacks with other starts": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"worst_of": ["apgd-mce-8", "pgd-8"]}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: the attacks of worst_of have one set",
    ),
    "the worst of attacks on more pixels": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"worst_of": ["dag-8", "mi-fgsm-8"]}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: the attacks of worst_of have one set",
    ),
    "the worst of attacks with other rules": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"worst_of": ["algorithm-1", "authors"]}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: the attacks of worst_of have one set",
    ),
    "the worst of attacks on other proposals": (
        rows("none", "mini-fr-zf-07@x") | {"variants": {"x": {"worst_of": ["nms-50", "nms-70"]}}},
        "tables.mine: perturbation 'mini-fr-zf-07@x': attack x: the attacks of worst_of have one set",
    ),
    "the worst of budgets": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"worst_of": ["dag-4", "dag-8"]}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: the attacks of worst_of have one set",
    ),
    "settings beside worst_of": (
        rows("none", "mini-fcn-alex@x")
        | {"variants": {"x": {"worst_of": ["apgd-mce-8", "apgd-js-8"], "budget": "linf", "eps": 2}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: worst_of takes the settings of its members",
    ),
    "the worst of an ensemble": (
        rows("none", "mini-fcn-alex@x")
        | {"variants": {"y": {"ensemble": ["mini-fcn-vgg"]}, "x": {"worst_of": ["y", "algorithm-1"]}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: an ensemble is no member of worst_of; leave it out",
    ),
    "background with no label to go to": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"targets": "all"}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: background has no other label to go to",
    ),
    "a loss that changes, by its value": (
        rows("none", "mini-fcn-alex@x")
        | {"variants": {"x": {"objective": "tsallis", "steps": "apgd", "budget": "linf", "eps": 8}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: apgd compares values of one loss, and tsallis changes",
    ),
    "strength of pixels": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"options": {"strength": [0.35, 0.8]}}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: strength is the 0.8 rule, about proposals",
    ),
    "a kernel of one pixel": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"smooth": 1}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: smooth is the size of a kernel with a centre",
    ),
    "stages without an iteration": (
        rows("none", "mini-fcn-alex@x")
        | {"variants": {"x": {"budget": "linf", "eps": 8, "stages": [[2, 0.3], [1, 0.7]], "iterations": 1}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': attack x: 1 iterations are too few for 2 stages; give more",
    ),
    "the worst of the worst": (
        rows("none", "mini-fcn-alex@x") | {"variants": {"x": {"worst_of": ["sea-8", "pgd-8"]}}},
        "tables.mine: perturbation 'mini-fcn-alex@x': variant 'x' is the worst of 'sea-8', which is itself one",
    ),
    "an unknown recipe": (trained(recipe="fcn"), "networks.fcn-alex-star.training.recipe: 'fcn' is not in recipes"),
    "a recipe for the other task": (
        trained(recipe="rfcn"), "networks.fcn-alex-star: recipe 'rfcn' is for detection, the network for segmentation",
    ),
    "unknown training images": (
        trained(image_set="voc"), "networks.fcn-alex-star.training.image_set: 'voc' is not in image_sets",
    ),
    "unknown initial weights": (
        trained(initial="x.caffemodel"),
        "networks.fcn-alex-star: initial weights 'x.caffemodel' are not in downloads",
    ),
    "an initial network that is not trained": (
        trained(initial={"network": "mini-fcn-vgg"}),
        "networks.fcn-alex-star: initial network 'mini-fcn-vgg' is not a network that a recipe trains",
    ),
    "stages in a circle": (
        {"networks": {"fcn32s-vgg-star": {"training": {"initial": {"network": "fcn-vgg-star"}}}}},
        "networks.fcn32s-vgg-star: it starts from 'fcn32s-vgg-star', which starts from it; name a file for one",
    ),
    "a training of both kinds": (
        trained(body="mini-vgg"),
        "networks.fcn-alex-star.training: unknown key 'body'; known keys are image_set, initial, recipe",
    ),
    "a schedule without its step": (
        {"recipes": {"rfcn": {"schedule": {"kind": "poly"}}}}, "recipes.rfcn.schedule: 'power' is a required property",
    ),
    "a rate that YAML takes for a text": (
        {"recipes": {"rfcn": {"rate": "1e-3"}}}, "recipes.rfcn.rate: '1e-3' is not of type 'number'",
    ),
    "a key of the other task in a recipe": ({"recipes": {"rfcn": {"crop": 321}}}, "recipes.rfcn: "),
    "an unknown file": (
        {"networks": {"fr": {"label": "", "task": "detection", "architecture": "a:b", "files": {"w": "x.zip"}}}},
        "networks.fr: file 'x.zip' is not in downloads",
    ),
    "a malformed digest": ({"image_sets": {"mini-test": {"sha256": "abc"}}}, "image_sets.mini-test.sha256: 'abc' "),
    "a list with an unknown folder": (
        {"image_sets": {"x": {"parts": [{"root": "a", "list": "{VOC}/b"}], "size": 1}}},
        "image_sets.x.parts.0.list: '{VOC}/b' does not match",
    ),
    "a training set for a table": (
        merge(table(image_set="x"),
              {"image_sets": {"x": {"parts": [{"root": "a", "list": "b"}], "size": 1, "repeated": True}}}),
        "tables.mine: image set 'x' may list an image twice; it is for training alone",
    ),
    "a file from nowhere": ({"downloads": {"x": {"size": 1}}}, "downloads.x: give exactly one of urls and archive"),
    "a file from two places": (
        {"downloads": {"x": {"urls": ["a"], "archive": "b", "member": "c"}}},
        "downloads.x: give exactly one of urls and archive",
    ),
    "an archive without member": (
        {"downloads": {"x": {"archive": "b"}}}, "downloads.x: 'member' is a dependency of 'archive'",
    ),
    "an unknown archive": (
        {"downloads": {"x": {"archive": "b", "member": "c"}}},
        "downloads.x: archive 'b' is not an entry of downloads with urls",
    ),
    "a member of a member": (
        {"downloads": {"x": {"archive": "y", "member": "c"}, "y": {"archive": "x", "member": "c"}}},
        "downloads.x: archive 'y' is not an entry of downloads with urls",
    ),
    "a short beginning of a checksum": (
        {"downloads": {"x": {"urls": ["a"], "sha256_prefix": "abc"}}}, "downloads.x.sha256_prefix: 'abc' does not",
    ),
    "an image set without list": (
        {"image_sets": {"x": {"parts": [{"root": "a"}]}}}, "image_sets.x: format voc needs a `list`, the file",
    ),
    "label maps of another format": (
        {"image_sets": {"x": {"format": "images", "parts": [{"root": "a", "masks": "b"}]}}},
        "image_sets.x: `masks` is the folder of label maps of every part of format masks, and of no other",
    ),
    "label maps for a detector": (
        {
            "image_sets": {"x": {"format": "masks", "parts": [{"root": "a", "masks": "b"}]}},
            "tables": {"table2": {"image_set": "x"}},
        },
        "tables.table2: network 'mini-fr-zf-07' detects objects, and image set 'x' has label maps alone; give it one",
    ),
    "pixels of no truth": (
        {
            "image_sets": {"x": {"format": "images", "parts": [{"root": "a"}]}},
            "tables": {"table1": {"image_set": "x", "sources": ["mini-fcn-vgg@apgd-mce-bal-8"]}},
        },
        "tables.table1: source 'mini-fcn-vgg@apgd-mce-bal-8' weighs classes by their pixels in the truth, and",
    ),
    "one class and absent ones": (
        {"classes": {"mine": {"names": ["bird"]}}, "networks": {"mini-fr-zf-07": {"classes": "mine"}}},
        "tables.table1: perturbation 'mini-fr-zf-07': attack detection: adversarial labels are absent classes, and",
    ),
    "a shape on nothing": (
        {"networks": {"mini-fcn-alex": {"classes": "camvid"}}}
        | shaped(network="mini-fcn-alex", shapes={"circle": "car"}),
        "figures.mine: network 'mini-fcn-alex' has no background; name the class around the shapes by ground",
    ),
    "classes that nobody has listed": (
        {"networks": {"mini-fcn-vgg": {"classes": "vox"}}},
        "networks.mini-fcn-vgg.classes: 'vox' is not in classes; did you mean 'voc'?",
    ),
    "a class twice": (
        {"classes": {"mine": {"names": ["sofa", "couch"]}}}, "classes.mine: 'sofa' and 'couch' mean the same class",
    ),
    "nothing in common": (
        {"classes": {"mine": {"names": ["plate"]}}, "networks": {"mini-fcn-vgg": {"classes": "mine"}}},
        "tables.table1: network 'mini-fcn-vgg' on image set 'mini-test': they have no class in common: the network",
    ),
    "one name for a table and a figure": (
        {"figures": {"table1": BASE["figures"]["figure4"]}}, "figures.table1: a table has this name as well",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_sentence_that_names_the_place(mistake):
    overlay, start = MISTAKES[mistake]
    assert message(changed(overlay)).startswith(f"configuration, {start}")


@pytest.mark.parametrize(
    ("overlay", "end"),
    [
        (table(victims=["mini-fr-fz-07"]), "'mini-fr-fz-07' is not in networks; did you mean 'mini-fr-zf-07'?"),
        (rows("mini-fcn-vg"), "network 'mini-fcn-vg' is not in networks; did you mean 'mini-fcn-vgg'?"),
        (rows("mini-fr-zf-07@nms-51"), "variant 'nms-51' is not in variants; did you mean 'nms-50'?"),
        ({"products": ["tabel1"]}, "'tabel1' is not in tables or figures; did you mean 'table1'?"),
        ({"permutation": 3}, "; did you mean 'permutations'?"),
        (table(image_sets="mini-test"), "; did you mean 'image_set'?"),
    ],
)
def test_a_slip_of_the_pen_is_guessed(overlay, end):
    assert message(changed(overlay)).endswith(end)


# Before a GPU does


def own(architecture: str) -> dict:
    return changed({"networks": {"mini-fcn-vgg": {"architecture": architecture}}})


def test_an_architecture_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = "configuration, networks.mini-fcn-vgg: there is no"
    Path("mine.py").write_text(
        "import torch as t\nfrom dag.networks.mini import fcn\n\n\ndef build():\n    inner = 1\n\n\n"
        "if t:\n    chosen = build\n"
    )
    for name in ("build", "fcn", "chosen"):
        configuration.check(own(f"mine.py:{name}"), SCHEMA)
    assert message(own("mine.py:biuld")) == f"{place} biuld in mine.py; did you mean 'build'?"
    assert message(own("mine.py:alias")) == f"{place} alias in mine.py"
    assert message(own("own/nope.py:build")) == f"{place} own/nope.py in {tmp_path}"
    assert message(own("dag.networks.mini.fnc:fcn")) == f"{place} dag.networks.mini.fnc in the project"
    assert message(own("dag.networks.mini.fcn:fcnn")).startswith(f"{place} fcnn in dag.networks.mini.fcn; did you mean")
    assert message(own("nosuchpackage.models:build")) == f"{place} package 'nosuchpackage'; install it"
    configuration.check(own("numpy.linalg:norm"), SCHEMA)  # installed: not imported for that
    Path("mine.py").write_text("def build(:\n")
    assert message(own("mine.py:build")).startswith("configuration, networks.mini-fcn-vgg: mine.py is not Python (")


def test_an_attack_of_ones_own_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overlay = rows("none", "mini-fcn-vgg@own") | {"variants": {"own": {"function": "own/attack.py:attack"}}}
    assert message(changed(overlay)) == (
        "configuration, tables.mine: perturbation 'mini-fcn-vgg@own': there is no own/attack.py in " + str(tmp_path)
    )
    Path("own").mkdir()
    Path("own/attack.py").write_text("def attack(f, image, target, settings, rng):\n    return image\n")
    configuration.check(changed(overlay), SCHEMA)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fcn:fcn", "mini.fcn:fcn"),
        ("deeplab:deeplab", "mini.deeplab:deeplab"),
        ("faster_rcnn:faster_rcnn", "mini.faster_rcnn:faster_rcnn"),
        ("rfcn:rfcn", "mini.rfcn:rfcn"),
        ("fcn_caffe:fcn_alexnet", "caffe.fcn:fcn_alexnet"),
        ("fcn_caffe:fcn8s_vgg16", "caffe.fcn:fcn8s_vgg16"),
        ("deeplab_caffe:deeplab_resnet101", "caffe.deeplab:deeplab_resnet101"),
        ("faster_rcnn_caffe:faster_rcnn", "caffe.faster_rcnn:faster_rcnn"),
        ("rfcn_caffe:rfcn", "caffe.rfcn:rfcn"),
    ],
)
def test_an_architecture_that_has_moved(old, new):
    text = message(own(f"dag.networks.{old}"))
    assert text.endswith(f"dag.networks.{old.partition(':')[0]} has moved; write dag.networks.{new}")
    configuration.check(own(text.rpartition("write ")[2]), SCHEMA)


def test_a_folder_of_weights_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    configuration.check(changed({"weights": "~/mine"}), SCHEMA)
    assert message(changed({"weights": "~/other"})) == (
        "configuration, weights: ~/other is not a folder; name one, or leave it out"
    )


# One experiment under one name

DEFAULTS = layers.defaults(ROOT / "config")


def test_the_layers_are_merged_as_snakemake_does():
    assert DEFAULTS == BASE
    for name in OVERLAYS:
        overlay = yaml.safe_load((ROOT / "config" / name).read_text())
        assert layers.merged(BASE, overlay) == merge(BASE, overlay)


@pytest.mark.parametrize(
    "layer",
    [
        {"seed": 7},
        {"attacks": {"segmentation": {"iterations": 9}}},
        {"attacks": {"detection": {"options": {"stop": 0.1}}}},  # an addition that changes numbers
        {"variants": {"authors": {"rules": "algorithm-1"}}},
        {"networks": {"fcn-vgg": {"files": None}}},
        {"networks": {"mini-fcn-vgg": {"arguments": {"width": 9}}}},
        {"image_sets": {"mini-test": {"size": 9}}},
        {"bodies": {"mini-zf": {"rate": 1}}},
        {"permutations": 1},
    ],
)
def test_another_experiment_needs_a_name(layer):
    with pytest.raises(ValueError, match="results would replace those of 'mini'; give it a name beside") as caught:
        layers.check_experiment(DEFAULTS, {}, layer)
    (key,) = layer
    assert str(caught.value).startswith(f"configuration, {key}") and "experiment=mini-2" in str(caught.value)
    # the advice, followed; and replaced on purpose
    layers.check_experiment(DEFAULTS, layer | {"experiment": "mini-2"})
    layers.check_experiment(DEFAULTS, layer | {"experiment": "mini"})
    # an experiment with a name of its own is guarded as well
    with pytest.raises(ValueError, match="those of 'mine'"):
        layers.check_experiment(DEFAULTS, {"experiment": "mine"}, layer)


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"seed": 2017, "voc": "/data", "weights": "/w", "given_up": ["mini-test/0000"], "gpu": "assumed"},
        {"products": ["table1"], "pixels": ["float"], "shard_size": 5, "title": "x"},
        rows("none"),
        figure(kind="convergence", sources=["mini-fcn-vgg"]),
        {"variants": {"mine": {"step": 1}}, "networks": {"mine": {"label": "x", "task": "detection"}}},
        {"networks": {"mini-fcn-vgg": {"label": "x", "cost": {"mem_mb": 1}}}},
        {"downloads": {"x": {"urls": ["u"]}}},
    ],
)
def test_what_is_added_or_decides_no_number_belongs_to_the_same_experiment(layer):
    layers.check_experiment(DEFAULTS, layer)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_overlays_of_the_project_name_their_experiments(name):
    layers.check_experiment(DEFAULTS, yaml.safe_load((ROOT / "config" / name).read_text()))


def test_networks_of_another_seed_are_kept_apart():
    assert BASE["seed"] == paths.SEED
    assert paths.weights(BASE, "mini-fcn-vgg") == {"state_dict": "resources/weights/mini-fcn-vgg.pt"}
    assert paths.weights(BASE | {"seed": 7}, "mini-fcn-vgg") == {
        "state_dict": "resources/weights/seed-7/mini-fcn-vgg.pt"
    }
    assert jobs.training_inputs(BASE | {"seed": 7}, "mini-fcn-vgg")["body"].startswith(
        "resources/weights/seed-7/bodies"
    )


@pytest.mark.parametrize("name", ["seed", "tables", "figures", "networks", "image_sets", "attacks"])
def test_a_missing_key_is_named(name):
    config = {key: value for key, value in BASE.items() if key != name}
    assert message(config) == f"configuration, top level: '{name}' is a required property"


# Image sets


def image_list(folder: Path, ids: str) -> list[dict]:
    (folder / "ImageSets").mkdir(exist_ok=True)
    path = folder / "ImageSets" / "test.txt"
    path.write_text(ids)
    return [{"root": str(folder), "list": str(path)}]


def test_an_image_set_must_have_its_size_and_ids(tmp_path):
    parts = image_list(tmp_path, "b\na\n\nc\n")
    expected = [(tmp_path, "b"), (tmp_path, "a"), (tmp_path, "c")]
    assert image_sets.read_image_set(parts, 3) == expected
    digest = "0" * 64
    right = image_sets.digest(["c", "a", "b"])
    assert image_sets.read_image_set(parts, 3, right) == expected
    with pytest.raises(ValueError, match="^image set mine: 3 images in .*test.txt, expected 4; unpack the data again"):
        image_sets.read_image_set(parts, 4, name="mine")
    with pytest.raises(
        ValueError, match=f"^image set: the ids in .*test.txt have SHA-256 {right}, expected {digest}; "
    ):
        image_sets.read_image_set(parts, 3, digest)
    with pytest.raises(ValueError, match="image set: an image id appears twice in .*test.txt; list every image once"):
        image_sets.read_image_set(parts + parts, 6)
    with pytest.raises(ValueError, match="nowhere/x.txt: no such image list"):
        image_sets.read_image_set([{"root": "nowhere", "list": "nowhere/x.txt"}], 3)


def test_a_training_set_may_hold_an_image_with_two_annotations(tmp_path):
    for folder in ("VOC2012", "SBD"):
        (tmp_path / folder).mkdir()
    parts = image_list(tmp_path / "VOC2012", "a\nb\n") + image_list(tmp_path / "SBD", "b\nc\n")
    both = [(tmp_path / "VOC2012", "a"), (tmp_path / "VOC2012", "b"), (tmp_path / "SBD", "b"), (tmp_path / "SBD", "c")]
    assert image_sets.read_image_set(parts, 4, image_sets.digest("abc"), repeated=True) == both
    with pytest.raises(ValueError, match="image id appears twice"):
        image_sets.read_image_set(parts, 4)
    with pytest.raises(ValueError, match="image id appears twice"):
        image_sets.read_image_set(parts + parts[:1], 6, repeated=True)


def test_the_digest_of_ids_is_that_of_their_sorted_lines():
    import hashlib

    assert image_sets.digest(["b", "a", "b"]) == hashlib.sha256(b"a\nb\n").hexdigest()


def test_a_folder_of_the_user_gives_the_size(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        (tmp_path / year).mkdir()
        image_list(tmp_path / year, "1\n2\n")

    def part(year):
        return {"root": f"{{voc}}/{year}", "list": f"{{voc}}/{year}/ImageSets/test.txt"}

    entry = {"size": 4952, "sha256": "0" * 64}
    config = changed(
        {
            "voc": str(tmp_path),
            "image_sets": {
                "mine": entry | {"parts": [part("VOC2007"), part("VOC2012")]},
                "unused": entry | {"parts": [part("VOC2010")]},
                "training": entry | {"parts": [part("VOC2007")]},
                "derived": entry | {"parts": [part("VOC2012"), part("VOC2012") | {"list": "resources/derived.txt"}]},
            },
            "products": ["mine"],
        }
        | rows("none", "mini-fr-zf-07")
    )
    config["tables"]["mine"]["image_set"] = "mine"
    configuration.check(config, SCHEMA)
    local = configuration.with_local_voc(config)
    assert local["image_sets"]["mine"]["size"] == 4 and local["image_sets"]["mine"]["sha256"] is None
    # what no table needs may be missing; derived lists, the miniature and the original stay
    assert local["image_sets"]["unused"]["size"] == 4952
    assert local["image_sets"]["training"]["size"] == 2 and local["image_sets"]["training"]["sha256"] is None
    assert local["image_sets"]["derived"] == config["image_sets"]["derived"]
    assert local["image_sets"]["mini-test"] == BASE["image_sets"]["mini-test"]
    assert config["image_sets"]["mine"]["size"] == 4952
    assert configuration.with_local_voc(config | {"voc": None})["image_sets"]["mine"]["size"] == 4952
    with pytest.raises(ValueError, match="configuration, voc: absent is not a folder; name the one that holds"):
        configuration.with_local_voc(config | {"voc": "absent"})
    (tmp_path / "VOC2012/ImageSets/test.txt").unlink()
    with pytest.raises(ValueError, match="VOC2012/ImageSets/test.txt: no such image list"):
        configuration.with_local_voc(config)
    # a table of clean images alone needs its images too
    with pytest.raises(ValueError, match="VOC2012/ImageSets/test.txt: no such image list"):
        configuration.with_local_voc(merge(config, {"tables": {"mine": {"perturbations": ["none"]}}}))


def test_a_folder_of_the_user_may_be_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    assert configuration.with_local_voc(BASE | {"voc": "~/data"})["voc"] == str(tmp_path / "data")


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        ("own/l.txt", b"a\nb\n", None),
        ("own/l.txt", b"a\nb 1\n", "own/l.txt, line 2: 'b 1' is not an image id"),
        ("own/l.txt", "a\nb\n".encode("utf-16"), "own/l.txt: the image list is not UTF-8 text"),
        ("own/l.txt", b"a\n", "image set mini-test: 1 images in own/l.txt, expected 2"),
        ("own/l.txt", b"a\na\n", "image set mini-test: an image id appears twice in own/l.txt"),
        # rules make these, and may be about to make another one
        ("resources/l.txt", b"a\n", None),
        ("resources/l.txt", b"../a\n", "resources/l.txt, line 1: '../a' is not an image id"),
        (None, b"", None),
    ],
)
def test_lists_are_read_when_jobs_are_planned(tmp_path, monkeypatch, place, content, message):
    monkeypatch.chdir(tmp_path)
    if place:
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(content)
    config = changed({"image_sets": {"mini-test": {"size": 2}}})
    config["image_sets"]["mini-test"]["parts"] = [{"root": "own", "list": place or "own/l.txt"}]
    if message is None:
        configuration.check_lists(config)
    else:
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            configuration.check_lists(config)


# What follows from a configuration


def test_overlays_merge_mappings_and_replace_lists():
    """What the comments in config/ promise of Snakemake."""
    base = {"a": {"b": 1, "c": [1, 2], "d": {"e": 5}}, "f": 2, "h": {"i": 1}}
    overlay = {"a": {"c": [3], "d": {"x": 6}}, "h": None, "z": 9}
    assert merge(base, overlay) == {"a": {"b": 1, "c": [3], "d": {"e": 5, "x": 6}}, "f": 2, "h": None, "z": 9}


WHITE_BOX = {"layout": "white-box", "image_set": "s", "sources": ["a", "b@v"]}
TRANSFER = {
    "layout": "transfer",
    "image_set": "s",
    "perturbations": ["none", "a", "a+b.permuted"],
    "victims": ["b", "c"],
}
EXAMPLES = {
    "kind": "examples",
    "image_set": "s",
    "images": 1,
    "panels": [{"perturbation": "a+b", "victims": ["a", "c"]}, {"perturbation": "b", "victims": ["a"]}],
}
CONVERGENCE = {"kind": "convergence", "image_set": "s", "sources": ["a", "a@v"]}


def test_rows_and_victims():
    assert plan.rows(WHITE_BOX) == ["none", "a", "a.permuted", "b@v", "b@v.permuted"]
    assert plan.victims(WHITE_BOX) == ["a", "b"]
    assert plan.rows(TRANSFER) == ["none", "a", "a+b.permuted"] and plan.victims(TRANSFER) == ["b", "c"]
    assert plan.rows(EXAMPLES) == ["a+b", "b"] and plan.victims(EXAMPLES) == ["a", "c"]
    assert plan.rows(CONVERGENCE) == ["a", "a@v"] and plan.victims(CONVERGENCE) == []


def test_pairs():
    assert list(plan.pairs(WHITE_BOX)) == [
        ("none", "a"), ("a", "a"), ("a.permuted", "a"), ("none", "b"), ("b@v", "b"), ("b@v.permuted", "b")
    ]  # fmt: skip
    assert set(plan.pairs(TRANSFER)) == {(row, victim) for row in TRANSFER["perturbations"] for victim in "bc"}
    assert len(list(plan.pairs(TRANSFER))) == 6
    assert list(plan.pairs(EXAMPLES)) == [
        ("none", "a"), ("a+b", "a"), ("none", "c"), ("a+b", "c"), ("none", "a"), ("b", "a")
    ]  # fmt: skip
    assert list(plan.pairs(CONVERGENCE)) == []


STRENGTH = {"perturbations": ["a", "a+b.signs"], "perceptibilities": [2, 8], "victims": ["c"], "image_set": "s"}
INTERVALS = {"perturbations": ["a"], "controls": ["permuted", "gaussian"], "victims": ["b", "c"], "image_set": "s"}


def test_what_figures_make_of_their_perturbations():
    assert plan.rows(STRENGTH) == ["a", "a+b.signs", "a.p-2", "a.p-8", "a+b.p-2.signs", "a+b.p-8.signs"]
    assert plan.bases(STRENGTH)["a+b.p-8.signs"] == "a+b.signs" and plan.bases(STRENGTH)["a"] == "a"
    assert plan.shown_pairs(STRENGTH) == [(row, "c") for row in plan.rows(STRENGTH)]
    assert plan.cells(STRENGTH, "s", 1)["c"][-1] == "a+b.p-8.signs-1"
    # controls are scored, the figure shows differences from them
    assert plan.rows(INTERVALS) == ["a", "a.permuted", "a.gaussian"]
    assert plan.shown_pairs(INTERVALS) == [("a", "b"), ("a", "c")]
    assert plan.shown_pairs(EXAMPLES) == [("a+b", "a"), ("a+b", "c"), ("b", "a")]
    assert plan.source_sets(INTERVALS) == [("a", "s")]


def test_cells():
    # no victim sees the perturbation of another network in a white-box table
    assert plan.cells(WHITE_BOX, "s", 2) == {
        "a": ["none", "a", "a.permuted-1", "a.permuted-2"],
        "b": ["none", "b@v", "b@v.permuted-1", "b@v.permuted-2"],
    }
    assert plan.cells(TRANSFER, "s", 1) == {name: ["none", "a", "a+b.permuted-1"] for name in "bc"}
    assert plan.cells(EXAMPLES, "s", 3) == {"a": ["none", "a+b", "b"], "c": ["none", "a+b"]}
    assert plan.cells(CONVERGENCE, "s", 3) == {}
    # the clean image comes first even where no row asks for it
    assert plan.cells(TRANSFER | {"perturbations": ["a"]}, "s", 3) == {"b": ["none", "a"], "c": ["none", "a"]}


def test_who_sees_what():
    assert plan.shown(EXAMPLES) == {"a+b": ["a", "c"], "b": ["a"]}
    assert plan.shown({"perturbations": ["a+b", "c"], "victims": ["c", "a"]}) == {"a+b": ["c", "a"], "c": ["c", "a"]}


def test_draws():
    assert plan.draws("a+b.permuted", 3) == ["a+b.permuted-1", "a+b.permuted-2", "a+b.permuted-3"]
    assert plan.draws("a.permuted-2", 3) == ["a.permuted-2"] and plan.draws("none", 3) == ["none"]


def test_a_white_box_table_may_repeat_its_attacks():
    entry = {"title": "", "description": "", "layout": "white-box", "image_set": "mini-test", "draws": 3}
    entry |= {"sources": ["mini-fcn-vgg", "mini-fcn-vgg@authors"]}
    config = changed({"tables": {"mine": entry}, "products": ["mine"]})
    configuration.check(config, SCHEMA)
    draws = ["mini-fcn-vgg", "mini-fcn-vgg.drawn-2", "mini-fcn-vgg.drawn-3"]
    assert plan.repeated(entry)["mini-fcn-vgg"]["mini-fcn-vgg"] == draws
    seen = plan.cells(entry, "mini-test", 1)
    assert seen["mini-fcn-vgg"][:4] == ["none", *draws] and "mini-fcn-vgg@authors.drawn-3" in seen["mini-fcn-vgg"]
    # the first draw is the source itself, with its settings and its records
    assert plan.attack(config, draws[2]) == plan.attack(config, draws[0]) | {"draw": 3}
    assert plan.all_source_sets(config) == [("mini-fcn-vgg", "mini-test"), ("mini-fcn-vgg@authors", "mini-test")]
    assert plan.further_draws(config) == [
        (f"{source}.drawn-{draw}", "mini-test") for source in entry["sources"] for draw in (2, 3)
    ]
    assert plan.network_of("mini-fcn-vgg@authors.drawn-3") == plan.network_of("mini-fcn-vgg.drawn-3") == "mini-fcn-vgg"
    says = "draws are asked for by a white-box table, `draws: 3`; name the source alone"
    assert says in message(changed(rows("mini-fcn-vgg.drawn-2")))
    assert "unknown key 'draws'" in message(changed(table(draws=3)))


@pytest.mark.parametrize(("size", "shard_size", "count"), [(60, 100, 1), (100, 100, 1), (101, 100, 2), (4952, 100, 50)])
def test_shards(size, shard_size, count):
    config = {"image_sets": {"s": {"size": size}}, "shard_size": shard_size, "given_up": []}
    names = plan.shards(config, "s")
    assert len(names) == count and names[0] == "0000" and names[-1] == f"{count - 1:04d}"
    images = [(Path("root"), str(number)) for number in range(size)]
    slices = [image_sets.shard_of(images, name, shard_size) for name in names]
    assert [image for part in slices for image in part] == images and all(slices)


def test_shards_given_up():
    config = {"image_sets": {"s": {"size": 5}, "t": {"size": 3}}, "shard_size": 2, "given_up": ["s/0001", "t/0000"]}
    assert plan.shards(config, "s") == ["0000", "0002"] and plan.given_up(config, "s") == ["0001"]
    assert plan.shards(config, "t") == ["0001"] and plan.given_up(config, "t") == ["0000"]
    images = [(Path("root"), name) for name in "abcde"]
    assert [name for _, name in image_sets.without_shards(images, ["0001"], 2)] == ["a", "b", "e"]
    assert image_sets.without_shards(images, [], 2) == images


ERRORS = """
Error in rule perturb:
    message: None
    jobid: 16
    input: resources/weights/a.pt, resources/mini/test/ImageSets/Main/test.txt
    output: results/e/voc-test/perturbations/a@b/0001.h5
    log: logs/perturb/e/voc-test/a/0001.txt (check log file(s) for error details)

Error in rule train:
    output: resources/weights/c.pt
    log: logs/train/c.txt (check log file(s) for error details)

Error in rule predict:
    jobid: 3
    output: results/e/cells/table2/other/0012.json
    log: logs/predict/e/table2/other/0012.txt (check log file(s) for error details)

Error in rule perturb:
    output: results/e/voc-test/perturbations/c/0002.h5
    log: logs/perturb/e/voc-test/c/0002.txt (check log file(s) for error details)
"""
SIZES = {"image_sets": {"voc-test": {"size": 3}, "other": {"size": 13}}, "shard_size": 1}


def offered(config: dict, **logs: str) -> str:
    """What the advice offers to give up, from the last lines of the logs of jobs, by shard."""
    said = {name.removeprefix("s"): f"Error: x\n{text}\n" for name, text in logs.items()}
    text = plan.advice(ERRORS, SIZES | config, lambda path: said[Path(path).stem])
    assert text.startswith("Jobs have failed") and "start the same command again" in text
    return text.partition("--config ")[2]


def test_the_advice_gives_up_the_shards_whose_images_cannot_be_used():
    """From what Snakemake 9 logs; only `perturb` and `predict` make shards."""
    image, full = plan.OF_ONE_IMAGE, ""
    none = {"given_up": []}
    assert offered(none, s0001=image, s0012=image, s0002=full) == "'given_up=[voc-test/0001, other/0012]'"
    assert offered({"given_up": ["voc-test/0000"]}, s0001=image, s0012=full, s0002=full) == (
        "'given_up=[voc-test/0000, voc-test/0001]'"
    )
    # a job that reads the whole image set names the shard
    checked = ERRORS.replace("perturb:", "check_images:").replace("a@b/0001.h5", "checked/image.txt")
    text = plan.advice(checked, SIZES | none, lambda path: f"{image} voc-test/0002\n" if "0001" in path else "")
    assert text.endswith("'given_up=[voc-test/0002]'")
    # a full disk, a lock: no image is to blame
    assert offered(none, s0001=full, s0012=full, s0002=full) == ""
    # and nothing is offered that would leave no image
    given_up = {"given_up": ["voc-test/0000"]}
    assert offered(given_up, s0001=image, s0012=full, s0002=image) == ""


def test_the_attack_of_a_source():
    attack = plan.attack(BASE, "mini-fr-zf-07")
    assert attack == BASE["attacks"]["detection"] and attack["rules"] == "authors"
    assert plan.attack(BASE, "mini-fr-zf-07@nms-50") == attack | {"nms": 0.5}
    assert plan.attack(BASE, "mini-fcn-vgg") == BASE["attacks"]["segmentation"]
    assert plan.network_of("a@b") == plan.network_of("a") == "a"


def test_the_sources_of_the_default():
    """The paper has eight sources; the tables and figures of controls add theirs."""
    table1 = BASE["tables"]["table1"]
    assert plan.source_sets(table1) == [(source, "mini-test") for source in table1["sources"]]
    assert len({plan.network_of(source) for source in table1["sources"]}) == 8
    table2 = {source for source, _ in plan.source_sets(BASE["tables"]["table2"])}
    assert table2 == {"mini-fr-zf-07", "mini-fr-zf-0712", "mini-fr-vgg-07", "mini-fr-vgg-0712"}
    assert {pair for name in BASE["products"] for pair in plan.source_sets(plan.products(BASE)[name])} == set(
        plan.all_source_sets(BASE)
    )


# The digest of the code


def package(folder: Path, **modules: str) -> Path:
    for name, text in modules.items():
        path = folder / "dag" / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    digests.outline.cache_clear()
    return folder


MODULES = {
    "top": '"""Doc."""\n\nimport numpy\nfrom dag import low\nfrom dag.deep.inner import f\n\n\n'
           'def g(x):\n    """Doc."""\n    return f(x) + low.h(x)\n',
    "low": "from dag import bottom\n\n\nclass A:\n    def h(self):\n        return 1\n",
    "bottom": "VALUE = 1\n",
    "deep.inner": "import dag.other\n\n\ndef f(x):\n    return x\n",
    "other": "def late():\n    import dag.lazy\n",
    "lazy": "X = 1\n",
    "unused": "Y = 1\n",
}  # fmt: skip


def digest(folder: Path, **changes: str) -> str:
    return digests.code_digest(package(folder, **MODULES | changes), "dag.top")


def test_comments_docstrings_and_layout_do_not_count(tmp_path):
    base = digest(tmp_path)
    assert len(base) == 16 and digest(tmp_path) == base
    assert digest(tmp_path, bottom="# a comment\nVALUE = (\n    1\n)\n\n\n") == base
    assert digest(tmp_path, bottom='"""A docstring\nof two lines."""\n\nVALUE = 1  # one\n') == base
    assert digest(tmp_path, top=MODULES["top"].replace("Doc.", "Other words.")) == base
    assert digest(tmp_path, low=MODULES["low"].replace("class A:\n", 'class A:\n    """New."""\n\n')) == base
    assert digest(tmp_path, unused="Y = 2\n") == base


@pytest.mark.parametrize("name", ["low", "bottom", "deep.inner", "other", "lazy"])
def test_code_of_every_imported_module_counts(tmp_path, name):
    base = digest(tmp_path)
    assert digest(tmp_path, **{name: MODULES[name] + "\nZ = 3\n"}) != base
    assert digest(tmp_path) == base


def test_a_string_that_is_no_docstring_counts(tmp_path):
    assert digest(tmp_path, bottom="VALUE = 'a'\n") != digest(tmp_path, bottom="VALUE = 'b'\n")


def test_an_architecture_outside_the_package_counts(tmp_path):
    mine = tmp_path / "mine.py"
    found = []
    for text in ("from dag import bottom\nA = 1\n", "from dag import bottom\nA = 2\n"):
        mine.write_text(text)
        package(tmp_path, **MODULES)
        found.append(digests.code_digest(tmp_path, f"{mine}:make"))
    package(tmp_path, bottom="VALUE = 2\n")
    found.append(digests.code_digest(tmp_path, f"{mine}:make"))
    assert len(set(found)) == 3
    # an installed package is known by its version
    assert digests.code_digest(tmp_path, "numpy.linalg:norm") == digests.code_digest(tmp_path)


def test_the_digest_of_the_project_covers_what_the_jobs_run():
    """The attack's digest changes with the arithmetic and the stores, and does not know tables or figures."""
    found, pending = set(), ["dag.attack.perturb"]
    while pending:
        path = ROOT / (pending.pop().replace(".", "/") + ".py")
        if path in found or not path.is_file():
            continue
        found.add(path)
        pending += digests.outline(path)[1]
    names = {path.stem for path in found}
    assert {"perturb", "engine", "targets", "arithmetic", "store", "voc", "interface", "operators"} <= names
    assert not {"tables", "figures", "score", "training", "mini", "plan"} & names


def along(setting: str, *variants: str, **more) -> dict:
    entry = {"layout": "robustness", "networks": ["mini-fcn-vgg"], "variants": list(variants), "along": setting}
    return {"title": "", "description": "", "image_set": "mini-test"} | entry | more


def test_variants_that_differ_in_one_setting_are_one_attack():
    found = comparisons.series(BASE, along("eps", "pgd-8", "cospgd-2", "pgd-2", "sea-4", "sea-2"))
    assert found == [
        {"network": "mini-fcn-vgg", "attack": "pgd", "sources": {8: "mini-fcn-vgg@pgd-8", 2: "mini-fcn-vgg@pgd-2"}},
        {"network": "mini-fcn-vgg", "attack": "cospgd-2", "sources": {2: "mini-fcn-vgg@cospgd-2"}},
        {"network": "mini-fcn-vgg", "attack": "sea", "sources": {4: "mini-fcn-vgg@sea-4", 2: "mini-fcn-vgg@sea-2"}},
    ]
    (found,) = comparisons.series(BASE, along("iterations", "pgd-8-t3", "pgd-8", "pgd-8-t40"))
    assert found["attack"] == "pgd-8" and list(found["sources"]) == [3, 20, 40]


def test_attacks_whose_names_begin_alike_keep_names_of_their_own():
    """Ten steps at two budgets beside twenty at the same: four variants, two attacks."""
    ten = {f"pgd-{eps}-t10": BASE["variants"][f"pgd-{eps}"] | {"iterations": 10} for eps in (4, 8)}
    config = merge(BASE, {"variants": ten})
    found = comparisons.series(config, along("eps", "pgd-4", "pgd-8", "pgd-4-t10", "pgd-8-t10"))
    assert {one["attack"]: list(one["sources"].values()) for one in found} == {
        "pgd": ["mini-fcn-vgg@pgd-4", "mini-fcn-vgg@pgd-8"],
        "pgd-t10": ["mini-fcn-vgg@pgd-4-t10", "mini-fcn-vgg@pgd-8-t10"],
    }
    twenty = {f"x-{eps}": BASE["variants"]["pgd-8"] | {"eps": eps} for eps in (4, 8)}
    ten = {f"x-{eps}": BASE["variants"]["pgd-8"] | {"eps": eps, "iterations": 10} for eps in (2, 16)}
    with pytest.raises(ValueError, match="two attacks would be called 'x'; give their variants names that differ"):
        comparisons.series(merge(BASE, {"variants": twenty | ten}), along("eps", *twenty, *ten))


def test_the_worst_is_of_the_attacks_at_one_budget():
    entry = along("eps", "pgd-8", "pgd-2", "cospgd-8", networks=["mini-fcn-vgg", "mini-fr-zf-07"])
    assert comparisons.worst(BASE, entry) == {
        name: {"worst of all@8": [f"{name}@pgd-8", f"{name}@cospgd-8"]} for name in ("mini-fcn-vgg", "mini-fr-zf-07")
    }
    assert comparisons.worst(BASE, WHITE_BOX) == {}
    assert plan.rows(entry)[:2] == ["none", "mini-fcn-vgg@pgd-8"] and plan.victims(entry) == entry["networks"]
    # every network sees its own perturbations alone
    assert {source.partition("@")[0] == victim for source, victim in plan.pairs(entry) if source != "none"} == {True}
    assert plan.source_sets(entry)[0] == ("mini-fcn-vgg@pgd-8", "mini-test")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (along("eps", "pgd-8", "nms-50"), "variant 'nms-50' has no eps of its own; every variant here needs one"),
        (along("eps", "pgd-8", "pgd-8-t3", "cospgd-8"), None),  # other iterations are another attack
        (
            along("iterations", "pgd-8", "same"),
            "variants 'pgd-8' and 'same' are the same attack at iterations 20; name one",
        ),
        (along("eps", "pgd-9"), "'pgd-9' is not in variants; did you mean 'pgd-8'?"),
    ],
)
def test_attacks_that_cannot_be_compared(entry, problem):
    config = changed({"tables": {"mine": entry}, "variants": {"same": BASE["variants"]["pgd-8"]}})
    if problem is None:
        configuration.check(config, SCHEMA)
    else:
        assert problem in message(config)
