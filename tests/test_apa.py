"""APA: who is replaced by what, how often, and how p moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stylegan2_fewshot import distributed
from stylegan2_fewshot.loss import StyleGAN2Loss
from stylegan2_fewshot.methods.apa import APA, overfitting
from stylegan2_fewshot.plugin import Plugins, Run, Step

SIZE = 4  # images per micro-batch


def make(*, p=0.0, batch_size=8, resumed=None, **options):
    apa = APA(**options)
    nothing = torch.nn.Identity()
    apa.setup(Run(nothing, nothing, batch_size=batch_size, resumed=resumed))
    apa.adaptive.p.fill_(p)
    return apa


def images(value, n=SIZE):
    return torch.full([n, 3, 2, 2], float(value))


def labels(value, n=SIZE):
    return torch.full([n, 2], float(value))


def generate(apa, *values, cur_nimg=0, n=SIZE):
    for value in values:
        apa.observe(Step("Gmain", cur_nimg, c=labels(value, n), img=images(value, n)))


def judge(apa, logits, phase="Dreal", cur_nimg=0):
    apa.observe(Step(phase, cur_nimg, logits=torch.tensor(logits).view(-1, 1)))


def test_p_zero_changes_no_bit():
    apa, real = make(), torch.randn(SIZE, 3, 2, 2)
    generate(apa, 5)
    for phase in ["Dreal", "Dr1"]:
        img, c = apa.real_images(real, labels(1), Step(phase))
        assert img.equal(real) and c.equal(labels(1))


@pytest.mark.parametrize("phase", ["Dreal", "Dr1"])
def test_p_one_shows_no_real_image_and_the_labels_of_the_fakes(phase):
    apa = make(p=1, max_=1)
    generate(apa, 5)
    img, c = apa.real_images(images(0), labels(0), Step(phase))
    assert img.equal(images(5)) and c.equal(labels(5))


def test_each_micro_batch_gets_its_own_fakes_and_r1_too():
    apa = make(p=1, max_=1)
    generate(apa, 5, 6, 7)
    for phase in ["Dreal", "Dr1"]:
        for value in [5, 6, 7]:
            img, c = apa.real_images(images(0), labels(0), Step(phase))
            assert img.equal(images(value)) and c.equal(labels(value))
    apa.after_step(0)
    generate(apa, 8)
    assert apa.real_images(images(0), labels(0), Step("Dreal"))[0].equal(images(8))


def test_what_d_is_shown_through_the_loss_with_accumulation():
    """At p = 1 no real image in the real branch: each micro-batch's own fakes of Gmain, twice."""
    apa, shown = make(p=1, max_=1), []
    weight = torch.ones([], requires_grad=True)

    def discriminate(img, c):
        assert img.flatten(1).eq(c[:, :1]).all()  # a fake's label is its value
        shown.append(img[0, 0, 0, 0].item())
        return (img * weight).mean([1, 2, 3])[:, None]

    def synthesize(ws):
        return ws[:, 0, :, None, None].expand(-1, 3, 2, 2)

    loss = StyleGAN2Loss(
        torch.device("cpu"),
        lambda z, c: z[:, None],
        synthesize,
        discriminate,
        Plugins({"apa": apa}),
        style_mixing_prob=0,
    )
    for phase, values in (("Gmain", [5, 6]), ("Dmain", [7, 8]), ("Dreg", [9, 9])):
        for value in values:
            z = labels(value)[:, :1]
            loss.accumulate_gradients(phase, images(0), labels(0), z, labels(value))
    in_turn = {"Gmain": [5, 6], "Dmain": [7, 5, 8, 6], "Dreg": [5, 6]}
    assert shown == [value for values in in_turn.values() for value in values]


def test_replacement_rate_is_p_and_label_goes_with_image():
    apa = make(p=0.3)
    generate(apa, 5, n=4000)
    img, c = apa.real_images(images(0, 4000), labels(0, 4000), Step("Dreal"))
    replaced = img[:, 0, 0, 0] == 5
    assert abs(replaced.float().mean() - 0.3) < 0.03
    assert img.eq(img[:, :1, :1, :1]).all() and c[:, 0].eq(5).equal(replaced)


def test_r1_is_drawn_anew_and_repeats_with_the_iteration():
    def draws(cur_nimg):
        apa = make(p=0.5)
        generate(apa, 5, cur_nimg=cur_nimg, n=64)
        passes = [Step(phase, cur_nimg) for phase in ["Dreal", "Dr1"]]
        return [apa.real_images(images(0, 64), labels(0, 64), s)[1][:, 0] for s in passes]

    main, r1 = draws(0)
    assert not main.equal(r1)
    assert main.equal(draws(0)[0]) and not main.equal(draws(8)[0])


def test_fakes_carry_no_graph():
    apa = make(p=1)
    apa.observe(Step("Gmain", c=labels(0), img=images(1).requires_grad_()))
    assert not apa.real_images(images(0), labels(0), Step("Dreal"))[0].requires_grad


def test_signals_by_hand():
    sums = torch.tensor([[2.0, 4.0], [-3.0, 12.0]])  # mean signs 0.5 and -0.25
    assert overfitting("lambda_r", sums) == 0.5
    assert overfitting("lambda_f", sums) == 0.25
    assert overfitting("lambda_rf", sums) == 0.375
    assert overfitting("lambda_rf", torch.zeros(2, 2)) == 0


