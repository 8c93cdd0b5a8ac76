"""Convolutions that compute less yield what torch's do, and really compute less."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dag.networks.layers.convolutions import lean

# groups, channels, output channels, kernel, stride, padding, dilation, size of the maps; whether it is changed
CASES = {
    "depthwise, dilated": ((8, 8, 8, 5, 1, 4, 2, (9, 12)), True),
    "depthwise": ((8, 8, 8, 5, 1, 2, 1, (9, 12)), True),
    "depthwise, no padding": ((8, 8, 8, 3, 1, 0, 1, (9, 12)), True),
    "depthwise, taps outside": ((8, 8, 8, 5, 1, 12, 6, (5, 7)), True),
    "depthwise, outside in one direction": ((8, 8, 8, 3, 1, 6, 6, (6, 7)), True),
    "depthwise, more padding than taps": ((8, 8, 8, 3, 1, 3, 1, (9, 12)), False),
    "depthwise, strided": ((8, 8, 8, 3, 2, 1, 1, (9, 12)), False),
    "two outputs per channel": ((8, 8, 16, 3, 1, 1, 1, (9, 12)), False),
    "one output a group of three": ((4, 12, 4, 1, 1, 0, 1, (9, 12)), True),
    "one output a group, strided": ((4, 12, 4, 1, 2, 0, 1, (9, 12)), False),
    "one output a group, padded": ((4, 12, 4, 1, 1, 1, 1, (9, 12)), False),
    "two outputs a group": ((4, 12, 8, 1, 1, 0, 1, (9, 12)), False),
    "one group": ((1, 12, 1, 1, 1, 0, 1, (9, 12)), False),
    "the centre remains": ((1, 6, 4, 3, 1, 36, 36, (24, 32)), True),
    "a row remains": ((1, 6, 4, 3, 1, 24, 24, (24, 32)), True),
    "taps at the rim": ((1, 6, 4, 3, 1, 23, 23, (24, 32)), True),
    "two of five taps": ((1, 6, 4, 5, 1, 12, 6, (8, 20)), True),
    "dilated, strided": ((1, 6, 4, 3, 2, 8, 8, (6, 20)), True),
    "dilated, little padding": ((1, 6, 4, 3, 1, 2, 4, (9, 9)), True),
    "even kernel": ((1, 6, 4, 2, 1, 3, 3, (5, 9)), True),
    "different axes": ((1, 4, 4, (1, 3), 1, (0, 2), (1, 2), (3, 2)), True),
}


def results(layer: nn.Module, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and gradient of a weighted sum of it."""
    x = maps.clone().requires_grad_()
    output = layer(x)
    weights = torch.rand(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
    return output.detach(), torch.autograd.grad((output * weights).sum(), x)[0]


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradient_are_those_of_torch(name, form):
    (groups, channels, outputs, kernel, stride, padding, dilation, size), changed = CASES[name]
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, groups).double().requires_grad_(False)
    layer = layer.to(memory_format=form)
    maps = torch.randn(2, channels, *size, dtype=torch.float64)
    expected, kind = results(layer, maps), type(layer)
    names = list(layer.state_dict())
    found = results(lean(layer), maps)
    assert (type(layer) is not kind) is changed and list(layer.state_dict()) == names
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dilation", "taps"), [(36, 1), (24, 3), (12, 9)])
def test_taps_that_see_padding_alone_cost_nothing(dilation, taps):
    layer = nn.Conv2d(5, 7, 3, padding=dilation, dilation=dilation).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        lean(layer)(torch.rand(1, 5, 24, 32))
    assert counter.get_total_flops() == 2 * 5 * 7 * taps * 24 * 32


def test_weights_still_get_gradients_where_they_want_them():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    maps = torch.rand(1, 4, 6, 7)
    (expected,) = torch.autograd.grad(layer(maps).square().sum(), layer.weight)
    (found,) = torch.autograd.grad(lean(layer)(maps).square().sum(), layer.weight)
    torch.testing.assert_close(found, expected)


def test_other_ways_of_padding_are_left_alone():
    for layer in (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4), nn.Conv2d(4, 4, 3, padding="same")):
        assert type(lean(layer)) is nn.Conv2d
