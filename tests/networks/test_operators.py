"""The compiled operators against torchvision's own Python functions and against literal loops."""

import itertools

import numpy as np
import pytest
import torch
import torchvision.ops
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dag.networks.layers import operators


def random_boxes(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    corners = rng.uniform((0, 0, 0, 0), (width - 1, height - 1, width - 1, height - 1), (count, 4))
    low, high = np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])
    return torch.from_numpy(np.concatenate([low, high], 1)).float()


def random_rois(count: int, images: int, height: int, width: int) -> torch.Tensor:
    image = torch.arange(count) % images
    return torch.cat([image[:, None].float(), random_boxes(count, height, width)], 1)


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
def test_nms_is_greedy(threshold):
    boxes, scores = random_boxes(200, 40, 50), torch.rand(200, generator=torch.Generator().manual_seed(1))
    left = scores.argsort(descending=True).tolist()
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        iou = torchvision.ops.box_iou(boxes[best][None], boxes)[0]
        left = [row for row in left if iou[row] <= threshold]
    assert operators.nms(boxes, scores, threshold).tolist() == kept
    assert torchvision.ops.nms(boxes, scores, threshold).tolist() == kept


def test_class_nms_is_nms_of_each_class():
    generator = torch.Generator().manual_seed(2)
    boxes, scores = random_boxes(120, 40, 50), torch.rand(120, generator=generator)
    classes = torch.randint(4, (120,), generator=generator)
    kept = operators.class_nms(boxes, scores, classes, 0.4)
    separately = [rows[operators.nms(boxes[rows], scores[rows], 0.4)]
                  for rows in ((classes == c).nonzero()[:, 0] for c in range(4))]  # fmt: skip
    assert set(kept.tolist()) == set(torch.cat(separately).tolist())
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)
    assert len(operators.class_nms(boxes[:0], scores[:0], classes[:0], 0.4)) == 0


@pytest.mark.parametrize("name", ["roi_pool", "ps_roi_pool"])
def test_pooling_equals_torchvision(name):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 18, 13, 17, generator=generator)
    rois = random_rois(60, 2, 13 * 8, 17 * 8)
    weights = torch.randn(60, 18 if name == "roi_pool" else 2, 3, 3, generator=generator)
    results = []
    for module in (operators, torchvision.ops):
        maps = features.clone().requires_grad_()
        pooled = getattr(module, name)(maps, rois, 3, 1 / 8)
        (pooled * weights).sum().backward()
        results.append((pooled.detach(), maps.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1])


def test_roi_pool_by_hand():
    """The cells of a box of 4 x 4 pixels, corners inclusive, at a scale of 1."""
    features = torch.arange(36.0).view(1, 1, 6, 6)
    pooled = operators.roi_pool(features, torch.tensor([[0.0, 1, 1, 4, 4]]), 2, 1.0)
    assert pooled.tolist() == [[[[14.0, 16.0], [26.0, 28.0]]]]


def cells(start: float, step: float, count: int, end: int) -> list[tuple[int, int, int]]:
    """Number, first and last + 1 place of the cells along one side, cut to 0..end."""
    numbers = np.arange(count, dtype=np.float32)
    edges = np.floor(numbers * step) + start, np.ceil((numbers + 1) * step) + start
    return [(int(number), *(int(np.clip(edge[int(number)], 0, end)) for edge in edges)) for number in numbers]


def test_ps_roi_pool_equals_a_loop():
    """Corners are rounded on the feature grid; the last row and column of the map never take part."""
    size, scale, classes = 3, 0.25, 2
    features = torch.randn(2, classes * size**2, 9, 11, generator=torch.Generator().manual_seed(4))
    rois = random_rois(30, 2, 36, 44)
    expected = np.zeros((30, classes, size, size))
    for r, (image, *box) in enumerate(rois.numpy()):
        left, top, right, bottom = np.floor(np.array(box) * np.float32(scale) + np.float32(0.5))
        across = cells(left, max(right - left, np.float32(1)) / np.float32(size), size, 10)
        down = cells(top, max(bottom - top, np.float32(1)) / np.float32(size), size, 8)
        for c, (i, *rows), (j, *columns) in itertools.product(range(classes), down, across):
            channel = (c * size + i) * size + j
            cell = features[int(image), channel, slice(*rows), slice(*columns)]
            expected[r, c, i, j] = cell.mean() if cell.numel() else 0
    got = operators.ps_roi_pool(features, rois, size, scale)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_perceptron_and_its_gradient(factor, share):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 5).double(), nn.Linear(5, 4).double()]
    rows = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    expected = rows
    for layer in layers:
        expected = layer(expected).relu() * factor
    found = operators.perceptron(rows, layers, factor)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(10, 4, dtype=torch.float64) * (torch.rand(10, 1) < share)
    here, there = (torch.autograd.grad((f * weights).sum(), rows)[0] for f in (found, expected))
    torch.testing.assert_close(here, there)
    assert torch.equal(here[(weights == 0).all(1)], torch.zeros_like(here[(weights == 0).all(1)]))


def test_perceptron_does_no_work_for_rows_without_a_gradient():
    seen = []
    layers = [nn.Linear(3, 3)]
    rows = torch.randn(8, 3, requires_grad=True)

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if "mm" in str(function):
                seen.append(len(arguments[0]))
            return function(*arguments, **(keywords or {}))

    (out,) = operators.perceptron(rows, layers)[5:6]
    with Products():
        torch.autograd.grad(out.sum(), rows)
    assert seen == [1]


def test_roi_pool_leaves_out_rows_without_a_gradient():
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 9, 9, dtype=torch.float64, requires_grad=True)
    corner = torch.randint(0, 60, (6, 2))
    rois = torch.cat([torch.zeros(6, 1), corner, corner + torch.randint(20, 80, (6, 2))], 1).double()
    weights = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    weights[[0, 3, 4]] = 0
    (together,) = torch.autograd.grad((operators.roi_pool(maps, rois, 3, 1 / 16) * weights).sum(), maps)
    single = [operators.roi_pool(maps, rois[k : k + 1], 3, 1 / 16) * weights[k] for k in (1, 2, 5)]
    (alone,) = torch.autograd.grad(sum(one.sum() for one in single), maps)
    torch.testing.assert_close(together, alone)
