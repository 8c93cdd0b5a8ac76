"""FCN without its border equals the plain network: scores, and the gradient in the image."""

import copy
import math

import numpy as np
import pytest
import torch
from test_caffe_segmentation import LABELS, NARROW_ALEXNET, NARROW_VGG16
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dag.networks import interface
from dag.networks.caffe import compare
from dag.networks.caffe import layers as caffe
from dag.networks.caffe.fcn import fcn8s_vgg16, fcn16s_vgg16, fcn32s_vgg16, fcn_alexnet
from dag.networks.layers import border

torch.set_num_threads(1)

FACTORIES = {
    "fcn-alexnet": (fcn_alexnet, NARROW_ALEXNET),
    "fcn8s": (fcn8s_vgg16, NARROW_VGG16),
    "fcn16s": (fcn16s_vgg16, NARROW_VGG16),
    "fcn32s": (fcn32s_vgg16, NARROW_VGG16),
}
every_network = pytest.mark.parametrize("name", FACTORIES)
both_bodies = pytest.mark.parametrize("name", ["fcn-alexnet", "fcn8s"])


def make(name: str, widths: dict | None = None, seed: int = 0) -> interface.Segmenter:
    """A narrow network in double precision, with biases that make the border far from zero."""
    factory, narrow = FACTORIES[name]
    network = factory(labels=LABELS, widths=widths or narrow)
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / layer.weight[0].numel()), generator)
            nn.init.normal_(layer.bias, 0, 0.3, generator)
    return network.double().eval().requires_grad_(False)


def random_images(height: int, width: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 255 * torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)


def results(network: nn.Module, images: torch.Tensor, elide: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of `body`, scores of the network, and the gradient of a random sum of these."""
    images = images.clone().requires_grad_()
    network.elide = elide
    low = network.body(images)
    scores = network.upsample(low, images.shape[-2:])
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(scores, images, weights.to(scores))
    network.elide = True
    return low.detach(), scores.detach(), gradient


def assert_equals_plain(network: nn.Module, images: torch.Tensor) -> None:
    for elided, plain in zip(results(network, images, True), results(network, images, False), strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(elided, plain, rtol=0, atol=1e-12 * plain.abs().max().item())


# The windows


def reach(length: int, blocks: list[list[border.Layer]]) -> list[tuple[int, int, int]]:
    """Begin, end and length of each block's output that depends on the image, pixel by pixel."""
    depends = [True] * length
    found = []
    for block in blocks:
        for layer in block:
            count = 1 + (len(depends) + 2 * layer.padding - layer.kernel) / layer.stride
            count = math.ceil(count) if layer.ceil else math.floor(count)
            starts = [layer.stride * output - layer.padding for output in range(count)]
            depends = [any(depends[max(start, 0) : max(start + layer.kernel, 0)]) for start in starts]
        begin = depends.index(True)
        assert depends == [begin <= pixel < begin + sum(depends) for pixel in range(len(depends))]
        found.append((begin, begin + sum(depends), len(depends)))
    return found


@both_bodies
def test_windows_are_what_the_image_reaches(name):
    blocks = make(name)._blocks()
    for length in [*range(1, 130), 188, 252, 375, 500]:
        found = border.windows(length, blocks)
        assert [(*window.writes, window.size) for window in found] == reach(length, blocks)


@both_bodies
def test_windows_of_published_size(name):
    """By hand: the image begins at 100; a convolution 3 x 3 adds a pixel, a pool 2 x 2 halves."""
    first = border.windows(375, make(name)._blocks())[0]
    if name == "fcn8s":  # conv1_1 98..474, conv1_2 97..475 of 573; pool1 48..237 of 287
        assert (first.writes, first.size) == ((48, 238), 287)
    else:  # conv1 23..118 (4 o <= 474 and 4 o + 10 >= 100) of 142; pool1 11..59 of 71
        assert (first.writes, first.size) == ((11, 60), 71)


def test_pixels_beyond_the_window_never_depend_on_the_image():
    """In the plain network; and those at the rim of the window do, so that it is as small as can be."""
    network = make("fcn8s")
    pools = [lambda maps: caffe.max_pool(maps, 2, 2)] * 5
    first, second = (network.trunk(random_images(57, 90, seed=seed) - 120, pools) for seed in (1, 2))
    plan = zip(first, second, *(border.windows(length, network._blocks()) for length in (57, 90)), strict=True)
    for one, other, rows, columns in plan:
        assert one.shape[-2:] == (rows.size, columns.size)
        y, x = (one != other).any(1)[0].nonzero(as_tuple=True)
        assert ((y.min(), y.max() + 1), (x.min(), x.max() + 1)) == (rows.writes, columns.writes)


# Equality


@every_network
def test_scores_and_gradient_equal_those_of_the_plain_network(name):
    """Both sides pass every remainder of 32 or more, so that windows end anywhere in the grids of the pools."""
    network = make(name)
    steps = range(1, 66, 1 if name == "fcn8s" else 5)
    for number, height in enumerate(steps):
        assert_equals_plain(network, random_images(height, 1 + 7 * height % 66, batch=1 + number % 2, seed=number))


@both_bodies
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 130), (2, 500), (97, 131), (188, 252)])
def test_unusual_and_larger_sizes(name, height, width):
    assert_equals_plain(make(name), random_images(height, width))


