"""Scalars that loss, plugins and loop report; the loop collects them once a tick."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from . import distributed

_SUMS: dict[str, Tensor] = {}  # added to in place, and kept at 0: a CUDA graph repeats that


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
    if name not in _SUMS:
        _SUMS[name] = torch.zeros_like(sums)
    elif _SUMS[name].device.type == "cpu":
        _SUMS[name] = _SUMS[name].to(sums.device)
    _SUMS[name] += sums.to(_SUMS[name].device)


def accumulators() -> dict[str, Tensor]:
    """Return what is added up so far by name, the tensors themselves: number, sum, squares."""
    return dict(_SUMS)


@contextmanager
def apart() -> Iterator[None]:
    """Keep what is reported inside out of the statistics."""
    before = dict(_SUMS)
    _SUMS.clear()
    try:
        yield
    finally:
        _SUMS.clear()
        _SUMS.update(before)


def pending() -> dict[str, list[float]]:
    """Return what this rank was told since the last `collect`: number, sum, sum of squares."""
    told = ((name, sums.tolist()) for name, sums in _SUMS.items())
    return {name: sums for name, sums in told if sums[0]}


def restore(parts: Iterable[Mapping[str, Sequence[float]]]) -> None:
    """Forget what was reported, and take over the sum of what ranks had `pending`."""
    _forget()
    for part in parts:
        for name, sums in part.items():
            tensor = torch.tensor(sums, dtype=torch.float32)
            if not isinstance(name, str) or tensor.shape != (3,):
                raise ValueError(f"statistics {name!r} are not number, sum and sum of squares")
            if name in _SUMS:
                _SUMS[name] += tensor.to(_SUMS[name].device)
            else:
                _SUMS[name] = tensor


def collect() -> dict[str, Moments]:
    """Return the statistics of all ranks since the last call, by name, and start anew."""
    mine = pending()
    _forget()
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


def _forget() -> None:
    for sums in _SUMS.values():
        sums.zero_()
