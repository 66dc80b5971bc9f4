"""An unconditional network becomes a conditional one that starts out as the same function."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from stylegan2_fewshot.projection import add_unconditional_term

from .networks import Discriminator, Generator, MappingNetwork, normalize_2nd_moment

N = TypeVar("N", Generator, Discriminator)


@torch.no_grad()
def with_labels(net: N, c_dim: int) -> N:
    """Return `net` with labels `[N, c_dim]` that make no difference yet, but can learn to.

    The label meets layers that begin at random, as in a network that was conditional from the
    start, and only what lies before them in G and after them in D begins at 0. These learn at the
    networks' full rate, the layers between at the mapping's hundredth of it.

    In G the embedding gives one vector whatever the label is, and the bias of the layer after it
    takes its effect away. In D, whose logit is the product of the features of the image and of the
    label, the first number of the label is constant and meets the source's logit, and the others
    meet features that are 0: Mangla et al., WACV 2022 (arXiv 2012.04256), Eq. 4, with a second
    term that is 0 at first.

    Args:
        net: Unconditional network.
        c_dim: Numbers in a label.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)  # G and its average get the same new layers
        wide = type(net)(**{**net.init_kwargs, "c_dim": c_dim}).train(net.training)
        # As small as what an embedding gives of a label of length 1, so that labels soon tell.
        constant = torch.randn(len(wide.mapping.embed.weight)) / math.sqrt(c_dim)
    new = wide.state_dict()
    for name, old in net.state_dict().items():
        new[name][tuple(map(slice, old.shape))] = old
    if isinstance(wide, Generator):
        _ignore_label(wide.mapping, constant)
    else:
        _ignore_projection(wide)
    return wide


def _ignore_label(mapping: MappingNetwork, constant: Tensor) -> None:
    embed, first, z_dim = mapping.embed, mapping.fc0, mapping.z_dim
    assert embed.bias is not None and first.bias is not None
    first.weight[:, :z_dim] *= math.sqrt(first.weight.shape[1] / z_dim)  # more inputs, smaller gain
    embed.weight.zero_()
    embed.bias.copy_(constant)
    embedded = normalize_2nd_moment(constant, dim=0)
    effect = first.weight[:, z_dim:] @ embedded * first.weight_gain
    first.bias.sub_(effect / first.bias_gain)


def _ignore_projection(D: Discriminator) -> None:
    add_unconditional_term(D)
    D.b4.out.weight[1:] = 0