@both_bodies
def test_images_of_a_batch_do_not_touch(name):
    network, images = make(name), random_images(33, 50, batch=3)
    _, scores, _ = results(network, images, True)
    for image, alone in zip(images, scores, strict=True):
        torch.testing.assert_close(results(network, image[None], True)[1][0], alone, rtol=0, atol=1e-12)


def test_order_of_sizes_and_images_changes_nothing():
    """Bit for bit: a resumed shard must be that of one run."""
    network, images = make("fcn8s").float(), random_images(40, 64).float()
    before = results(network, images, True)[1]
    for seed, size in enumerate([(64, 40), (40, 64), (20, 30), (21, 30), (22, 30), (23, 30), (24, 30)]):
        results(network, random_images(*size, seed=seed).float(), True)
    assert (40, 64) not in network.templates.maps
    assert torch.equal(results(network, images, True)[1], before)


@pytest.mark.slow
def test_full_width():
    """The trunk as published, the layers behind it narrow."""
    network = make("fcn8s", {"fc6": 16, "fc7": 16})
    assert network.trunk["conv5_3"].weight.shape == (512, 512, 3, 3)
    assert_equals_plain(network, random_images(41, 64))


def test_share_of_the_work():
    """Of an iteration at 188 x 252: 0.56 by counting the pixels of every layer by hand."""
    widths = {"conv1": 4, "conv2": 8, "conv3": 16, "conv4": 32, "conv5": 32, "fc6": 256, "fc7": 256}
    network, images = make("fcn8s", widths), random_images(188, 252)
    results(network, images, True)
    counts = []
    for elide in (True, False):
        with FlopCounterMode(display=False) as counter:
            results(network, images, elide)
        counts.append(counter.get_total_flops())
    assert counts[0] / counts[1] == pytest.approx(0.56, abs=0.015)


# When the border may be left out


