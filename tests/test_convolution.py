"""The modulated convolution's own derivatives, against those that transforms compute without it."""

from __future__ import annotations

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
