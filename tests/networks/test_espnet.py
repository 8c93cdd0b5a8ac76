"""ESPNet: the published file loads whole, reaches the published score, and fits the statistics that it stores."""

import re

import numpy as np
import pytest
import torch
from finite_differences import assert_derivative
from PIL import Image
from stored_statistics import compare, normalisations
from torch import nn

from dag.evaluate.metrics import bootstrap_weights, confusion_matrix, mean_iou
from dag.networks.building import build
from dag.networks.contract import check_interface

FUNCTION = "dag.networks.espnet:espnet"
# mIoU on the 233 test images of CamVid, percent
PUBLISHED = 55.64
VOID = 11


def made(shared, **options):
    return build(FUNCTION, files={"state_dict": shared / "weights" / "espnet_p_2_q_8_camvid.pth"}, **options)


def camvid(shared, step: int = 1):
    """Every `step`th image (1, 3, 360, 480) with its label map, void 255."""
    for path in sorted((shared / "camvid" / "images").iterdir())[::step]:
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float()
        truth = np.array(Image.open(shared / "camvid" / "labels" / path.name))
        yield image, np.where(truth == VOID, 255, truth)


@pytest.mark.shared
@pytest.mark.slow
def test_the_published_score_is_reached(shared):
    """Within two standard errors; with red and blue exchanged the score is lower on the same images."""
    network = made(shared)
    kinds = {"as published": [], "exchanged": []}
    for image, truth in camvid(shared):
        for found, seen in zip(kinds.values(), (image, image.flip(1)), strict=True):
            found.append(confusion_matrix(truth, network.label_map(seen)[0].numpy(), classes=11))
    weights = bootstrap_weights(39, 1000, 0)
    resampled = [mean_iou(np.tensordot(weights, np.stack(found), 1)) for found in kinds.values()]
    score, other = (mean_iou(np.sum(found, 0)) for found in kinds.values())
    assert 1 < resampled[0].std(ddof=1) < 4
    assert abs(score - PUBLISHED) < 2 * resampled[0].std(ddof=1), score
    assert score - other > 2 * (resampled[0] - resampled[1]).std(ddof=1), (score, other)


@pytest.mark.shared
def test_every_layer_sees_what_it_was_trained_with(shared):
    network = made(shared, fold=False)
    found = compare(network, (network.label_map(image) for image, _ in camvid(shared, step=3)))
    assert len(found) == 21
    for name, (shift, ratio) in found.items():
        assert shift < 0.15, name
        assert 0.7 < ratio < 1.4, name


@pytest.mark.shared
def test_the_interface_is_kept(shared):
    check_interface(made(shared), "espnet")


def test_gradient():
    torch.manual_seed(0)
    network = build(FUNCTION, {"p": 1, "q": 1, "size": (32, 40)}).double()
    for module in normalisations(network).values():  # a variance of 1 would leave little of images divided by 255
        nn.init.constant_(module.running_var, 1e-3)
    rng = np.random.default_rng(1)
    image = torch.from_numpy(rng.uniform(40, 200, (1, 3, 30, 50)))
    weights = torch.from_numpy(rng.normal(size=(1, 11, 30, 50)))
    assert_derivative(lambda x: network(x) * weights, image, 1e-3)


def test_a_column_without_a_class_is_left_out():
    torch.manual_seed(0)
    whole = build(FUNCTION, {"size": (32, 40), "labels": range(12)})
    part = build(FUNCTION, {"size": (32, 40), "labels": (None, *range(2, 12), None)})
    part.load_state_dict(whole.state_dict())
    image = 255 * torch.rand(1, 3, 32, 40)
    torch.testing.assert_close(part(image), whole(image)[:, 1:11])
    assert part.labels == tuple(range(2, 12))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=re.escape("size (360, 481) is not a height and a width that are multiples")):
        build(FUNCTION, {"size": (360, 481)})
