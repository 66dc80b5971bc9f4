"""An unconditional network becomes a conditional one that starts out as the same function."""

from __future__ import annotations

import math
from typing import TypeVar

import torch

from stylegan2_fewshot.ops.activations import ACTIVATIONS

from .networks import Discriminator, Generator

N = TypeVar("N", Generator, Discriminator)


@torch.no_grad()
def widened(net: N, c_dim: int) -> N:
    """Return `net` with labels `[N, c_dim]` that make no difference yet, but can learn to.

    Every tensor of `net` is the leading part of the same tensor of the result. In G the first
    layer's weights for the label are zero. In D the label is mapped to one constant vector, which
    picks the source's logit out of the projection's outputs; the others are random, so that what D
    learns of the label has features to be compared with: Mangla et al., WACV 2022 (arXiv
    2012.04256), Eq. 4, with a second term that is 0 at first.

    Args:
        net: Unconditional network.
        c_dim: Numbers in a label.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)  # G and its average get the same new layers
        wide = type(net)(**{**net.init_kwargs, "c_dim": c_dim}).train(net.training)
    new = wide.state_dict()
    for name, old in net.state_dict().items():
        new[name][tuple(map(slice, old.shape))] = old
    if isinstance(wide, Generator):
        _ignore_label(wide, net.z_dim)
    else:
        _map_to_constant(wide)
    return wide


def _ignore_label(G: Generator, z_dim: int) -> None:
    weight = G.mapping.fc0.weight
    weight[:, :z_dim] *= math.sqrt(weight.shape[1] / z_dim)  # more inputs, smaller gain
    weight[:, z_dim:] = 0


def _map_to_constant(D: Discriminator) -> None:
    """Make the mapped label (sqrt(cmap_dim), 0, 0, ...), which the logit is divided by again."""
    last = getattr(D.mapping, f"fc{D.mapping.num_layers - 1}")
    last.weight.zero_()
    last.bias.zero_()
    last.bias[0] = math.sqrt(D.b4.cmap_dim) / ACTIVATIONS[last.activation].gain / last.bias_gain
