"""ADA: the pipe's transforms and their draws, and the probability that drives it."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats as st

from stylegan2_fewshot import Plugins, Run, Step, distributed
from stylegan2_fewshot.augment.pipe import (
    AugmentPipe,
    Draw,
    Settings,
    color_maps,
    cut_out,
    recolor,
    sample,
)
from stylegan2_fewshot.augment.warp import SYM2, filter_bank, warp
from stylegan2_fewshot.methods.ada import ADA, create_pipe
from stylegan2_fewshot.methods.fixed import Fixed

GOLDEN = np.load(Path(__file__).parent / "golden" / "augment_small.npz")
CASES = json.loads(str(GOLDEN["cases"]))
EVERYTHING = Settings(**dict.fromkeys(create_pipe("bgcfnc", p=1).init_kwargs, 1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=generator(seed), dtype=dtype) * 2 - 1


def draws(p: float, n: int = 20_000, settings: Settings = EVERYTHING) -> dict[str, torch.Tensor]:
    return sample(settings, Draw(n, p, None, generator(1)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_recorded_numbers(case):
    out = AugmentPipe(**case["kwargs"])(
        torch.from_numpy(GOLDEN[case["input"]]), debug_percentile=case["debug_percentile"]
    )
    torch.testing.assert_close(out, torch.from_numpy(GOLDEN[case["id"]]), atol=1e-5, rtol=0)


def test_buffers_equal_the_recorded_ones():
    pipe = AugmentPipe()
    for name in ("Hz_geom", "Hz_fbank"):
        got = getattr(pipe, name)
        torch.testing.assert_close(got, torch.from_numpy(GOLDEN[name]), atol=1e-7, rtol=0)
    assert sorted(pipe.state_dict()) == ["Hz_fbank", "Hz_geom", "p"]


def test_bands_sum_to_the_identity():
    total = filter_bank(SYM2).sum(axis=0)
    np.testing.assert_allclose(total, np.eye(1, 43, 21)[0], atol=1e-12)


CONTINUOUS = {
    "xint": st.uniform(-0.125, 0.25),
    "scale": st.norm(0, 0.2),
    "rotate_before": st.uniform(-math.pi, 2 * math.pi),
    "rotate_after": st.uniform(-math.pi, 2 * math.pi),
    "aniso": st.norm(0, 0.2),
    "xfrac": st.norm(0, 0.125),
    "brightness": st.norm(0, 0.2),
    "contrast": st.norm(0, 0.5),
    "hue": st.uniform(-math.pi, 2 * math.pi),
    "saturation": st.norm(0, 1),
    "imgfilter0": st.norm(0, 1),
    "imgfilter1": st.norm(0, 1),
    "imgfilter2": st.norm(0, 1),
    "imgfilter3": st.norm(0, 1),
    "noise": st.halfnorm(0, 0.1),
    "cutout": st.uniform(0, 1),
}
DISCRETE = {"xflip": 2, "rotate90": 4, "lumaflip": 2}


def test_every_transform_has_its_law_tested():
    assert set(draws(1.0, n=2)) == {*CONTINUOUS, *DISCRETE}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_draws_follow_the_paper(name):
    drawn = draws(1.0)[name][:, 1 if name == "cutout" else 0 :]
    for column in drawn.T:
        assert st.kstest(column.numpy(), CONTINUOUS[name].cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_draws_are_uniform(name):
    values, counts = draws(1.0)[name].unique(return_counts=True)
    assert values.tolist() == list(range(DISCRETE[name]))
    assert st.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("name", [*CONTINUOUS, *DISCRETE])
def test_each_transform_is_applied_with_probability_p(name):
    p = 0.3
    drawn = draws(p)[name]
    open_ = drawn.any(dim=1)
    if drawn.shape[1] > 1:
        assert torch.equal(open_, drawn.all(dim=1))  # one gate for all numbers of a transform
    expected = 1 - math.sqrt(1 - p) if name.startswith("rotate_") else p
    if name in DISCRETE:
        expected *= 1 - 1 / DISCRETE[name]  # a draw of 0 cannot be told from a closed gate
    assert st.binomtest(int(open_.sum()), len(open_), expected).pvalue > 1e-3


def test_draws_do_not_depend_on_one_another():
    table = torch.cat([value.bool().float() for value in draws(0.3).values()], dim=1).numpy()
    names = [name for name, value in draws(0.3, n=2).items() for _ in range(value.shape[1])]
    correlation = np.corrcoef(table.T)
    for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
        assert names[i] == names[j] or abs(correlation[i, j]) < 0.03


def test_either_rotation_happens_with_probability_p():
    drawn = draws(0.3)
    either = drawn["rotate_before"].bool() | drawn["rotate_after"].bool()
    assert st.binomtest(int(either.sum()), len(either), 0.3).pvalue > 1e-3


def test_multipliers_scale_the_probability():
    drawn = draws(0.5, settings=Settings(scale=0.5, imgfilter=1, imgfilter_bands=(0.5, 0, 1, 1)))
    share = {name: float(value.bool().float().mean()) for name, value in drawn.items()}
    expected = {"scale": 0.25, "imgfilter0": 0.25, "imgfilter2": 0.5, "imgfilter3": 0.5}
    assert share == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("kwargs", [{}, {"xflip": 0}, create_pipe("bgcfnc", p=1).init_kwargs])
def test_p_zero_changes_no_bit(kwargs):
    pipe, img = AugmentPipe(**kwargs), images(3, 3, 16, 16)
    pipe.p.zero_()
    assert torch.equal(pipe(img), img)


def test_images_that_drew_nothing_keep_every_bit():
    pipe, img = create_pipe("bgcfnc", p=0.05), images(64, 3, 16, 16)
    touched = torch.cat(
        list(sample(pipe.settings, Draw(64, 0.05, None, generator())).values()), dim=1
    ).any(dim=1)
    out = pipe(img, generator=generator())
    same = (out == img).flatten(1).all(dim=1)
    assert torch.equal(same, ~touched)
    assert 0 < same.sum() < 64


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"xflip": 1}, lambda img: img.flip(3)),
        ({"rotate90": 1}, lambda img: img.rot90(2, (2, 3))),
        ({"rotate90": 1, "xflip": 1}, lambda img: img.flip(2)),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (31, 31), (24, 40)])
def test_flips_and_half_turns(kwargs, expected, size):
    """On a smooth image: sym6 is not quite symmetric, so a flip moves the image by 0.1 pixels."""
    y, x = (math.pi * torch.linspace(0, 1, n) for n in size)
    img = (x.cos() + 0.5 * y.cos()[:, None]).expand(2, 3, *size)
    out = AugmentPipe(**kwargs)(img, debug_percentile=0.5)
    torch.testing.assert_close(out, expected(img), atol=0.03, rtol=0)


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (12, 17)])
def test_resampling_at_rest_is_the_identity(size):
    img = images(2, 3, *size)
    out = warp(img, torch.eye(3).repeat(2, 1, 1), AugmentPipe().Hz_geom)
    torch.testing.assert_close(out, img, atol=1e-5, rtol=0)


def test_integer_translation_reflects_at_the_border():
    out = AugmentPipe(xint=1, xint_max=0.25)(img := images(1, 1, 8, 8), debug_percentile=1 - 1e-6)
    rows = [2, 1, 0, 1, 2, 3, 4, 5]  # down and to the right by two pixels
    torch.testing.assert_close(out, img[:, :, rows][..., rows], atol=3e-6, rtol=0)


def test_constant_images_stay_constant_under_geometry():
    img = torch.full([16, 3, 16, 16], 0.5)
    pipe = AugmentPipe(rotate=1, aniso=1, xfrac=1, xflip=1, rotate90=1, xint=1)
    torch.testing.assert_close(pipe(img, generator=generator()), img, atol=2e-2, rtol=0)


def test_scaling_doubles_a_wave():
    x = torch.arange(64) - 31.5
    img = torch.cos(2 * math.pi * x / 16).expand(1, 1, 64, 64)
    pipe = AugmentPipe(scale=1, scale_std=1 / float(torch.erfinv(torch.tensor(0.5))))
    out = pipe(img, debug_percentile=0.75)  # one octave up
    wave = torch.cos(2 * math.pi * x / 32).expand(1, 1, 64, 64)
    torch.testing.assert_close(out, wave, atol=2e-2, rtol=0)


@pytest.mark.parametrize("augpipe", ["bgcf", "cutout"])
@pytest.mark.parametrize("shape", [(16, 3, 16, 16), (16, 1, 9, 12)])
def test_whole_batches_become_what_images_alone_do(augpipe, shape):
    pipe, img = create_pipe(augpipe, p=0.07), images(*shape).requires_grad_()
    alone = pipe(img, generator=generator())
    whole = pipe.whole(img, pipe.numbers(shape, generator()), generator())
    torch.testing.assert_close(whole, alone, atol=2e-5, rtol=0)
    untouched = (alone == img).flatten(1).all(dim=1)
    assert 0 < untouched.sum() < len(img) and torch.equal(whole[untouched], img[untouched])
    weights = images(*shape, seed=1)
    slopes = [torch.autograd.grad((out * weights).sum(), img)[0] for out in (alone, whole)]
    torch.testing.assert_close(*slopes, atol=5e-5, rtol=0)


def test_noise_of_a_whole_batch_has_the_drawn_strength():
    pipe, img = create_pipe("noise", p=0.5), torch.zeros(200, 3, 32, 32)
    numbers = pipe.numbers(img.shape, generator())
    noise = pipe.whole(img, numbers, generator(1)).flatten(1).std(dim=1)
    torch.testing.assert_close(noise, numbers[:, 1], rtol=0.1, atol=1e-3)
    assert torch.equal(noise == 0, numbers[:, 0] == 0)


def colored(img: torch.Tensor, **params: float) -> torch.Tensor:
    given = {name: torch.full([len(img), 1], v) for name, v in params.items()}
    return recolor(img, color_maps(given, len(img)))


def test_colours_by_hand():
    rgb = torch.tensor([0.1, 0.4, -0.2]).view(1, 3, 1, 1)
    mean = torch.full_like(rgb, 0.1)
    cases = [
        ({"brightness": 0.25}, rgb + 0.25),
        ({"contrast": 1.0}, rgb * 2),
        ({"brightness": 0.25, "contrast": 1.0}, (rgb + 0.25) * 2),
        ({"lumaflip": 1.0}, rgb - 2 * mean),
        ({"hue": 2 * math.pi / 3}, rgb[:, [2, 0, 1]]),
        ({"saturation": 1.0}, mean + 2 * (rgb - mean)),
        ({"saturation": -100.0}, mean),
    ]
    for params, expected in cases:
        torch.testing.assert_close(colored(rgb, **params), expected, atol=1e-6, rtol=0)


def test_grey_images_are_recoloured_as_rgb_of_equal_channels():
    grey = images(2, 1, 4, 4)
    params = {"brightness": 0.2, "contrast": 0.5, "lumaflip": 1.0, "hue": 1.0, "saturation": 0.7}
    as_rgb = colored(grey.expand(-1, 3, -1, -1), **params)
    torch.testing.assert_close(colored(grey, **params).expand_as(as_rgb), as_rgb, atol=1e-6, rtol=0)


def test_alpha_keeps_its_values_under_colour_and_moves_with_the_image():
    rgba = images(4, 4, 16, 16)
    color = create_pipe("color", p=1)(rgba, generator=generator())
    assert torch.equal(color[:, 3:], rgba[:, 3:])
    assert not torch.equal(color[:, :3], rgba[:, :3])
    whole = create_pipe("bgc", p=1)(rgba, generator=generator())
    alone = create_pipe("bg", p=1)(rgba[:, 3:], generator=generator())
    rgb = create_pipe("bgc", p=1)(rgba[:, :3], generator=generator())
    torch.testing.assert_close(whole[:, :3], rgb)
    assert whole[:, 3:].shape == alone.shape


def test_two_channels_have_geometry_but_no_colour():
    img = images(2, 2, 8, 8)
    assert create_pipe("bg", p=1)(img).shape == img.shape
    with pytest.raises(ValueError, match="1, 3 or 4 channels, got 2"):
        create_pipe("color", p=1)(img)


def test_cut_by_hand():
    out = cut_out(torch.ones(1, 1, 4, 8), torch.tensor([[0.5, 0.5, 1.0]]))
    expected = torch.ones(4, 8)
    expected[3:, 2:6] = 0  # half the width around x = 0.5, the lowest quarter around y = 1
    assert torch.equal(out[0, 0], expected)


def test_noise_has_the_drawn_strength():
    img = torch.zeros(200, 3, 32, 32)
    noise = create_pipe("noise", p=1)(img, generator=generator())
    sigma = sample(Settings(noise=1), Draw(200, 1.0, None, generator()))["noise"]
    torch.testing.assert_close(noise.flatten(1).std(dim=1), sigma[:, 0], rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 7, 5), (2, 4, 8, 24), (3, 3, 9, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_type_are_kept(shape, dtype):
    img = images(*shape, dtype=dtype)
    out = create_pipe("bgcfnc", p=1)(img, generator=generator())
    assert out.shape == img.shape and out.dtype == dtype and out.isfinite().all()


def test_an_image_does_not_depend_on_its_neighbours():
    pipe, img = AugmentPipe(rotate=1, xfrac=1, hue=1, imgfilter=1), images(2, 3, 16, 16)
    both = pipe(img, debug_percentile=0.6)
    torch.testing.assert_close(pipe(img[:1], debug_percentile=0.6), both[:1])


def test_first_and_second_gradients():
    img = images(2, 1, 5, 4, dtype=torch.float64).requires_grad_()
    pipe = create_pipe("bgcfnc", p=0.8)

    def augment(img: torch.Tensor) -> torch.Tensor:
        return pipe(img, generator=generator(3))

    assert torch.autograd.gradcheck(augment, (img,))
    assert torch.autograd.gradgradcheck(augment, (img,))


def test_gradient_of_the_r1_penalty():
    """What R1 differentiates: the gradient, through the pipe, of a nonlinear discriminator."""
    img = images(1, 3, 4, 4, dtype=torch.float64).requires_grad_()
    weight = images(3, 4, 4, seed=1, dtype=torch.float64).requires_grad_()
    pipe = create_pipe("bgc", p=0.8)

    def penalty(img: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logits = (pipe(img, generator=generator(3)) * weight).tanh().sum()
        return torch.autograd.grad(logits, img, create_graph=True)[0].square().sum()

    assert torch.autograd.gradcheck(penalty, (img, weight))


def ready(plugin: ADA, batch_size: int = 8, resumed: str | None = None) -> ADA:
    net = torch.nn.Identity()
    plugin.setup(Run(G=net, D=net, batch_size=batch_size, resumed=resumed))
    return plugin


def train(plugin: ADA, signs: list[float], first: int = 0) -> list[float]:
    """Return p after each iteration; each shows 8 logits whose mean sign is given."""
    trajectory = []
    for i, mean in enumerate(signs, start=first):
        logits = torch.where(torch.arange(8) < 4 * (1 + mean), 3.0, -2.0)[:, None]
        plugin.observe(Step("Dreal", 8 * i, logits=logits))
        plugin.observe(Step("Dfake", 8 * i, logits=-torch.ones(8, 1)))  # must not count
        plugin.after_step(8 * i)
        trajectory.append(float(plugin.pipe.p))
    return trajectory


def test_p_follows_the_published_update():
    plugin = ready(ADA(target=0.5, kimg=1.0))
    signs = [1] * 4 + [1, 1, 0, 0] + [1, 1, 1, 0] + [0.5] * 3 + [0.25] + [-1] * 8
    amount = 4 * 8 / 1000
    at_updates = [amount, amount, 2 * amount, amount, 0, 0]  # the second mean is the target
    expected = [0, 0, 0, *np.repeat(at_updates, 4)][: len(signs)]
    assert train(plugin, signs) == pytest.approx(expected)


def test_p_stays_below_its_bound():
    assert max(train(ready(ADA(max_=0.05, kimg=1.0)), [1.0] * 16)) == pytest.approx(0.05)


@pytest.mark.parametrize(("resumed", "kimg"), [(None, 500), ("source.pkl", 100)])
def test_p_moves_faster_after_transfer(resumed, kimg):
    plugin = ready(ADA(), resumed=resumed)
    assert train(plugin, [1.0] * 4)[-1] == pytest.approx(4 * 8 / (kimg * 1000))


def test_state_round_trips_in_the_middle_of_an_interval():
    signs = [1, 1, 0.5, 1, -1, 1, 0.25, 1, 1, 1, 1, 1]
    whole = train(ready(ADA(kimg=1.0)), signs)
    first, second = ready(ADA(kimg=1.0)), ready(ADA(kimg=1.0))
    train(first, signs[:6])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert train(second, signs[6:], first=6) == whole[6:]
    assert float(second.pipe.p) == float(second.probability.p) > 0


def test_state_is_that_of_all_ranks_after_every_iteration(monkeypatch):
    """Rank 0's state is what all ranks resume from after an interruption."""
    plugin = ready(ADA())
    monkeypatch.setattr(distributed, "sum_", lambda mine: mine.mul_(2))  # another rank saw the same
    train(plugin, [1.0, 0.5, 0.5])
    state = {key: float(value) for key, value in plugin.probability.state_dict().items()}
    assert state == {"p": 0, "sign_sum": 32, "count": 48}


