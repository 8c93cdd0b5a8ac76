"""What an experiment says of itself follows from its configuration."""

import pytest
import yaml
from test_plan import BASE, OVERLAYS, ROOT, SCHEMA, changed, read

from dag.attack.rules import PRESETS
from dag.report import description
from dag.workflow import configuration, layers


def described(**keys) -> dict:
    """What the default experiment says of itself with some keys replaced."""
    return description.experiment(description.with_kind({**BASE, **keys}))


def overlay(name: str, **keys) -> dict:
    """The default configuration under an overlay of the project, with some keys of its own."""
    return {**changed(read(name)), **keys}


@pytest.mark.parametrize(
    ("name", "kind"), [("paper.yaml", "paper"), ("pocket.yaml", "pocket"), ("torchvision.yaml", "substitutes")]
)
def test_kinds_of_the_shipped_experiments(name, kind):
    found = description.experiment(description.with_kind(overlay(name)))
    assert found["kind"] == kind and found["badge"] == description.KINDS[kind][0]


def test_the_default_is_a_miniature():
    found = described()
    assert (found["kind"], found["badge"], found["seed"]) == ("miniature", "Miniature", 2017)
    assert found["images"] == {
        "mini-test": {"images": 50, "given_up": 0, "origin": "made on this machine from seed 97"}
    }
    assert len(found["networks"]) == 13
    assert {name: len(labels) for name, labels in found["weights"].items()} == {
        "trained here, from seeds, on images made here": 13
    }


def test_other_images_make_an_experiment_of_ones_own():
    """An overlay that names no kind must not inherit the miniature's."""
    config = overlay("pocket.yaml", kind=None)
    assert description.with_kind(config)["kind"] == "own"


@pytest.mark.parametrize("kind", ["paper", "pocket", "substitutes", "own"])
def test_a_miniature_cannot_call_itself_anything_else(kind):
    with pytest.raises(ValueError, match=f"kind: '{kind}', but the images of mini-test are made on this machine"):
        description.with_kind({**BASE, "kind": kind})


def test_nothing_else_can_call_itself_a_miniature():
    with pytest.raises(ValueError, match="kind: 'miniature', but the images of pocket-segmentation are not made"):
        description.with_kind(overlay("pocket.yaml", kind="miniature"))


def test_kinds_are_those_of_the_schema():
    schema = yaml.safe_load(SCHEMA.read_text())
    assert set(schema["properties"]["kind"]["enum"]) == {*description.KINDS, None}
    with pytest.raises(ValueError, match="kind: 'big'"):
        configuration.check({**BASE, "kind": "big"}, SCHEMA)


def test_every_rule_set_has_a_sentence_with_its_numbers():
    """The constants in the sentences are those of the attack."""
    assert set(description.RULES) == set(PRESETS)
    for key, rules in PRESETS.items():
        text = description.RULES[key]
        assert ("absent" in text) == (rules.labels == "absent")
        for number in rules.strength or ():
            assert str(number) in text
        assert not rules.stop or f"{100 * rules.stop:.0f} %" in text
        assert ("background" in text) == rules.background


def test_the_attack_of_every_task_and_the_variants_in_use():
    attacks = described()["attacks"]
    named = [(attack["task"], attack["variant"]) for attack in attacks]
    assert named[:2] == [("segmentation", ""), ("detection", "")]
    changes = {("detection", name) for name in ("algorithm-1", "nms-50", "nms-70", "nms-80")}
    family = {f"{name}-{eps}" for name in ("dag", "pgd", "cospgd") for eps in (2, 4, 8)}
    budgets = {("segmentation and detection", name) for name in family}
    iterations = {("segmentation", f"{name}-8-{t}") for name in ("pgd", "cospgd") for t in ("t3", "t10")}
    assert set(named[2:]) == changes | budgets | iterations
    assert attacks[0]["text"] == description.RULES["algorithm-1", "segmentation"]
    assert attacks[0]["settings"] == "step size 0.5 grey levels, at most 200 iterations"
    by_variant = {attack["variant"]: attack for attack in attacks}
    assert by_variant["algorithm-1"]["text"] == description.RULES["algorithm-1", "detection"]
    # a variant says what differs and nothing more
    assert (
        by_variant["nms-50"]["text"] == "" and by_variant["nms-50"]["settings"] == "proposals suppressed above IoU 0.5"
    )


def test_single_rules_that_are_changed_are_named():
    attacks = {**BASE["attacks"], "segmentation": {**BASE["attacks"]["segmentation"], "options": {"stop": 0.1}}}
    assert described(attacks=attacks)["attacks"][0]["options"] == "stop: 0.1"


def test_where_weights_come_from():
    config = overlay("paper.yaml")
    found = description.experiment(description.with_kind(config))
    weights = {entry["label"]: entry["weights"] for entry in found["networks"].values()}
    assert weights["FCN-VGG*†"] == "trained here by the published recipe"
    downloads = config["downloads"]
    for name, entry in found["networks"].items():
        files = config["networks"][name].get("files")
        if files:
            known = all(
                {"sha256", "sha256_prefix", "md5", "sha1"} & _with_archive(downloads, file) for file in files.values()
            )
            expected = (
                "published files, checksums verified" if known else "published files without a published checksum"
            )
            assert entry["weights"] == expected
    unknown = [label for label, origin in weights.items() if origin == "published files without a published checksum"]
    assert unknown
    said = " ".join(found["not_verified"])
    assert all(label in said for label in unknown) and "DL-VGG†" in said


