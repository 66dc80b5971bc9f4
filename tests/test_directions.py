"""SeFa on weights that are known to have one strong direction."""

from __future__ import annotations

import torch

from training.directions import sefa
from training.networks import Generator


def generator(w_dim: int = 8) -> Generator:
    torch.manual_seed(0)
    return Generator(
        z_dim=w_dim, c_dim=0, w_dim=w_dim, img_resolution=16, img_channels=3,
        synthesis_kwargs={"channel_base": 128, "channel_max": 8},
    )  # fmt: skip


def test_the_direction_that_styles_follow_most_comes_first():
    G, strong = generator(), torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0)
    for module in G.synthesis.modules():
        if hasattr(module, "affine"):
            weight = module.affine.weight
            weight.data = 0.1 * weight.data + torch.randn(len(weight), 1) * strong
    found = sefa(G)
    assert found.shape == (8, 8)
    assert found[0] @ strong > 0.99
    torch.testing.assert_close(found @ found.T, torch.eye(8), atol=1e-5, rtol=0)
    assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()


def test_layers_that_were_not_chosen_have_no_say():
    G = generator()
    before = sefa(G, layers=range(2))
    G.synthesis.b16.conv1.affine.weight.data.normal_()
    torch.testing.assert_close(sefa(G, layers=range(2)), before)
    assert not torch.allclose(sefa(G), sefa(generator()))
