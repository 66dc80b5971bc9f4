"""AdAM: modulation and masks by hand, and which filters keep the source's weights."""

from __future__ import annotations

import few_steps
import pytest
import torch

from stylegan2_fewshot import filters
from stylegan2_fewshot.laws import ToyDiscriminator, ToyGenerator
from stylegan2_fewshot.methods.adam import AdAM, important, modulated, slopes
from stylegan2_fewshot.plugin import Plugins, Run

SETTINGS = {"percentile": 50.0, "probe": 2, "batches": 2}
ON = {"adam": SETTINGS}


def test_masks_of_a_linear_network_by_hand():
    """Rows w with outputs w x, x = (1, 3), under errors e: mean squares of gradients 5 e^2."""
    fisher = {}
    for name, errors in (("a", [1.0, 3.0]), ("b", [0.0, 2.0])):
        weight = torch.zeros(2, 2, requires_grad=True)
        (weight @ torch.tensor([1.0, 3.0]) * torch.tensor(errors)).sum().backward()
        fisher[name] = filters.importance(weight.grad)
    assert fisher["a"].tolist() == [5, 45] and fisher["b"].tolist() == [0, 20]
    masks = {name: mask.tolist() for name, mask in important(fisher, 50).items()}
    assert masks == {"a": [False, True], "b": [False, True]}  # above 12.5
    masks = {name: mask.tolist() for name, mask in important(fisher, 75).items()}
    assert masks == {"a": [False, True], "b": [False, False]}  # above 26.25


def test_modulation_by_hand_and_its_slopes():
    source = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, :, None, None]
    u, v = torch.tensor([1.0, 0.0]), torch.tensor([0.5, -1.0])
    assert modulated(source, u, v).flatten().tolist() == [1.5, 0, 3, 4]
    u.requires_grad_(), v.requires_grad_()
    (modulated(source, u, v) ** 3).sum().backward()
    grad = 3 * modulated(source, u, v).detach() ** 2
    of_u, of_v = slopes(grad, source, u.detach(), v.detach())
    torch.testing.assert_close((of_u, of_v), (u.grad, v.grad))


def test_the_probe_moves_nothing_but_convolutions_and_starts_again():
    state = few_steps.begin(ON)
    before = few_steps.parameters(state)
    during = few_steps.parameters(few_steps.iterate(state, 1))
    moved = few_steps.moved(before, during)
    assert moved and all(filters.is_convolution(name, before[name]) for name in moved)
    assert not state.optimizers["G"].state and not state.optimizers["D"].state
    assert not few_steps.moved(before, few_steps.parameters(few_steps.iterate(state, 1)))


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_what_matters_follows_the_factors_alone(beta1):
    state = few_steps.begin(ON, beta1=beta1)
    before = few_steps.parameters(state)
    few_steps.iterate(state, 5)
    after, adam = few_steps.parameters(state), state.plugins["adam"]
    kept = adam.state_dict()
    for name, value in before.items():
        if not filters.is_convolution(name, value):
            continue
        mask = kept[f"{name.replace('.', '/')}:modulated"]
        assert torch.equal(kept[f"{name.replace('.', '/')}:source"], value)
        want = modulated(value, adam.factors[f"{name}.u"], adam.factors[f"{name}.v"])
        assert torch.equal(after[name][mask], want[mask])
        assert (after[name][~mask] != value[~mask]).flatten(1).any(1).all()
    assert "G.mapping.fc0.weight" in few_steps.moved(before, after)


def test_a_resumed_run_is_the_same():
    few_steps.assert_resumes(ON, before=1, after=3)  # through the end of the probe
    few_steps.assert_resumes(ON, before=3, after=2)


def test_refusals():
    with pytest.raises(ValueError, match="--adam-percentile=50 needs --resume"):
        AdAM().setup(Run(ToyGenerator(), ToyDiscriminator()))
    with pytest.raises(ValueError, match="--adam-percentile must be from 0 to 100, got -1"):
        AdAM(percentile=-1)
    with pytest.raises(ValueError, match="--adam-batches=250 must be from 1 to --adam-probe=100"):
        AdAM(probe=100)
    with pytest.raises(ValueError, match="adam and fsgan both set the networks' weights"):
        Plugins.create({"adam": {}, "fsgan": {}})
