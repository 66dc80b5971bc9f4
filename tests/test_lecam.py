"""LeCam: the penalty and the running means, by hand."""

from __future__ import annotations

import pytest
import torch

from stylegan2_fewshot.methods.lecam import LeCam, excess
from stylegan2_fewshot.plugin import Step


def step(phase, *logits, cur_nimg=0, **options):
    return Step(phase, cur_nimg, logits=torch.tensor(logits, **options).view(-1, 1))


def iterate(lecam, real, fake):
    lecam.observe(step("Dreal", *real))
    lecam.observe(step("Dfake", *fake))
    lecam.after_step(0)


def test_excess_by_hand():
    logits = torch.tensor([[3.0], [0.0]])
    assert excess(logits, torch.tensor(1.0), real=True) == 2.0  # (2^2 + 0) / 2
    assert excess(logits, torch.tensor(1.0), real=False) == 0.5  # (0 + 1^2) / 2


def test_means_start_with_the_first_batch_and_decay():
    lecam = LeCam(decay=0.75)
    iterate(lecam, [1.0, 3.0], [-4.0, -4.0])
    assert lecam.means.tolist() == [2.0, -4.0]
    iterate(lecam, [6.0], [0.0])
    assert lecam.means.tolist() == [3.0, -3.0]  # 0.75 * 2 + 0.25 * 6, 0.75 * -4


def test_micro_batches_are_one_batch_and_r1_is_none():
    lecam = LeCam()
    lecam.observe(step("Dreal", 1.0, 1.0, 1.0))
    lecam.observe(step("Dr1", 100.0))
    iterate(lecam, [5.0], [0.0])
    assert lecam.means.tolist() == [2.0, 0.0]


def test_penalty_pulls_to_the_other_side():
    lecam = LeCam(lambda_=0.5)
    iterate(lecam, [2.0], [-1.0])
    assert lecam.penalty(step("Dreal", 3.0, -5.0)) == 0.5 * (4**2 + 0) / 2
    assert lecam.penalty(step("Dfake", -2.0, 5.0)) == 0.5 * (4**2 + 0) / 2


def test_gradient():
    lecam = LeCam(lambda_=0.5).double()
    iterate(lecam, [2.0], [-1.0])
    lecam.means.copy_(torch.tensor([2.0, -1.0]))

    def penalty(logits):
        term = excess(logits, lecam.means[1], real=True)
        return term + excess(logits, lecam.means[0], real=False)

    logits = torch.tensor([[3.0], [-5.0], [0.5]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(penalty, [logits])
    lecam.penalty(Step("Dreal", logits=logits)).backward()
    assert logits.grad.flatten().tolist() == pytest.approx([0.5 * 2 * 4 / 3, 0, 0.5 * 2 * 1.5 / 3])


def test_nothing_before_the_first_means():
    lecam = LeCam(lambda_=1.0)
    assert lecam.penalty(step("Dreal", 3.0)) == 0


def test_none_at_weight_zero_elsewhere_and_before_the_start():
    idle, late = LeCam(), LeCam(lambda_=1.0, start_kimg=2)
    for lecam in [idle, late]:
        iterate(lecam, [1.0], [0.0])
    assert idle.penalty(step("Dreal", 3.0)) is None
    assert late.penalty(step("Dreal", 3.0, cur_nimg=1999)) is None
    assert late.penalty(step("Dreal", 3.0, cur_nimg=2000)) == 9
    for phase in ["Gmain", "Gpl", "Dr1"]:
        assert late.penalty(step(phase, 3.0, cur_nimg=2000)) is None


def test_state_goes_on_where_it_was(tmp_path):
    one, other = LeCam(lambda_=1.0), LeCam(lambda_=1.0)
    iterate(one, [1.0, 2.0], [-1.0, 0.5])
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for lecam in [one, other]:
        iterate(lecam, [0.3], [0.1])
    assert one.means.equal(other.means)
    assert one.penalty(step("Dreal", 3.0)) == other.penalty(step("Dreal", 3.0))


@pytest.mark.parametrize(
    "wrong", [{"lambda_": -1}, {"lambda_": float("nan")}, {"decay": 1.0}, {"decay": -0.1}]
)
def test_refuses_what_makes_no_sense(wrong):
    name = next(iter(wrong)).strip("_")
    with pytest.raises(ValueError, match=f"--lecam-{name}"):
        LeCam(**wrong)
