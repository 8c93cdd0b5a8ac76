"""One job of the attack: independent of shards and order, complete, and clear when it fails."""

import contextlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dag.attack import perturb
from dag.attack.arithmetic import perceptibility
from dag.attack.rules import PRESETS, Rules
from dag.attack.targets import derangement
from dag.data import mini, readers, voc
from dag.data.classes import VOC, match
from dag.data.truths import for_network
from dag.networks.building import build
from dag.workflow import store
from dag.workflow.overlap import ahead
from dag.workflow.seeds import generator

LABELS = [0, *mini.LABELS]
SEGMENTATION = {"rules": "algorithm-1", "iterations": 3, "step": 0.5}
DETECTION = SEGMENTATION | {"nms": 0.9, "limit": 200, "overlap": 0.1, "confidence": 0.1}
IDS = ["000001", "000002", "000003"]
TO = torch.Tensor.to


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / "test"
    mini.make_voc(folder, {"Main/test": IDS}, seed=5)
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(task: str):
    """Random weights, the same every time; a segmenter predicts every class somewhere."""
    architecture = {
        "segmentation": "dag.networks.mini.fcn:fcn",
        "detection": "dag.networks.mini.faster_rcnn:faster_rcnn",
    }[task]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = build(architecture, {"body": "alex", "labels": LABELS, "width": 16})
    if task == "segmentation":
        image = torch.from_numpy(mini.make_image(np.random.default_rng(0))[0].transpose(2, 0, 1).astype(np.float32))
        with torch.no_grad():
            made.score.bias -= made(image[None]).mean((0, 2, 3))
    return made


def perturbed(task, root, ids, path, *, settings=None, seed=2017, name="net", **options):
    settings = settings or {"segmentation": SEGMENTATION, "detection": DETECTION}[task]
    images = [(root, image_id) for image_id in ids]
    header = {"task": task, "ids": ids, "settings": settings}
    perturb.perturb(network(task), images, path, settings=settings, seed=seed, name=name, header=header, **options)
    return {image_id: store.read(path, image_id, "perturbations") for image_id in ids}


def same(first: dict, second: dict) -> bool:
    return set(first) == set(second) and all(
        np.array_equal(first[name][0], second[name][0])
        and {key: np.asarray(value).tolist() for key, value in first[name][1].items()}
        == {key: np.asarray(value).tolist() for key, value in second[name][1].items()}
        for name in first
    )


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_shards_order_and_interruptions_do_not_matter(task, root, tmp_path):
    together = perturbed(task, root, IDS, tmp_path / "whole.h5")
    assert sum(attributes["targets"] for _, attributes in together.values()) > 0
    assert any(r.any() for r, _ in together.values())

    apart = {}
    for image_id in reversed(IDS):
        apart |= perturbed(task, root, [image_id], tmp_path / f"{image_id}.h5")
    assert same(together, apart)

    def first_one_only(items, _):
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perturbed(task, root, IDS, tmp_path / "broken.h5", progress=first_one_only)
    assert len(list((tmp_path / "broken.h5.parts").iterdir())) == 1
    assert same(together, perturbed(task, root, IDS, tmp_path / "broken.h5"))


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_further_draw_has_other_labels(task, root, tmp_path):
    settings = {"segmentation": SEGMENTATION, "detection": DETECTION}[task]
    first, second, third = (
        perturbed(task, root, IDS, tmp_path / f"{draw}.h5", settings=settings | ({"draw": draw} if draw else {}))
        for draw in (0, 2, 3)
    )
    # the same targets, pushed elsewhere
    assert [known["targets"] for _, known in first.values()] == [known["targets"] for _, known in second.values()]
    assert not any(np.array_equal(first[i][0], second[i][0]) for i in IDS if first[i][0].any())
    assert not any(np.array_equal(second[i][0], third[i][0]) for i in IDS if first[i][0].any())
    alone = perturbed(task, root, IDS[1:2], tmp_path / "alone.h5", settings=settings | {"draw": 2})
    assert np.array_equal(alone[IDS[1]][0], second[IDS[1]][0])


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_what_is_stored_of_every_image(task, root, tmp_path):
    for image_id, (r, known) in perturbed(task, root, IDS, tmp_path / "a.h5").items():
        assert r.shape == voc.read_image(root, image_id).shape and r.dtype == np.float32
        active = known["active"].tolist()
        assert known["status"] in ("converged", "iteration limit", "no targets", "no gradient")
        assert known["iterations"] == max(len(active) - 1, 0) <= 3
        if known["status"] == "no targets":
            assert not active and known["targets"] == known["start"] == 0 and not r.any()
        else:
            assert known["start"] == active[0] <= known["targets"] <= known["available"]
            assert (active[-1] == 0) == (known["status"] == "converged")
        assert known["perceptibility"] == perceptibility(r)
        assert known["largest"] == abs(r).max() <= 0.5 * known["iterations"]
        assert known["seed"] == 2017
        if task == "segmentation":
            label_map = voc.read_label_map(root, image_id)
            assert known["available"] == label_map.size
            assert known["targets"] == ((label_map > 0) & (label_map < 255)).sum()