@both_bodies
def test_plain_network_where_the_border_matters(name):
    network, images = make(name), random_images(20, 30)
    first = network.conv1 if name == "fcn-alexnet" else network.trunk["conv1_1"]
    called = []
    first.register_forward_hook(lambda *_: called.append(True))

    def elided(images: torch.Tensor) -> bool:
        called.clear(), network.templates.maps.clear()
        network.body(images)
        assert bool(network.templates.maps) != bool(called)
        return not called

    wanted = images.clone().requires_grad_()
    assert elided(wanted)
    assert elided(images + torch.zeros_like(images).requires_grad_())
    assert not elided(images)
    with torch.no_grad():
        assert not elided(wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert not elided(wanted)
    network.elide = False
    assert not elided(wanted)
    network.elide = True
    network.train()
    assert not elided(wanted)
    network.eval()
    next(network.score_fr.parameters()).requires_grad_()
    assert not elided(wanted)


@both_bodies
def test_gradients_of_weights_are_whole(name):
    network = make(name).requires_grad_(True)
    gradients = []
    for elide in (True, False):
        network.elide = elide
        network.zero_grad()
        network(random_images(20, 30).requires_grad_()).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def write_data(network):
    network.trunk["conv2_1"].weight.data.mul_(1.5)


def write_numpy(network):
    network.trunk["conv1_1"].bias.numpy()[...] += 0.5  # as dag.networks.caffe.caffemodel.load does


def write_in_place(network):
    network.trunk["conv3_3"].weight.mul_(1.5)


def load(network):
    network.load_state_dict(make("fcn8s", seed=1).state_dict())


def assign(network):
    network.load_state_dict(make("fcn8s", seed=1).state_dict(), assign=True)


def round_there_and_back(network):
    network.half().double()


def replace(network):
    network.trunk["conv5_1"] = copy.deepcopy(network.trunk["conv5_1"]).requires_grad_(False)
    network.trunk["conv5_1"].bias.neg_()


def swap(network):
    network.trunk["conv5_2"], network.trunk["conv5_3"] = network.trunk["conv5_3"], network.trunk["conv5_2"]


@pytest.mark.parametrize(
    "change", [write_data, write_numpy, write_in_place, load, assign, round_there_and_back, replace, swap]
)
def test_templates_of_other_weights_are_not_used(change):
    network, images = make("fcn8s"), random_images(20, 30)
    before = results(network, images, True)[1]
    change(network)
    assert_equals_plain(network, images)
    assert (results(network, images, True)[1] - before).abs().max() > 1e-6


def test_weights_elsewhere_are_compared_by_version():
    weight = torch.empty(3, device="meta")
    kept = border._Kept(weight)
    assert kept.equals(weight) and not kept.equals(torch.empty(3)) and not kept.equals(weight.half())
    weight.mul_(1.5)
    assert not kept.equals(weight)


@pytest.mark.gpu
@pytest.mark.parametrize("change", [write_in_place, load, assign, round_there_and_back, replace, swap])
def test_templates_of_other_weights_are_not_used_on_a_gpu(change):
    network, images = make("fcn8s").cuda(), random_images(20, 30).cuda()
    before = results(network, images, True)[1]
    change(network)
    network.cuda()
    assert_equals_plain(network, images)
    assert (results(network, images, True)[1] - before).abs().max() > 1e-6


def test_shapes_without_values():
    network = make("fcn8s").to("meta")
    images = torch.empty(1, 3, 20, 30, dtype=torch.float64, device="meta", requires_grad=True)
    assert network(images).shape == (1, 4, 20, 30)


def test_another_precision():
    network, images = make("fcn8s"), random_images(20, 30)
    results(network, images, True)
    network.float()
    elided, plain = (results(network, images.float(), elide)[1] for elide in (True, False))
    assert elided.dtype == torch.float32
    torch.testing.assert_close(elided, plain, rtol=0, atol=1e-5 * plain.abs().max().item())
    assert_equals_plain(network.double(), images)


def test_a_copy_has_its_own_templates():
    network, images = make("fcn8s"), random_images(20, 30)
    before = results(network, images, True)[1]
    other = copy.deepcopy(network)
    write_in_place(other)
    assert_equals_plain(other, images)
    assert torch.equal(results(network, images, True)[1], before)
    assert network.state_dict().keys() == other.state_dict().keys()
    assert not [key for key in network.state_dict() if "template" in key]


def test_few_sizes_are_kept_the_last_used_ones():
    network = make("fcn8s")
    for width in (10, 11, 12, 13, 10, 14):
        results(network, random_images(9, width), True)
    assert list(network.templates.maps) == [(9, width) for width in (12, 13, 10, 14)]
    made = network.templates.maps[9, 10]
    results(network, random_images(9, 10, seed=3), True)
    assert network.templates.maps[9, 10] is made


def test_the_caller_cannot_spoil_a_template():
    network, images = make("fcn8s"), random_images(20, 30).requires_grad_()
    maps = border.outputs(images - 120, network._blocks(), 5, network.templates)
    kept = [template.clone() for template in next(iter(network.templates.maps.values()))]
    for output in maps:
        output.detach().fill_(math.nan)
    for template, before in zip(next(iter(network.templates.maps.values())), kept, strict=True):
        assert torch.equal(template, before)


@pytest.mark.gpu
def test_on_another_device():
    network, images = make("fcn8s"), random_images(20, 30)
    results(network, images, True)
    network.cuda()
    assert_equals_plain(network, images.cuda())
    assert_equals_plain(network.cpu(), images)


# The checking command


class Probe(interface.Segmenter):
    """Notes whether the border is left out."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Conv2d(3, 2, 1), []

    def body(self, images):
        self.seen.append(getattr(self, "elide", None))
        return self.layer(images)

    def upsample(self, scores, size):
        return scores


def test_blobs_are_whole_maps():
    network, images = Probe(), random_images(4, 5).float()
    compare.blobs(network, images)
    assert not hasattr(network, "elide")
    network.elide = True
    compare.blobs(network, images)
    assert network.elide
    network.elide = False
    compare.blobs(network, images)
    assert network.seen == [None, False, False] and not network.elide

    network, images = make("fcn8s"), random_images(20, 30)
    results(network, images, True)
    found = compare.blobs(network, images)
    assert found["conv1_1"].shape[-2:] == (218, 228)
    np.testing.assert_allclose(found["score"], results(network, images, True)[1], rtol=0, atol=1e-10)
