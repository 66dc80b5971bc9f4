"""RICK: masks by hand, and which filters stay."""

from __future__ import annotations

import few_steps
import pytest
import torch

from stylegan2_fewshot import filters
from stylegan2_fewshot.laws import ToyDiscriminator, ToyGenerator
from stylegan2_fewshot.methods.rick import RICK, masks
from stylegan2_fewshot.plugin import Run

SETTINGS = {"freeze": 50.0, "prune": 10.0, "warmup": 2, "every": 2, "batches": 2}
ON = {"rick": SETTINGS}


def test_masks_of_a_linear_network_by_hand():
    """Two layers of rows w with outputs w x, x = (1, 2): a row's gradient is e (1, 2), its mean
    square e^2 5 / 2, for e = 0, 1, 2 in one layer and 3, 4 in the other."""
    x, fisher = torch.tensor([1.0, 2.0]), {}
    for name, errors in (("a", [0.0, 1.0, 2.0]), ("b", [3.0, 4.0])):
        weight = torch.zeros(len(errors), 2, requires_grad=True)
        (weight @ x * torch.tensor(errors)).sum().backward()
        fisher[name] = filters.importance(weight.grad)
    assert fisher["a"].tolist() == [0, 2.5, 10] and fisher["b"].tolist() == [22.5, 40]
    none = {"a": torch.zeros(3, dtype=torch.bool), "b": torch.zeros(2, dtype=torch.bool)}
    frozen, removed = masks(fisher, none, freeze=50, prune=25)  # median 10, quartile 2.5
    assert frozen["a"].tolist() == [False] * 3 and frozen["b"].tolist() == [True, True]
    assert removed["a"].tolist() == [True, True, False] and not removed["b"].any()
    frozen, later = masks(fisher, removed, freeze=100, prune=0)
    assert not frozen["a"].any() and not frozen["b"].any()
    assert later["a"].tolist() == [True, True, False] and not later["b"].any()
    _, later = masks(fisher, removed, freeze=90, prune=10)  # of those left, the least goes
    assert later["a"].tolist() == [True, True, True] and not later["b"].any()


def test_percentile_is_interpolated():
    values = [torch.tensor([4.0, 0.0]), torch.tensor([[1.0]])]
    assert [float(filters.percentile(values, p)) for p in (0, 25, 50, 75, 100)] == [
        0,
        0.5,
        1,
        2.5,
        4,
    ]


def test_at_first_only_the_last_layers_of_d_move():
    state = few_steps.begin(ON)
    before = few_steps.parameters(state)
    few_steps.iterate(state, 1)
    changed = few_steps.moved(before, few_steps.parameters(state))
    assert changed == {name for name in before if name.startswith("D.b4.")}
    assert not state.optimizers["G"].state


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_frozen_filters_stay_and_removed_ones_are_zero(beta1):
    state = few_steps.iterate(few_steps.begin(ON, beta1=beta1), 4)  # momentum has been built up
    rick, before = state.plugins["rick"], few_steps.parameters(state)
    seen_by_d = []  # G as its images for D are made, between the two optimizers' steps

    def look(*_):
        seen_by_d.extend([] if torch.is_grad_enabled() else [few_steps.parameters(state)])

    state.G.synthesis.register_forward_pre_hook(look)
    marks = {key: value.clone() for key, value in rick.state_dict().items()}
    after = few_steps.parameters(few_steps.iterate(state, 1))
    seen = set()
    for name, value in before.items():
        if not filters.is_convolution(name, value):
            continue
        key = name.replace(".", "/")
        frozen, pruned = marks[f"{key}:frozen"], marks[f"{key}:pruned"]
        assert torch.equal(after[name][frozen], value[frozen])
        assert seen_by_d and all(torch.equal(p[name][frozen], value[frozen]) for p in seen_by_d)
        assert not value[pruned].any() and not after[name][pruned].any()
        free = ~(frozen | pruned)
        assert (after[name][free] != value[free]).flatten(1).any(1).all()
        seen |= {*frozen[frozen].tolist(), "free" if free.any() else None}
        seen |= {"pruned"} if pruned.any() else set()
    assert {True, "free", "pruned"} <= seen


def test_a_resumed_run_is_the_same():
    few_steps.assert_resumes(ON, before=3, after=2)


def test_refusals():
    with pytest.raises(ValueError, match="--rick-freeze=40 needs --resume"):
        RICK().setup(Run(ToyGenerator(), ToyDiscriminator()))
    for wrong, text in (
        ({"freeze": 101.0}, "--rick-freeze must be from 0 to 100, got 101"),
        ({"prune": 50.0}, "--rick-prune=50 must be less than --rick-freeze=40"),
        ({"warmup": -1}, "--rick-warmup must not be negative"),
        ({"batches": 51}, "--rick-batches=51 must be from 1 to --rick-every=50"),
    ):
        with pytest.raises(ValueError, match=text):
            RICK(**wrong)
