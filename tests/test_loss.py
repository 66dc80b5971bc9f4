"""What the losses report."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stylegan2_fewshot import stats
from stylegan2_fewshot.loss import StyleGAN2Loss


class MeanOf(torch.nn.Module):
    """A discriminator whose logit is the scaled mean of the pixels."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, img, c):
        return img.mean([1, 2, 3])[:, None] * self.scale


def mapping(z, c, skip_w_avg_update=False):
    return z[:, None].repeat(1, 2, 1)


def synthesis(ws):
    return ws.mean([1, 2])[:, None, None, None].repeat(1, 3, 4, 4)


@pytest.mark.parametrize("phase", ["Dmain", "Dboth"])
def test_the_discriminator_s_loss_is_that_of_real_and_generated_images(phase):
    stats.collect()
    loss = StyleGAN2Loss(torch.device("cpu"), mapping, synthesis, MeanOf(), style_mixing_prob=0)
    real, z, c = torch.rand(3, 3, 4, 4), torch.randn(3, 5), torch.zeros(3, 0)
    loss.accumulate_gradients(phase, real, c, z, c)
    expected = F.softplus(-2 * real.mean([1, 2, 3])) + F.softplus(2 * z.mean(1))
    found = stats.collect()["Loss/D/loss"]
    assert found.num == 3
    assert found.mean == pytest.approx(expected.mean().item())
    assert found.std == pytest.approx(expected.std(unbiased=False).item(), rel=1e-3)


def test_regularisation_alone_reports_no_loss():
    stats.collect()
    loss = StyleGAN2Loss(torch.device("cpu"), mapping, synthesis, MeanOf(), style_mixing_prob=0)
    c = torch.zeros(3, 0)
    loss.accumulate_gradients("Dreg", torch.rand(3, 3, 4, 4), c, torch.randn(3, 5), c)
    assert "Loss/D/loss" not in stats.collect()


def test_style_mixing_is_one_draw_a_batch():
    seen, layers = [], 4

    def keep(ws):
        seen.append(ws.detach())
        return synthesis(ws)

    def widely(z, c, skip_w_avg_update=False):
        return z[:, None].repeat(1, layers, 1)

    loss = StyleGAN2Loss(torch.device("cpu"), widely, keep, MeanOf(), style_mixing_prob=0.5)
    z, c = torch.randn(6, 5), torch.zeros(6, 0)
    for seed in range(40):
        torch.manual_seed(seed)
        loss.accumulate_gradients("Dmain", torch.rand(6, 3, 4, 4), c, z, c)
    firsts = set()
    for ws in seen:
        other = (ws != z[:, None]).any(2)  # [N, layers]: which are of second latents
        assert (other == other[0]).all()  # those of all samples, or of none
        pattern = other[0].tolist()
        assert pattern == sorted(pattern)  # from one layer on
        firsts.add(pattern.index(True) if any(pattern) else None)
    assert firsts == {None, 1, 2, 3}