@pytest.mark.parametrize("name", ["ada", "apa", "diffaugment"])
def test_switching_others_on_changes_no_draw(name):
    def shown(names: list[str]) -> list[torch.Tensor]:
        plugins, net = Plugins.create({key: {} for key in names}), torch.nn.Identity()
        plugins.setup(Run(G=net, D=net, seed=5))
        for key, p in (("ada", "pipe.p"), ("apa", "adaptive.p")):
            if key in names:
                plugins[key].get_buffer(p).fill_(0.5)
        plugins.observe(Step("Gmain", 64, c=c, img=fakes))
        step, own = Step("Dreal", 64), []
        for key in names:
            both = [plugins[key].real_images(img, c, step)[0], plugins[key].augment(img, step)]
            own += both if key == name else []
        return own

    img, fakes, c = images(16, 3, 8, 8), images(16, 3, 8, 8, seed=1), torch.zeros(16, 0)
    before, alone = torch.get_rng_state(), shown([name])
    assert not all(torch.equal(out, img) for out in alone)
    for names in itertools.permutations(["ada", "apa", "diffaugment"]):
        assert all(map(torch.equal, shown(list(names)), alone))
    assert torch.equal(torch.get_rng_state(), before)


def test_fixed_keeps_p():
    plugin = Fixed(p=0.25, augpipe="blit")
    step = Step("Dreal", 0, logits=torch.ones(4, 1))
    plugin.observe(step)
    plugin.after_step(0)
    assert float(plugin.pipe.p) == 0.25
    assert list(plugin.pipe.init_kwargs) == ["xflip", "rotate90", "xint"]
    assert not torch.equal(plugin.augment(img := images(16, 3, 8, 8), step), img)


@pytest.mark.parametrize(
    ("augpipe", "last", "count"),
    [("blit", "xint", 3), ("geom", "xfrac", 4), ("color", "saturation", 5), ("bg", "xfrac", 7),
     ("filter", "imgfilter", 1), ("noise", "noise", 1), ("cutout", "cutout", 1),
     ("bgc", "saturation", 12), ("bgcf", "imgfilter", 13), ("bgcfn", "noise", 14),
     ("bgcfnc", "cutout", 15)],
)  # fmt: skip
def test_names_of_the_pipes(augpipe, last, count):
    names = list(create_pipe(augpipe, p=0).init_kwargs)
    assert (names[-1], len(names)) == (last, count)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ADA(target=1.5), r"--target must be in \[-1, 1\], got 1.5"),
        (lambda: ADA(max_=2.0), r"--ada-max must be in \[0, 1\], got 2.0"),
        (lambda: ADA(kimg=0.0), "--ada-kimg must be positive, got 0.0"),
        (lambda: Fixed(), "--p is missing"),
        (lambda: Fixed(p=-0.1), r"--p must be in \[0, 1\], got -0.1"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
