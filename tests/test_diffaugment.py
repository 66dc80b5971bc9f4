"""DiffAugment: each policy by hand, its draws, and its gradients."""

from __future__ import annotations

import pytest
import torch
from scipy import stats as st

from stylegan2_fewshot import Plugins, Run, Step
from stylegan2_fewshot.methods.diffaugment import POLICIES, DiffAugment, color, cutout, translation


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


def ready(seed: int = 0, **options: str) -> DiffAugment:
    plugins, net = Plugins.create({"diffaugment": options}), torch.nn.Identity()
    plugins.setup(Run(G=net, D=net, seed=seed))
    return plugins["diffaugment"]


def test_colours_by_hand():
    img = images(1, 3, 4, 5)
    channels = img.mean(dim=1, keepdim=True)
    cases = [
        ([0.5, 0.5, 0.5], img),
        ([0.75, 0.5, 0.5], img + 0.25),
        ([0.5, 0.0, 0.5], channels.expand_as(img)),
        ([0.5, 0.75, 0.5], channels + 1.5 * (img - channels)),
        ([0.5, 0.5, 0.25], img.mean() + 0.75 * (img - img.mean())),
    ]
    for draw, expected in cases:
        torch.testing.assert_close(color(img, torch.tensor([draw])), expected)


def test_translation_moves_zeros_in():
    img = images(3, 1, 16, 8)
    out = translation(img, torch.tensor([[0.5, 0.5], [0.0, 0.5], [0.999, 0.0]]))
    assert torch.equal(out[0], img[0])
    assert torch.equal(out[1, :, :14], img[1, :, 2:])  # two pixels up
    assert not out[1, :, 14:].any()
    assert torch.equal(out[2, :, 2:, :7], img[2, :, :14, 1:])  # two down, one to the left
    assert not out[2, :, :2].any() and not out[2, :, :, 7:].any()


def test_every_shift_is_equally_likely():
    draw = torch.rand(5000, 2, generator=torch.Generator().manual_seed(1))
    ramp = torch.arange(1.0, 17).expand(5000, 1, 16, 16)
    values, counts = translation(ramp, draw)[:, 0, 8, 8].unique(return_counts=True)
    # Shifts by -2 to 2, and no other; the ramp is 9 in the middle, which no vertical shift changes.
    assert values.tolist() == [7, 8, 9, 10, 11]
    assert st.chisquare(counts.numpy()).pvalue > 1e-3


def test_cutout_by_hand():
    out = cutout(torch.ones(2, 1, 8, 4), torch.tensor([[0.5, 0.5], [0.0, 0.999]]))
    middle, corner = torch.ones(2, 8, 4)
    middle[2:6, 1:3] = 0
    corner[:2, 3:] = 0  # the rest of the rectangle lies outside
    assert torch.equal(out[0, 0], middle)
    assert torch.equal(out[1, 0], corner)


def test_cut_centres_are_uniform():
    draw = torch.rand(5000, 2, generator=torch.Generator().manual_seed(1))
    out = cutout(torch.ones(5000, 1, 8, 8), draw)
    lengths, counts = (out[:, 0] == 0).any(dim=2).sum(dim=1).unique(return_counts=True)
    # Nine centres; the first and last cut two rows, their neighbours three, the others four.
    assert lengths.tolist() == [2, 3, 4]
    assert st.chisquare(counts.numpy(), 5000 * torch.tensor([2, 2, 5]).numpy() / 9).pvalue > 1e-3


def test_neutral_policy_returns_its_argument():
    img = images(2, 3, 8, 8)
    assert ready(**DiffAugment.neutral).augment(img, Step("Dreal")) is img


def test_one_policy_applies_that_transform_only():
    img = images(4, 3, 8, 8)
    generator = ready(seed=3).rng(Step("Dreal", 5), img.device)
    expected = cutout(img, torch.rand(4, 2, generator=generator))
    assert torch.equal(ready(seed=3, policy="cutout").augment(img, Step("Dfake", 5)), expected)


def test_reals_and_fakes_share_the_policy_but_not_the_draws():
    plugin, img = ready(), images(4, 3, 8, 8)
    real, fake = (plugin.augment(img, Step(phase, 0)) for phase in ("Dreal", "Dfake"))
    assert not torch.equal(real, fake)
    again = ready()
    assert torch.equal(again.augment(img, Step("Dreal", 0)), real)
    assert torch.equal(again.augment(img, Step("Dfake", 0)), fake)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 7, 5), (2, 4, 8, 24), (2, 3, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_type_are_kept(shape, dtype):
    img = images(*shape, dtype=dtype)
    out = ready().augment(img, Step("Dreal"))
    assert out.shape == img.shape and out.dtype == dtype


@pytest.mark.parametrize("name", POLICIES)
def test_first_and_second_gradients(name):
    transform, columns = POLICIES[name]
    draw = torch.rand(2, columns, generator=torch.Generator().manual_seed(2))
    img = images(2, 2, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda img: transform(img, draw), (img,))
    assert torch.autograd.gradgradcheck(lambda img: transform(img, draw), (img,))


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="'colour' is unknown; choose from color, translation"):
        DiffAugment(policy="colour,cutout")
