"""CDC: the divergence by hand, and what takes part in it."""

from __future__ import annotations

import copy
import math

import few_steps
import pytest
import torch

from stylegan2_fewshot.laws import ToyDiscriminator, ToyGenerator
from stylegan2_fewshot.methods.cdc import CDC, consistency, log_similarities
from stylegan2_fewshot.plugin import Plugins, Run, Step


def test_divergence_of_three_vectors_by_hand():
    """Cosines 0, 1 and 0 in the source; 1, 0 and 0 in the adapted generator."""
    source = torch.tensor([[1.0, 0.0], [0.0, 5.0], [2.0, 0.0]])
    adapted = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    p = math.e / (1 + math.e)  # softmax of 1 among (0, 1)
    torch.testing.assert_close(
        log_similarities(source).exp(),
        torch.tensor([[1 - p, p], [0.5, 0.5], [p, 1 - p]]),
    )
    first = p - (1 - p)  # KL((1-p, p) || (p, 1-p)) = (2p - 1) log(p / (1-p)), whose log is 1
    second = 0.5 * math.log(0.5 / (1 - p)) + 0.5 * math.log(0.5 / p)
    third = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    expected = (first + second + third) / 3
    assert consistency(adapted, source).item() == pytest.approx(expected, rel=1e-5)
    assert consistency(source, source).item() == pytest.approx(0, abs=1e-7)


def test_gradient():
    source = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    features = torch.randn(4, 3, 2, requires_grad=True)
    consistency(features.flatten(1), torch.cat([source, source], 1)).backward()
    along = (features.grad * features).flatten(1).sum(1)
    torch.testing.assert_close(along, torch.zeros(4), atol=1e-6, rtol=0)  # lengths do not matter


def step(cur_nimg=0):
    return Step("Gmain", cur_nimg, c=torch.zeros(2, 0), z=torch.zeros(2, 8))


def made(G, **options):
    plugins = Plugins.create({"cdc": options})
    plugins.setup(Run(G, ToyDiscriminator(), resumed="source.pkl"))
    return plugins


def test_only_g_gets_gradients_and_the_source_stays():
    torch.manual_seed(0)
    G = ToyGenerator()
    plugins = made(G)
    assert plugins.penalty(step()).item() == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        G.synthesis.const += torch.randn(4, 4, 4)
    state = torch.random.get_rng_state()
    term = plugins.penalty(step())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert term.item() > 1e-3
    term.backward()
    assert G.synthesis.const.grad.any() and not list(plugins.state_dict())
    assert plugins.penalty(step()).item() != term.item()  # the next part of the batch: other z


def test_a_resumed_run_compares_with_the_same_source():
    torch.manual_seed(0)
    G = ToyGenerator()
    start = copy.deepcopy(G)
    plugins = made(G)
    with torch.no_grad():
        G.synthesis.const += 1
    resumed = made(start)
    start.load_state_dict(G.state_dict())
    assert torch.equal(plugins.penalty(step(8)), resumed.penalty(step(8)))


def test_refusals():
    with pytest.raises(ValueError, match="--cdc-lambda=1000 needs --resume"):
        CDC().setup(Run(ToyGenerator(), ToyDiscriminator()))
    with pytest.raises(ValueError, match="--cdc-batch must be at least 3"):
        CDC(batch=2)
    with pytest.raises(ValueError, match="--cdc-lambda must not be negative, got nan"):
        CDC(lambda_=float("nan"))
    assert CDC(lambda_=0.0).penalty(step()) is None


def test_a_resumed_run_is_the_same():
    few_steps.assert_resumes({"cdc": {}})
