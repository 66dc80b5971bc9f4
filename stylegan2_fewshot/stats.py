"""Scalars that loss, plugins and loop report; the loop collects them once a tick."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import distributed

_SUMS: dict[str, Tensor] = {}


@dataclass(frozen=True)
class Moments:
    """Number, mean and standard deviation of what was reported under one name."""

    num: int
    mean: float
    std: float


@torch.no_grad()
def report(name: str, value: Tensor | float) -> None:
    """Add every element of `value` to the statistics of `name`, without waiting for the device."""
    value = torch.as_tensor(value).flatten().float()
    sums = torch.stack([torch.ones_like(value), value, value * value]).sum(1)
    _SUMS[name] = _SUMS[name].to(sums.device) + sums if name in _SUMS else sums


def pending() -> dict[str, list[float]]:
    """Return what this rank was told since the last `collect`: number, sum, sum of squares."""
    return {name: sums.tolist() for name, sums in _SUMS.items()}


def restore(parts: Iterable[Mapping[str, Sequence[float]]]) -> None:
    """Forget what was reported, and take over the sum of what ranks had `pending`."""
    _SUMS.clear()
    for part in parts:
        for name, sums in part.items():
            tensor = torch.tensor(sums, dtype=torch.float32)
            _SUMS[name] = _SUMS[name] + tensor if name in _SUMS else tensor


def collect() -> dict[str, Moments]:
    """Return the statistics of all ranks since the last call, by name, and start anew."""
    mine = {name: sums.double().tolist() for name, sums in _SUMS.items()}
    _SUMS.clear()
    total: dict[str, list[float]] = {}
    for gathered in distributed.gather(mine):
        for name, sums in gathered.items():
            total[name] = [a + b for a, b in zip(total.get(name, [0, 0, 0]), sums, strict=True)]
    moments = {}
    for name, (num, first, second) in sorted(total.items()):
        mean = first / max(num, 1)
        variance = max(second / max(num, 1) - mean**2, 0.0)
        moments[name] = Moments(num=int(num), mean=mean, std=variance**0.5)
    return moments
