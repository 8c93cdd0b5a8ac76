"""The check of gradients passes right ones and refuses wrong ones."""

import finite_differences
import pytest
import torch


class _Scaled(torch.autograd.Function):
    """x^3 with a gradient that is off by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor * 3 * ctx.saved_tensors[0] ** 2, None


X = torch.linspace(0.5, 2, 12, dtype=torch.float64).view(3, 4)
CHECKS = [finite_differences.assert_derivative, finite_differences.assert_gradient]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-6])
def test_a_right_gradient_passes(check, step):
    check(lambda x: _Scaled.apply(x, 1.0), X, step)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("factor", [1.01, 0.99, -1.0, 0.0])
def test_a_wrong_gradient_is_refused(check, factor):
    with pytest.raises(AssertionError, match="central difference"):
        check(lambda x: _Scaled.apply(x, factor), X, 1e-5)


def test_one_wrong_value_of_many_is_refused():
    gradient = 3 * X**2
    gradient[1, 2] *= 1.02
    with pytest.raises(AssertionError, match="central difference"):
        finite_differences.assert_gradient(lambda x: x**3, X, 1e-5, gradient)


def test_a_step_that_can_tell_nothing_is_refused():
    with pytest.raises(AssertionError, match="choose another step"):
        finite_differences.assert_gradient(lambda x: x**3, X, 1e-13)
    with pytest.raises(AssertionError, match="nothing depends on the input"):
        finite_differences.assert_gradient(lambda x: 0 * x, X, 1e-5)
