"""Layer swapping: one network out of two that come from one ancestor."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from typing import TypeVar

import torch

from .pickles import NetworkPickle

N = TypeVar("N", bound=torch.nn.Module)


def share_of_second(resolution: int, split: int, smooth: float) -> float:
    """Return how much of a block comes from the second network, from 0 to 1.

    Args:
        resolution: The block's.
        split: Blocks up to this resolution come from the first network.
        smooth: Number of resolutions over which the one passes into the other; up to 1 is a cut.
    """
    distance = math.log2(resolution / split) - 0.5 if split else math.inf
    return min(max(distance / max(smooth, 1) + 0.5, 0.0), 1.0)


def blended(one: NetworkPickle, two: NetworkPickle, split: int, smooth: float = 0) -> NetworkPickle:
    """Return networks with blocks up to a resolution from one, and the others from another.

    Pinkney and Adler, 2020 (arXiv 2010.05334). The mapping goes with the 4x4 block.

    Args:
        one: The networks of the coarse blocks.
        two: The networks of the fine blocks, of the same architecture.
        split: The last resolution of the first; 0 for none, so that all comes from the second.
        smooth: Number of resolutions over which weights are mixed instead of swapped.

    Raises:
        ValueError: The networks' tensors differ in name or shape.
    """
    pairs = {key: (getattr(one, key), getattr(two, key)) for key in ("G", "D", "G_ema")}
    mixed = {key: _mixed(key, *pair, split, smooth) for key, pair in pairs.items()}
    return replace(two, **mixed, training_set_kwargs=None)


@torch.no_grad()
def _mixed(key: str, one: N, two: N, split: int, smooth: float) -> N:
    first, second = one.state_dict(), two.state_dict()
    if differ := sorted(first.keys() ^ second.keys()):
        owner = "the second" if differ[0] in second else "the first"
        raise ValueError(f"only {owner} network has the tensor {key}.{differ[0]}; {_RULE}")
    result = copy.deepcopy(two)
    state = result.state_dict()
    for name, tensor in first.items():
        if tensor.shape != second[name].shape:
            shapes = f"{list(tensor.shape)} and {list(second[name].shape)}"
            raise ValueError(f"{key}.{name} has the shapes {shapes}; {_RULE}")
        block = re.match(r"(?:synthesis\.)?b(\d+)\.", name)
        share = share_of_second(int(block[1]) if block else 4, split, smooth)
        if share < 1:
            state[name].copy_(tensor if share == 0 else tensor.lerp(second[name], share))
    return result


_RULE = "networks blend only where both were trained from one source"