def test_one_step_is_the_gradient_of_the_paper(root, tmp_path):
    """Composition of all parts, computed once more with nothing but autograd."""
    r, _ = perturbed("segmentation", root, IDS[:1], tmp_path / "a.h5", settings=SEGMENTATION | {"iterations": 1})[
        IDS[0]
    ]
    pi = derangement(7, generator("adversarial labels", 2017, "net", IDS[0]))
    x = torch.from_numpy(voc.read_image(root, IDS[0]))[None].requires_grad_()
    f = network("segmentation")(x)[0]
    total = 0
    for row, line in enumerate(voc.read_label_map(root, IDS[0])):
        for column, label in enumerate(line):
            if label in (0, 255):
                continue
            true = LABELS.index(label)
            if f[:, row, column].argmax() == true:
                total = total + f[pi[true], row, column] - f[true, row, column]
    (g,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(torch.from_numpy(r), (0.5 * g / g.abs().max())[0], rtol=1e-3, atol=1e-4)


def test_the_seed_and_the_name_choose_the_labels_and_the_variant_does_not(root, tmp_path):
    def first(**options):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.h5"
        return perturbed("segmentation", root, IDS[:1], path, **options)[IDS[0]][0]

    base = first()
    assert np.array_equal(base, first())
    # one class of seven: two draws agree once in six times
    assert len({first(seed=seed).tobytes() for seed in range(6)}) > 2
    assert len({first(name=name).tobytes() for name in "abcdef"}) > 2
    # one more step goes on from the same ones: the first three are equal
    longer = first(settings=SEGMENTATION | {"iterations": 4})
    assert 0 < abs(longer - base).max() <= 0.5 * (1 + 1e-5)


def test_an_image_without_objects_keeps_its_place(root, tmp_path):
    folder = tmp_path / "voc"
    mini.make_voc(folder, {"Main/test": IDS[:1]}, seed=5)
    Image.fromarray(np.zeros((96, 128), np.uint8)).save(folder / "SegmentationClass" / f"{IDS[0]}.png")
    (folder / "Annotations" / f"{IDS[0]}.xml").write_text("<annotation></annotation>")
    for task in ("segmentation", "detection"):
        r, known = perturbed(task, folder, IDS[:1], tmp_path / f"{task}.h5")[IDS[0]]
        assert known["status"] == "no targets" and known["iterations"] == 0 and len(known["active"]) == 0
        assert not r.any() and r.shape == (3, 96, 128)


# Settings


@pytest.mark.parametrize("task", ["segmentation", "detection"])
@pytest.mark.parametrize("rules", ["algorithm-1", "authors"])
def test_rules_are_the_preset(task, rules):
    assert perturb.rules_of({"rules": rules}, task) == PRESETS[rules, task]


def test_single_rules_can_be_replaced():
    assert perturb.rules_of({"rules": "authors", "options": {"strength": None}}, "detection") == Rules(
        "absent", "unmoved"
    )
    options = {"strength": [0.5, 0.7], "labels": "absent"}
    assert perturb.rules_of({"rules": "algorithm-1", "options": options}, "detection") == Rules(
        "absent", strength=(0.5, 0.7)
    )


def test_the_authors_rules_run_on_both_tasks(root, tmp_path):
    for task, settings in (("segmentation", SEGMENTATION), ("detection", DETECTION)):
        found = perturbed(task, root, IDS[:1], tmp_path / f"{task}.h5", settings=settings | {"rules": "authors"})
        assert found[IDS[0]][1]["active"][0] > 0
    # in the first step of the authors every target of detection is active
    assert found[IDS[0]][1]["active"][0] == found[IDS[0]][1]["targets"]


# Errors


def test_an_error_names_the_image_and_the_network(root, tmp_path):
    folder = tmp_path / "voc"
    mini.make_voc(folder, {"Main/test": IDS[:2]}, seed=5)
    Image.fromarray(np.full((96, 128), 20, np.uint8)).save(folder / "SegmentationClass" / f"{IDS[1]}.png")
    with pytest.raises(ValueError, match=r"a.h5: net cannot attack image 000002: .* classes \[20\], which"):
        perturbed("segmentation", folder, IDS[:2], tmp_path / "a.h5")
    # what was done before stays
    assert list((tmp_path / "a.h5.parts").iterdir()) and not (tmp_path / "a.h5").exists()


def test_a_network_that_yields_nan_is_named(root, tmp_path):
    broken = network("segmentation")
    broken.score.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="net cannot attack image 000001: the network's scores are not finite"):
        perturb.perturb(
            broken, [(root, IDS[0])], tmp_path / "a.h5", settings=SEGMENTATION, seed=0, name="net", header={}
        )


