"""FSGAN: factors of singular values by hand, and what stays."""

from __future__ import annotations

import few_steps
import pytest
import torch

from stylegan2_fewshot.factors import Factors
from stylegan2_fewshot.laws import ToyDiscriminator, ToyGenerator
from stylegan2_fewshot.methods.fsgan import FSGAN, decomposed, recomposed, slope
from stylegan2_fewshot.plugin import Plugins, Run

ON = {"fsgan": {"fsgan": "GD"}}


def test_factors_of_a_linear_network_by_hand():
    """W = diag(3, 2), loss = sum of (W x)^2 / 2 with x = (1, 1): the slope is (9, 4)."""
    weight = torch.diag(torch.tensor([3.0, 2.0])).requires_grad_()
    (weight @ torch.ones(2)).square().sum().div(2).backward()
    us, vt = decomposed(weight)
    torch.testing.assert_close(slope(weight.grad, us, vt), torch.tensor([9.0, 4.0]))
    factors = torch.tensor([2.0, 0.5])
    torch.testing.assert_close(
        recomposed(weight.detach(), us, vt, factors), torch.diag(torch.tensor([6.0, 1.0]))
    )
    assert torch.equal(recomposed(weight.detach(), us, vt, torch.ones(2)), weight)


def test_slope_is_that_of_the_whole_computation():
    rng = torch.Generator().manual_seed(0)
    weight, target = (torch.randn(4, 2, 3, 3, generator=rng) for _ in "wt")
    us, vt = decomposed(weight)
    factors = torch.linspace(0.5, 1.5, 4, requires_grad=True)
    ours = recomposed(weight, us, vt, factors)
    ((ours - target) ** 4).sum().backward()
    of_weight = 4 * (ours.detach() - target) ** 3
    torch.testing.assert_close(slope(of_weight, us, vt), factors.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("betas", [(0.0, 0.99), (0.9, 0.999)])
def test_the_factors_adam_is_that_of_torch(betas):
    start = torch.tensor([1.0, -2.0])
    settings = {"G": {"lr": 0.1, "betas": betas}}
    factors, reference = Factors({"G.b": start}, settings), start.clone()
    optimizer = torch.optim.Adam([reference], lr=0.1, betas=betas)
    for grad in ([1.0, 0.1], [-3.0, 0.0], [0.5, 2.0]):
        reference.grad = torch.tensor(grad)
        optimizer.step()
        torch.testing.assert_close(factors.step("G.b", torch.tensor(grad)), reference)
    assert start.tolist() == [1.0, -2.0]


def test_only_weights_move_and_only_along_singular_values():
    state = few_steps.begin(ON)
    before = few_steps.parameters(state)
    after = few_steps.parameters(few_steps.iterate(state, 2))
    changed = few_steps.moved(before, after)
    assert changed == {n for n, p in before.items() if p.ndim in (2, 4)}
    for name in changed:
        us, vt = decomposed(before[name])
        change = (after[name] - before[name]).flatten(1).T
        rotated = vt @ change @ torch.nn.functional.normalize(us, dim=0)
        torch.testing.assert_close(rotated, rotated.diag().diag(), rtol=0, atol=1e-4)
    assert not state.optimizers["G"].state and not state.optimizers["D"].state


def test_a_resumed_run_is_the_same():
    few_steps.assert_resumes(ON)


def test_another_network_is_trained_as_usual():
    state = few_steps.begin({"fsgan": {"fsgan": "G"}})
    assert len(state.trained["D"]) == len(list(state.D.parameters()))
    few_steps.iterate(state, 1)
    assert state.optimizers["D"].state and not state.optimizers["G"].state


def test_refusals():
    with pytest.raises(ValueError, match="--fsgan=GD needs --resume"):
        FSGAN().setup(Run(ToyGenerator(), ToyDiscriminator()))
    other = FSGAN()
    with pytest.raises(ValueError, match="fsgan and other both set the networks"):
        Plugins({"fsgan": FSGAN(), "other": other})
