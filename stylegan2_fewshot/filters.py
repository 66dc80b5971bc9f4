"""Filters of convolutions as units: which there are, how much each matters, which ones stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from .plugin import Run, Step

MAIN = {"Gmain": "G", "Dfake": "D", "Dreal": "D"}
REGULARISING = {"Gpl": "G", "Dr1": "D"}


def is_convolution(name: str, param: Tensor) -> bool:
    """Return whether a parameter is the weight `[O, C, k, k]` of a convolution.

    G's ToRGB layers do not count: their filters are the colours.
    """
    return param.ndim == 4 and ".torgb." not in name


def parameters(
    run: Run, nets: str, counts: Callable[[str, Tensor], bool] = is_convolution
) -> Iterator[tuple[str, str, torch.nn.Parameter]]:
    """Yield network, name and parameter for the parameters of G and D that count.

    Args:
        run: Holds the networks.
        nets: Which of them, `GD` for both.
        counts: Whether a parameter counts, given its name without the network's.
    """
    for net in nets:
        for name, param in getattr(run, net).named_parameters():
            if counts(name, param):
                yield net, name, param


def buffer_name(net: str, name: str, kind: str) -> str:
    """Return what a plugin's buffer is called that belongs to a parameter of a network."""
    return f"{net}/{name.replace('.', '/')}:{kind}"


def importance(grad: Tensor) -> Tensor:
    """Return the mean square of a weight's gradient over every filter, `[O]`."""
    return grad.float().square().flatten(1).mean(1)


def percentile(values: Iterable[Tensor], percent: float) -> Tensor:
    """Return the percentile of all numbers in `values` together, interpolated linearly.

    Args:
        values: Tensors of any shapes.
        percent: From 0 to 100.
    """
    ordered = torch.cat([value.flatten() for value in values]).double().sort().values
    place = (len(ordered) - 1) * percent / 100  # torch.quantile refuses more than 2^24 numbers
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low].lerp(ordered[high], place - low)


def rows(mask: Tensor, weight: Tensor) -> Tensor:
    """Return a mask of filters `[O]` in a shape that meets `weight` `[O, C, k, k]`."""
    return mask.view(-1, *[1] * (weight.ndim - 1))


class Held:
    """Filters that are not to move, under any optimizer.

    Their gradients become 0 before a step; what momentum moves all the same is taken back.
    """

    def __init__(self) -> None:
        self._kept: dict[torch.nn.Parameter, tuple[Tensor, Tensor]] = {}

    def hold(self, param: torch.nn.Parameter, mask: Tensor) -> None:
        """Keep the filters of `mask` `[O]` as they are now, until `release`."""
        assert param.grad is not None
        param.grad.masked_fill_(rows(mask, param), 0)
        self._kept[param] = (mask.clone(), param.detach().clone())

    def release(self) -> None:
        """Take back what an optimizer has changed of them."""
        for param, (mask, value) in self._kept.items():
            param.copy_(torch.where(rows(mask, param), value, param))
        self._kept.clear()


class Regularised:
    """Whether the gradients of a network are those of its main loss or of its regulariser."""

    def __init__(self) -> None:
        self._now = dict.fromkeys("GD", False)

    def observe(self, step: Step) -> None:
        if net := MAIN.get(step.phase):
            self._now[net] = False
        elif net := REGULARISING.get(step.phase):
            self._now[net] = True

    def __getitem__(self, net: str) -> bool:
        return self._now[net]


def drop_gradients(params: Mapping[str, torch.nn.Parameter], keep: Iterable[str] = ()) -> None:
    """Remove all gradients but those named: an optimizer leaves such a parameter where it is."""
    for name in params.keys() - set(keep):
        params[name].grad = None
