"""Lists of classes and their matching by name, against hand-made cases, torchvision's lists and VOC's own colours."""

import itertools

import numpy as np
import pytest
import yaml
from torchvision.models import get_model_weights

from dag.data import voc
from dag.data.classes import MOST, OTHER, VOC, VOID, ClassList, Match, match, palette
from dag.workflow.configuration import ROOT

ENTRIES = yaml.safe_load((ROOT / "config/classes.yaml").read_text())["classes"]
LISTS = {name: ClassList.of(entry) for name, entry in ENTRIES.items()}


def test_the_lists_that_are_shipped():
    assert {name: len(classes.names) for name, classes in LISTS.items()} == {
        "voc": 21, "coco": 80, "cityscapes": 19, "ade20k": 150, "camvid": 11,
    }  # fmt: skip
    assert (LISTS["voc"].names, LISTS["voc"].ground, LISTS["voc"].void) == (VOC.names, 0, VOC.void)
    assert [name for name, classes in LISTS.items() if classes.ground is not None] == ["voc"]


def test_the_ids_of_coco_are_those_of_torchvision():
    weights = get_model_weights("fasterrcnn_mobilenet_v3_large_fpn")["COCO_V1"]
    columns = enumerate(weights.meta["categories"])
    assert dict(zip(LISTS["coco"].names, LISTS["coco"].ids, strict=True)) == {
        name: column for column, name in columns if name not in ("__background__", "N/A")
    }


def test_voc_keeps_its_colours():
    assert np.array_equal(LISTS["voc"].colour_map()[[*range(21), VOID]], voc.colour_map()[[*range(21), VOID]])


def test_all_classes_of_voc_are_known_by_coco_under_its_names():
    """As in the 20 classes that torchvision's weights COCO_WITH_VOC_LABELS_V1 have in common with VOC."""
    found = match(LISTS["coco"], VOC)
    assert found.unknown == [0]
    names = [LISTS["coco"].names[label] for label in found.truth[1:]]
    renamed = {"aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "sofa": "couch"}
    renamed |= {"pottedplant": "potted plant", "tvmonitor": "tv"}
    assert names == [renamed.get(name, name) for name in VOC.names[1:]]
    back = [found.truth.index(label) if label in found.truth else None for label in range(80)]
    assert list(found.seen) == back and back.count(None) == 60


def test_matching_by_hand():
    network = ClassList(("TV", "cup", "dog"))
    image_set = ClassList(("dog", "tv_monitor", "tvmonitor", "tree"))
    assert match(network, image_set) == Match((2, None, 0, None), (2, None, 0))
    assert match(network, image_set).unknown == [1, 3]
    grounded = ClassList(("rest", "dog"), background="rest")
    assert match(grounded, ClassList(("dog", "void"), background="void")) == Match((1, 0), (1, 0), 1)
    assert match(network, grounded) == Match((None, 2), (None, None, 1))


def test_nothing_in_common_is_refused():
    plates = ClassList(("background", "license plate"), background="background")
    with pytest.raises(ValueError, match="no class in common: the network knows background, aeroplane.* and 13 more"):
        match(VOC, plates)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"names": ["cat"], "background": "ground"}, "background 'ground' is not among the names"),
        ({"names": ["sofa", "cat", "couch"]}, "'sofa' and 'couch' mean the same class"),
        ({"names": ["traffic light", "Traffic-Light"]}, "mean the same class"),
        ({"names": ["cat", "dog"], "void": [1]}, "1 is both a class and void"),
        ({"names": {"cat": 3, "dog": 3}}, "two classes have the same id"),
        ({"names": ["cat", "dog"], "colours": ["#000000"]}, "1 colours for 2 names"),
    ],
)
def test_lists_that_contradict_themselves(entry, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClassList.of(entry)


def test_values_of_label_maps_have_names():
    assert [VOC.name(label) for label in (0, 20, OTHER, VOID)] == ["background", "tvmonitor", "other", "void"]
    assert LISTS["camvid"].find("sidewalk") == LISTS["camvid"].names.index("pavement")


@pytest.mark.parametrize("count", [2, 11, 19])
def test_colours_differ_for_whoever_looks(count):
    """In lightness or in blue against yellow, which people without red or green cones see as others do."""
    colours = np.array(palette(count)) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for one, other in itertools.combinations(linear @ [[0.2126, 0], [0.7152, 0], [0.0722, 1]], 2):
        assert np.abs(np.cbrt(one) - np.cbrt(other)).max() > 0.05


def test_detectors_may_know_more_classes_than_label_maps_hold():
    """As the 1203 of LVIS."""
    many = ClassList(tuple(f"class {k}" for k in range(1203)))
    assert many.name(OTHER) == "class 254" and many.name(1202) == "class 1202" and many.colour_map().shape == (256, 3)
    assert len(many.foreground) == 1203 and match(many, many).seen == tuple(range(1203))


def test_many_colours_are_different():
    assert len({*palette(150)}) == 150 and (0, 0, 0) not in palette(150)
    coloured = ClassList(tuple(str(k) for k in range(MOST))).colour_map()
    assert coloured.shape == (256, 3) and coloured[: MOST - 1].any(1).all()
