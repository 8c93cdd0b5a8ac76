"""ESPNetv2 and DiCENet: published files load whole, reach the published pattern, and have the right gradient."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dag.data import voc
from dag.evaluate.metrics import confusion_matrix, segmentation_scores
from dag.networks import edgenets
from dag.networks.building import build

ROOT = Path(__file__).parents[2]
# Published mIoU on VOC2012 val, by width, at 256 and at 384 pixels.
PUBLISHED = {
    "dicenet": {
        0.2: (33.8, 34.5),
        0.5: (42.5, 47.7),
        0.75: (49.5, 55.7),
        1.0: (54.3, 60.2),
        1.25: (57.6, 62.6),
        1.75: (58.4, 64.8),
    },
    "espnetv2": {0.5: (39.8, 47.2), 1.0: (54.1, 60.2), 1.5: (59.4, 63.7), 2.0: (63.4, 67.0)},
}
ALL = [(kind, width, size) for kind, widths in PUBLISHED.items() for width in widths for size in (256, 384)]


def made(shared, kind: str, width: float, size: int):
    path = shared / "weights" / "edgenets" / f"{kind}_s_{width}_pascal_{size}x{size}.pth"
    return build(f"dag.networks.edgenets:{kind}", {"width": width, "size": size}, {"state_dict": path})


@pytest.mark.shared
@pytest.mark.parametrize(("kind", "width", "size"), ALL)
def test_published_files_load_with_every_key(shared, kind, width, size):
    network = made(shared, kind, width, size)
    assert network.body(torch.zeros(1, 3, 100, 120)).shape == (1, 21, size // 2, size // 2)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_published_pattern_is_reached(shared, kind):
    """On 36 images, standard error about 5 points: from width 1.0 up the score is near, and wider is better."""
    root = shared / "voc" / "VOC2012"
    ids = (root / "ImageSets" / "Segmentation" / "sample.txt").read_text().split()[::2]
    images = [torch.from_numpy(voc.read_image(root, image_id))[None] for image_id in ids]
    truths = [voc.read_label_map(root, image_id) for image_id in ids]
    found = {}
    for width in PUBLISHED[kind]:
        network = made(shared, kind, width, 384)
        seen = [network.label_map(image)[0].numpy() for image in images]
        confusions = np.stack([confusion_matrix(*pair) for pair in zip(truths, seen, strict=True)])
        found[width] = float(segmentation_scores(confusions)["score"][0])
    for width, score in found.items():
        if width >= 1:
            assert abs(score - PUBLISHED[kind][width][1]) < 12, found
    widths = list(found)
    assert found[widths[-1]] > found[widths[0]] + 10, found
    assert np.corrcoef(list(found.values()), [PUBLISHED[kind][width][1] for width in widths])[0, 1] > 0.85, found


@pytest.mark.parametrize(("kind", "width"), [("espnetv2", 0.5), ("dicenet", 0.2)])
def test_gradient(kind, width):
    torch.manual_seed(0)
    network = build(f"dag.networks.edgenets:{kind}", {"width": width, "size": 64}).double()
    rng = np.random.default_rng(1)
    image = torch.from_numpy(rng.uniform(40, 200, (1, 3, 50, 70)))
    weights = torch.from_numpy(rng.normal(size=(1, 21, 50, 70)))
    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((network(x) * weights).sum(), x)
    # a direction of random signs: the network is piecewise smooth, and few kinks lie within a step of 1e-4
    direction = torch.from_numpy(rng.choice([-1.0, 1.0], image.shape))
    with torch.no_grad():
        ahead, behind = ((network(image + step * direction) * weights).sum() for step in (1e-4, -1e-4))
    assert ((ahead - behind) / 2e-4).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


def test_upsampling_is_linear_with_aligned_corners():
    network = build("dag.networks.edgenets:espnetv2", {"width": 0.5, "size": 64})
    scores = torch.zeros(1, 21, 32, 32)
    scores[0, 0] = torch.arange(32.0)
    found = network.upsample(scores, (5, 63))[0, 0]
    # a ramp stays a ramp between the corners
    torch.testing.assert_close(found, torch.linspace(0, 31, 63).expand(5, -1), rtol=0, atol=1e-4)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape("width 3.0 is unknown; choose 0.5, 1.0, 1.5, 2.0")):
        edgenets.espnetv2(3.0, 256)
    with pytest.raises(ValueError, match="size 100 is no multiple of 16"):
        edgenets.dicenet(0.2, 100)
    other = tmp_path / "other.pth"
    state = edgenets.espnetv2(1.0, 64).state_dict()
    torch.save(state, other)

    def refused(width: float = 1.0, kind: str = "espnetv2") -> str:
        with pytest.raises(ValueError, match=re.escape(str(other))) as caught:
            build(f"dag.networks.edgenets:{kind}", {"width": width, "size": 64}, {"state_dict": other})
        said = str(caught.value)
        assert "\n" not in said and len(said.removeprefix(str(other))) < 400
        return said

    first = "the first is base_net.level1.conv.weight, (32, 3, 3, 3) in the file and (16, 3, 3, 3) in the network"
    assert first in (said := refused(width=0.5)) and "name the file of a network of this width" in said
    assert "tensors are not in the file, the first is " in refused(kind="dicenet")
    torch.save(
        {name: tensor[:19] if len(tensor.shape) and len(tensor) == 21 else tensor for name, tensor in state.items()},
        other,
    )
    assert "19" in (said := refused()) and "21" in said and "with these classes" in said
    torch.save(state | {"more": torch.zeros(1)}, other)
    assert "it lacks 1 tensors of the file, the first is more; name its architecture" in refused()
    torch.save(state, other)
    whole = other.read_bytes()
    for left in (0, 1000, len(whole) // 2, len(whole) - 1):
        other.write_bytes(whole[:left])
        assert "delete it and download or train it again" in refused()


@pytest.mark.shared
def test_a_published_file_that_is_cut_or_of_another_width_is_named(shared, tmp_path):
    """They were written by torch before 1.6, as a pickle and not as an archive, and on a GPU."""
    published = shared / "weights" / "edgenets" / "espnetv2_s_1.0_pascal_256x256.pth"
    with pytest.raises(ValueError, match="have another shape, the first is base_net.level1.conv.weight"):
        build("dag.networks.edgenets:espnetv2", {"width": 0.5, "size": 256}, {"state_dict": published})
    cut = tmp_path / "cut.pth"
    whole = published.read_bytes()
    for left in (1, 1000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:left])
        with pytest.raises(ValueError, match="cut.pth: .*delete it and download") as caught:
            build("dag.networks.edgenets:espnetv2", {"width": 1.0, "size": 256}, {"state_dict": cut})
        assert "\n" not in str(caught.value)


def test_the_zoo_names_a_parent_and_a_child_of_every_width():
    networks = yaml.safe_load((ROOT / "config" / "zoo.yaml").read_text())["networks"]
    pairs = {}
    for entry in networks.values():
        kind = entry["architecture"].rpartition(":")[2]
        arguments = entry["arguments"]
        assert entry["lineage"] == f"{kind}-{arguments['width']}" and entry["family"] == kind
        pairs.setdefault(entry["lineage"], set()).add(arguments["size"])
        parent = networks[entry["parent"]] if "parent" in entry else None
        assert (parent is None) == (arguments["size"] == 256)
        assert parent is None or (parent["lineage"], parent["arguments"]["size"]) == (entry["lineage"], 256)
    assert len(networks) == 20 and all(sizes == {256, 384} for sizes in pairs.values()) and len(pairs) == 10
