"""DCL: InfoNCE by hand, and what takes part in it."""

from __future__ import annotations

import math

import few_steps
import pytest
import torch

from stylegan2_fewshot.laws import ToyDiscriminator, ToyGenerator
from stylegan2_fewshot.methods.dcl import DCL, contrast
from stylegan2_fewshot.plugin import Run, Step


def test_infonce_by_hand():
    """Cosines of two adapted with two source vectors: (1, 0) and (0.6, 0.8)."""
    adapted = torch.tensor([[2.0, 0.0], [3.0, 4.0]])
    source = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(0)))
    second = -math.log(math.exp(1.6) / (math.exp(1.2) + math.exp(1.6)))
    result = contrast(adapted, source, temperature=0.5).item()
    assert result == pytest.approx((first + second) / 2, rel=1e-6)


def test_each_network_gets_its_own_term():
    state = few_steps.begin({"dcl": {}})
    dcl, before = state.plugins["dcl"], torch.random.get_rng_state()
    z, c = torch.zeros(2, 8), torch.zeros(2, 0)
    for phase, net, other in (("Gmain", state.G, state.D), ("Dfake", state.D, state.G)):
        net.requires_grad_(True)
        dcl.penalty(Step(phase, z=z, c=c)).backward()
        assert any(p.grad is not None and p.grad.any() for p in net.parameters())
        assert all(p.grad is None for p in other.parameters())
        net.requires_grad_(False).zero_grad()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert dcl.penalty(Step("Dreal", z=z, c=c)) is None


def test_a_resumed_run_is_the_same():
    few_steps.assert_resumes({"dcl": {}})


def test_refusals():
    with pytest.raises(ValueError, match="--dcl-g=2 needs --resume"):
        DCL().setup(Run(ToyGenerator(), ToyDiscriminator()))
    for wrong, text in (
        ({"g": -1.0}, "--dcl-g must not be negative"),
        ({"temperature": 0.0}, "--dcl-temperature must be positive"),
        ({"batch": 1}, "--dcl-batch must be at least 2"),
    ):
        with pytest.raises(ValueError, match=text):
            DCL(**wrong)
