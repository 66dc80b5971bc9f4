"""What becomes of gradients between the losses and the optimizers."""

from __future__ import annotations

import math

import torch
from torch import nn

from training.phases import align, make_finite


def test_what_is_not_finite_is_replaced_and_nothing_else():
    grads = [torch.tensor([1e30, -2e6, 0.5]), torch.tensor([[math.inf, -math.inf], [math.nan, 3]])]
    make_finite(grads)
    assert grads[0].tolist() == torch.tensor([1e30, -2e6, 0.5]).tolist()
    assert grads[1].tolist() == [[1e5, -1e5], [0, 3]]
    make_finite([])


def test_a_gradient_of_another_layout_reaches_the_fused_optimizer_as_it_is():
    torch.manual_seed(0)
    start, grad = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    results = []
    for layout, fused in ((torch.contiguous_format, False), (torch.channels_last, True)):
        param = nn.Parameter(start.clone(memory_format=layout))
        optimizer = torch.optim.Adam([param], lr=0.1, fused=fused)
        for _ in range(2):
            param.grad = grad.clone()
            align([param])
            optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results)


def test_parameters_without_a_gradient_stay_without():
    param = nn.Parameter(torch.zeros(2))
    align([param])
    assert param.grad is None