def _with_archive(downloads: dict, file: str) -> set:
    """Keys with a value of a file of downloads and of the archive that it lies in."""
    entry = downloads[file]
    keys = {key for key, value in entry.items() if value}
    return keys | _with_archive(downloads, entry["archive"]) if "archive" in entry else keys


def test_files_of_ones_own_and_none_at_all():
    networks = dict(BASE["networks"])
    plain = {key: value for key, value in networks["mini-fcn-alex"].items() if key != "training"}
    networks["mini-fcn-alex"] = {**plain, "files": {"state_dict": "./mine.pt"}}
    networks["mini-fcn-vgg"] = {**plain, "label": "Bare", "files": {}}
    weights = described(networks=networks)["weights"]
    assert weights["files of one's own"] == ["FCN-Alex"]
    assert weights["no file: as the function that makes the network leaves them"] == ["Bare"]


def test_images_that_were_given_up_are_counted_and_named():
    """50 images in shards of 20: the last one has 10."""
    found = described(shard_size=20, given_up=["mini-test/0002", "mini-test/0000"])
    assert found["images"]["mini-test"]["images"] == 20 and found["images"]["mini-test"]["given_up"] == 30
    assert "mini-test/0000, mini-test/0002" in found["not_verified"][-1]


def test_where_images_come_from():
    found = description.experiment(description.with_kind(overlay("pocket.yaml", voc="/data/VOCdevkit")))
    origin = "PASCAL VOC2012 and PASCAL VOC2007, from a folder named by the user"
    assert found["images"]["pocket-detection"]["origin"] == origin
    assert "/data" not in str(found)


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_with_images_of_their_own_name_a_kind(name):
    text = yaml.safe_load((ROOT / "config" / name).read_text())
    assert "kind" in text or "products" not in text


def test_attacks_of_the_family_are_described_from_their_settings():
    rows = ["mini-fcn-vgg@pgd-8", "mini-fcn-vgg@sea-4", "mini-fcn-vgg@dag-2"]
    table = {"title": "", "description": "", "layout": "white-box", "image_set": "mini-test", "sources": rows}
    attacks = described(tables={"mine": table}, figures={}, products=["mine"])["attacks"]
    by_variant = {attack["variant"]: attack for attack in attacks}
    assert by_variant["pgd-8"]["text"] == "Maximises the cross-entropy (PGD)."
    assert by_variant["pgd-8"]["settings"] == (
        "L∞ norm at most 8 grey levels, targets: all, update rule sign, step size 2 grey levels, "
        "at most 20 iterations, uniform start, stop: iterations"
    )
    assert by_variant["sea-4"]["text"].startswith("On every image the one of apgd-mce-4, apgd-mce-bal-4, apgd-js-4")
    assert by_variant["dag-2"]["text"] == "" and by_variant["dag-2"]["settings"] == "L∞ norm at most 2 grey levels"


def test_captions_and_the_page_say_what_a_defence_does():
    networks = {
        "j": {"label": "J", "of": "mini-fcn-vgg", "defence": "jpeg", "arguments": {"quality": 75}},
        "k": {"label": "K", "of": "j", "defence": "dag.networks.defences:blur", "arguments": {"sigma": 2}},
    }
    table = {"title": "", "description": "", "layout": "transfer", "image_set": "mini-test"}
    table |= {"perturbations": ["none"], "victims": ["mini-fcn-vgg", "j", "k"]}
    config = layers.with_defended(changed({"networks": networks, "tables": {"t": table}, "products": ["t"]}))
    notes = description.notes(config, table)
    # an image meets the outer defence first
    assert notes == {
        "J": "FCN-VGG, which sees images written as a JPEG file of quality 75.",
        "K": "FCN-VGG, which sees images through dag.networks.defences:blur (sigma 2), then written as a JPEG file of "
        "quality 75.",
    }
    found = description.experiment(description.with_kind(config))["networks"]
    assert {entry["label"]: entry["note"] for entry in found.values() if entry["note"]} == notes
    assert found["j"]["weights"] == found["mini-fcn-vgg"]["weights"]


def test_every_objective_has_its_words():
    from dag.attack.objectives import LOSSES

    assert set(description.OBJECTIVES) == set(LOSSES)


def test_kin_are_the_networks_of_a_figure_with_lineage_and_parent():
    config = changed(read("zoo.yaml"))
    panels = [{"perturbation": "esp-05-384@cospgd-8", "victims": ["esp-05-256", "dl-mnv2"]}]
    found = description.kin(config, {"panels": panels, "image_set": "zoo-segmentation"})
    assert {name: (entry["family"], entry["lineage"], entry["parent"]) for name, entry in found.items()} == {
        "esp-05-256": ("espnetv2", "espnetv2-0.5", None),
        "esp-05-384": ("espnetv2", "espnetv2-0.5", "esp-05-256"),
        # a network without relatives is its own lineage
        "dl-mnv2": (config["networks"]["dl-mnv2"].get("family", "dl-mnv2"), "dl-mnv2", None),
    }
    assert found["esp-05-384"]["arguments"] == {"width": 0.5, "size": 384}