def test_a_missing_image_is_named(root, tmp_path):
    with pytest.raises(ValueError, match="JPEGImages/999999.jpg: no such file"):
        perturbed("segmentation", root, ["999999"], tmp_path / "a.h5")


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_gpu_attacks_the_same_targets(task, root, tmp_path):
    here = perturbed(task, root, IDS, tmp_path / "cpu.h5")
    there = perturbed(task, root, IDS, tmp_path / "gpu.h5", device="cuda")
    for image_id in IDS:
        assert here[image_id][1]["available"] == pytest.approx(there[image_id][1]["available"], rel=0.02)
        assert here[image_id][1]["targets"] == pytest.approx(there[image_id][1]["targets"], rel=0.05, abs=2)


def test_images_are_read_one_ahead_and_in_order():
    read = []

    def images():
        for number in range(4):
            read.append(number)
            yield number

    for number in ahead(images()):
        while len(read) < min(number + 2, 4):  # another thread reads the next one meanwhile
            time.sleep(0.001)
    assert read == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        list(ahead(1 // number for number in (1, 0)))


def test_what_is_stored_while_the_next_image_is_attacked_is_the_same(root, tmp_path, monkeypatch):
    alone = perturbed("segmentation", root, IDS, tmp_path / "a.h5")
    kind = type("Kind", (), {"type": "cuda"})
    monkeypatch.setitem(perturb.BATCH, "cuda", 1)
    with monkeypatch.context() as patch:
        real = torch.device
        patch.setattr(perturb, "arithmetic", lambda precision, device: contextlib.nullcontext())
        patch.setattr(perturb.torch, "device", lambda name: kind if name == "pretended" else real(name))
        patch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
        patch.setattr(
            torch.Tensor,
            "to",
            lambda self, *given, **more: self if given == ("pretended",) else TO(self, *given, **more),
        )
        assert same(alone, perturbed("segmentation", root, IDS, tmp_path / "b.h5", device="pretended"))


# Attacks beside Dense Adversary Generation

BOUNDED = SEGMENTATION | {
    "targets": "all",
    "steps": "sign",
    "budget": "linf",
    "eps": 6,
    "step": 2,
    "stop": "iterations",
}


def test_all_pixels_that_are_not_void_are_targets(root, tmp_path):
    found = perturbed("segmentation", root, IDS, tmp_path / "a.h5", settings=BOUNDED | {"objective": "ce"})
    for image_id, (r, known) in found.items():
        assert known["targets"] == (voc.read_label_map(root, image_id) != voc.VOID).sum()
        assert known["status"] == "iteration limit" and len(known["active"]) == 4
        image = voc.read_image(root, image_id)
        assert abs(r).max() <= 6 and (image + r).min() >= 0 and (image + r).max() <= 255


def test_a_random_start_depends_on_seed_network_and_image_alone(root, tmp_path):
    settings = BOUNDED | {"objective": "ce", "start": "uniform", "step": 0.001}
    together = perturbed("segmentation", root, IDS, tmp_path / "a.h5", settings=settings)
    (alone,) = perturbed("segmentation", root, IDS[1:2], tmp_path / "b.h5", settings=settings).values()
    assert np.array_equal(together[IDS[1]][0], alone[0])
    other = perturbed("segmentation", root, IDS[1:2], tmp_path / "c.h5", settings=settings, seed=1)[IDS[1]][0]
    assert abs(alone[0] - other).max() > 1 and abs(together[IDS[0]][0] - alone[0]).max() > 1
    # another objective starts from the same noise, three steps of 0.001 away
    cos = perturbed("segmentation", root, IDS[1:2], tmp_path / "d.h5", settings=settings | {"objective": "cospgd"})
    assert abs(cos[IDS[1]][0] - alone[0]).max() < 0.01


def test_stages_go_on_from_each_other_with_shrinking_budgets(root, tmp_path):
    settings = BOUNDED | {"objective": "mce", "stages": [[2, 0.5], [1, 0.5]], "iterations": 4}
    staged = perturbed("segmentation", root, IDS[:1], tmp_path / "a.h5", settings=settings)[IDS[0]]
    wide = settings | {"eps": 12, "iterations": 2}
    del wide["stages"]
    first = perturbed("segmentation", root, IDS[:1], tmp_path / "b.h5", settings=wide)[IDS[0]]
    assert abs(staged[0]).max() <= 6 and len(staged[1]["active"]) == 3
    # two steps of 2 from zero stay within both budgets, so the second stage begins where the first one ended
    assert staged[1]["active"][0] == first[1]["active"][-1]


@pytest.mark.parametrize("keep", ["last", "best"])
def test_every_image_keeps_the_worst_of_several_attacks(root, tmp_path, keep):
    """By the targets that are left at the r that each returns, not at one that it has passed."""
    members = [BOUNDED | {"objective": name, "keep": keep} for name in ("ce", "margin", "js", "tsallis")]
    alone = [perturbed("segmentation", root, IDS, tmp_path / f"{n}.h5", settings=m) for n, m in enumerate(members)]
    worst = perturbed("segmentation", root, IDS, tmp_path / "w.h5", settings=SEGMENTATION | {"worst_of": members})
    for image_id, (r, _) in worst.items():
        counts = [one[image_id][1]["active"] for one in alone]
        left = [min(active) if keep == "best" else active[-1] for active in counts]
        assert np.array_equal(r, alone[left.index(min(left))][image_id][0])


def test_targets_of_the_worst_of_several_attacks_are_those_of_the_members(root, tmp_path):
    """And not those of the settings of the task, which the members change."""
    few = DETECTION | {"nms": 0.3}
    one = perturbed("detection", root, IDS, tmp_path / "a.h5", settings=few)
    worst = perturbed("detection", root, IDS, tmp_path / "b.h5", settings=DETECTION | {"worst_of": [few, few]})
    base = perturbed("detection", root, IDS, tmp_path / "c.h5")
    counts = [[found[i][1]["targets"] for i in IDS] for found in (one, worst, base)]
    assert counts[0] == counts[1] != counts[2]


def test_the_worst_of_attacks_below_fp32(root, tmp_path):
    rough = SEGMENTATION | {"precision": "tf32"}
    found = perturbed(
        "segmentation", root, IDS, tmp_path / "a.h5", settings=SEGMENTATION | {"worst_of": [rough, rough]}
    )
    alone = perturbed("segmentation", root, IDS, tmp_path / "b.h5", settings=rough)
    assert all(np.array_equal(found[i][0], alone[i][0]) for i in IDS)


def test_balanced_classes_are_weighted_with_the_whole_image_set(root, tmp_path):
    settings = BOUNDED | {"objective": "mce-bal", "steps": "l2", "step": 50.0}
    pixels = readers.count_pixels(readers.VOC_LAYOUT, ((root, image_id) for image_id in IDS))
    counted = np.unique(np.concatenate([voc.read_label_map(root, each).ravel() for each in IDS]), return_counts=True)
    assert pixels == {int(a): int(b) for a, b in zip(*counted, strict=True) if a != voc.VOID}
    r = perturbed("segmentation", root, IDS[:1], tmp_path / "a.h5", settings=settings, pixels=pixels)[IDS[0]][0]
    same_pixels = perturbed("segmentation", root, IDS[:1], tmp_path / "b.h5", settings=settings, pixels=pixels)
    assert np.array_equal(r, same_pixels[IDS[0]][0])
    changed = pixels | {0: 1}
    other = perturbed("segmentation", root, IDS[:1], tmp_path / "c.h5", settings=settings, pixels=changed)[IDS[0]][0]
    assert not np.array_equal(r, other)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_source_whose_classes_are_named_otherwise_attacks_the_same(task, root, tmp_path):
    """The network's list has VOC's names in the same places; the image set has them in reverse order."""
    names = list(reversed(voc.CLASSES))
    reader = readers.reader_of({"classes": {"names": names, "background": "background", "void": [255]}})
    wanted = perturbed(task, root, IDS[:2], tmp_path / "wanted.h5")
    matched = match(VOC, reader.classes)

    class Reversed(type(reader)):
        """What stands in the files is VOC's; its ids become those of the other list."""

        def _truth(self, task, image):
            return for_network(readers.VOC_LAYOUT.truth(task, image), match(self.classes, VOC))

    found = perturbed(task, root, IDS[:2], tmp_path / "found.h5", reader=Reversed(reader.settings), match=matched)
    assert same(wanted, found)


def test_without_truth_a_source_attacks_what_it_sees(root, tmp_path):
    """Every pixel that the clean image is said to be foreground is a target, and nothing else."""
    reader = readers.reader_of({"format": "images", "parts": []})
    images = root / "JPEGImages"
    found = perturbed("segmentation", images, IDS, tmp_path / "a.h5", reader=reader, match=match(VOC, VOC))
    for image_id, (_, known) in found.items():
        seen = network("segmentation").label_map(torch.from_numpy(voc.read_image(root, image_id))[None])
        assert known["targets"] == known["start"] == int((seen > 0).sum())