@pytest.mark.parametrize(("signal", "rises"), [("lambda_r", 1), ("lambda_f", 0), ("lambda_rf", 1)])
def test_p_follows_its_signal(signal, rises):
    apa = make(signal=signal, target=0.4, kimg=1)
    for iteration in range(4):
        judge(apa, [1.0, 2.0, 3.0, 4.0])  # lambda_r = 1
        judge(apa, [-1.0, 1.0, -1.0, 1.0], "Dfake")  # lambda_f = 0
        apa.after_step(8 * iteration)
    assert apa.adaptive.p.item() == pytest.approx(rises * 8 * 4 / 1000)


def test_p_moves_every_fourth_iteration_as_published():
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], size=[48, SIZE], p=[0.2, 0.8])
    apa, expected = make(kimg=0.4, target=0.6), 0.0
    for iteration, row in enumerate(signs, start=1):
        judge(apa, row.tolist(), cur_nimg=8 * (iteration - 1))
        apa.after_step(8 * (iteration - 1))
        if iteration % 4 == 0:
            mean = signs[iteration - 4 : iteration].mean()
            expected += np.sign(mean - 0.6) * 8 * 4 / 400
            expected = min(max(expected, 0.0), 0.99)
        assert apa.adaptive.p.item() == pytest.approx(expected, abs=1e-6)
    assert expected > 0


def test_p_stays_within_its_bounds():
    apa = make(kimg=0.032, max_=0.7)
    for iteration in range(16):
        judge(apa, [1.0] * SIZE)
        apa.after_step(8 * iteration)
    assert apa.adaptive.p.item() == pytest.approx(0.7)


def test_state_round_trips_in_the_middle_of_an_interval():
    def train(apa, iterations):
        for iteration in iterations:
            judge(apa, [1.0] * SIZE if iteration < 3 else [-1.0] * SIZE)
            apa.after_step(8 * iteration)
        return apa

    whole, first, second = (make(kimg=1, target=0.4) for _ in range(3))
    second.load_state_dict(train(first, range(2)).state_dict())
    p = [apa.adaptive.p.item() for apa in (train(whole, range(4)), train(second, range(2, 4)))]
    assert p[0] == p[1] > 0  # the mean of the four is 0.5, that of the last two would be 0


def test_state_is_that_of_all_ranks_after_every_iteration(monkeypatch):
    """Rank 0's state is what all ranks resume from after an interruption."""
    apa = make(kimg=1)
    monkeypatch.setattr(distributed, "sum_", lambda mine: mine.mul_(2))  # another rank saw the same
    for iteration in range(3):
        judge(apa, [1.0, 1.0, 1.0, -1.0])
        judge(apa, [-1.0], "Dfake")
        apa.after_step(8 * iteration)
    assert apa.state_dict()["sums"].tolist() == [[12.0, 24.0], [-6.0, 6.0]]


@pytest.mark.parametrize(("resumed", "kimg"), [(None, 500), ("source.pkl", 100)])
def test_speed_depends_on_resume(resumed, kimg):
    apa = make(resumed=resumed)
    judge(apa, [1.0])
    apa.after_step(24)
    assert apa.adaptive.p.item() == pytest.approx(8 * 4 / (kimg * 1000))


@pytest.mark.parametrize(("signal_on", "expected"), [("mixed", 0.0), ("real", -1.0)])
def test_signal_on_real_leaves_out_what_was_replaced(signal_on, expected):
    apa = make(p=0.5, signal_on=signal_on)
    generate(apa, 5, n=2000)
    img, _ = apa.real_images(images(0, 2000), labels(0, 2000), Step("Dreal"))
    replaced = img[:, 0, 0, 0] == 5
    apa.observe(Step("Dreal", logits=torch.where(replaced, 1.0, -1.0).view(-1, 1)))
    apa.after_step(0)
    assert overfitting("lambda_r", apa.sums).item() == pytest.approx(expected, abs=0.1)
    assert (apa.sums[0, 1] == 2000) == (signal_on == "mixed")


def _on_a_rank(place, logits):
    torch.set_num_threads(1)
    distributed.init("cpu")
    rank = distributed.rank()
    apa = make(p=0.5, kimg=1)
    generate(apa, 5, n=64)
    _, c = apa.real_images(images(0, 64), labels(0, 64), Step("Dreal"))
    for iteration in range(4):
        judge(apa, logits[rank])
        apa.after_step(8 * iteration)
    torch.save((apa.adaptive.p, c), place / f"{rank}.pt")
    distributed.shutdown()


@pytest.mark.slow
def test_ranks_share_p_and_draw_on_their_own(tmp_path):
    logits = [1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, 1.0]  # 1 and -0.5: together below 0.6
    distributed.spawn(_on_a_rank, (tmp_path, logits), 2)
    (p, c), (other_p, other_c) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert p == other_p == pytest.approx(0.5 - 8 * 4 / 1000)
    assert not c.equal(other_c)


@pytest.mark.parametrize("wrong", [{"target": 1.5}, {"kimg": 0}, {"max_": 1.1}, {"max_": -0.1}])
def test_refuses_what_makes_no_sense(wrong):
    name = next(iter(wrong)).strip("_")
    with pytest.raises(ValueError, match=f"--apa-{name}"):
        APA(**wrong)
