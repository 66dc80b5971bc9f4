"""The modulated convolution's own derivatives, against those that transforms compute without it."""

from __future__ import annotations

import pytest
import torch

from stylegan2_fewshot.ops import modulated_conv2d


def energy(weight, styles, x):
    return modulated_conv2d(x, weight, styles, padding=1, fused_modconv=False).square().sum()


def drawn():
    torch.manual_seed(0)
    return torch.randn(6, 4, 3, 3), torch.randn(2, 4) + 1, torch.randn(2, 4, 5, 5)


def test_demodulation_has_the_gradient_of_its_formula():
    inputs = [x.requires_grad_() for x in drawn()]
    got = torch.autograd.grad(energy(*inputs), inputs)
    want = torch.func.grad(energy, argnums=(0, 1, 2))(*drawn())
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_demodulation_has_second_derivatives():
    def slope(weight, styles, x):
        return torch.func.grad(energy, argnums=1)(weight, styles, x).square().sum()

    inputs = [x.requires_grad_() for x in drawn()]
    (first,) = torch.autograd.grad(energy(*inputs), inputs[1:2], create_graph=True)
    got = torch.autograd.grad(first.square().sum(), inputs)
    want = torch.func.grad(slope, argnums=(0, 1, 2))(*drawn())
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [True, False])
def test_a_filter_of_zeros_gives_zeros_and_finite_gradients(dtype, fused):
    weight, styles, x = drawn()
    weight[2] = 0
    inputs = [weight.requires_grad_(), styles.requires_grad_(), x.to(dtype).requires_grad_()]
    made = modulated_conv2d(inputs[2], *inputs[:2], padding=1, fused_modconv=fused)
    assert not made[:, 2].any() and made[:, 0].all()
    for gradient in torch.autograd.grad(made.float().square().sum(), inputs):
        assert gradient.isfinite().all() and gradient.any()
