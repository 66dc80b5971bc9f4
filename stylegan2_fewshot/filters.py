"""Filters of convolutions as units: which there are, how much each matters, which ones stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from .plugin import Run, Step
from .stages import Staged


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


def drop_gradients(params: Mapping[str, torch.nn.Parameter], keep: Iterable[str] = ()) -> None:
    """Remove all gradients but those named: an optimizer leaves such a parameter where it is."""
    for name in params.keys() - set(keep):
        params[name].grad = None


class FilterMethod(Staged):
    """A plugin that treats each filter of the convolutions of G and D by its importance.

    Importance is the mean square of a filter's gradient of the main losses; buffers add it up over
    the iterations for which `enter` sets `measured`. After one for which it sets `decides`,
    `decide` is called.
    """

    rewrites = True
    measured = False
    decides = False

    def __init__(self) -> None:
        super().__init__()
        # The convolutions; plain dicts, for they belong to the networks.
        self.convolutions: dict[str, dict[str, torch.nn.Parameter]] = {"G": {}, "D": {}}
        self._is_main = dict.fromkeys("GD", True)  # whether gradients are those of the main loss
        self._held: dict[torch.nn.Parameter, tuple[Tensor, Tensor]] = {}

    def setup(self, run: Run) -> None:
        super().setup(run)
        for net, name, param in parameters(run, "GD"):
            self.convolutions[net][name] = param
            for kind, start in self.starts(param).items():
                self.register_buffer(buffer_name(net, name, kind), start)

    def starts(self, param: Tensor) -> dict[str, Tensor]:
        """Return the first values of the buffers of a convolution, by kind, `fisher` among them."""
        return {"fisher": param.new_zeros(len(param))}

    def kept(self, net: str, kind: str) -> dict[str, Tensor]:
        """Return the buffers of one kind, by convolution."""
        return {n: self.get_buffer(buffer_name(net, n, kind)) for n in self.convolutions[net]}

    def reached(
        self, net: str, params: Mapping[str, torch.nn.Parameter]
    ) -> Iterator[tuple[str, torch.nn.Parameter, Tensor]]:
        """Yield name, weight and gradient of the convolutions that have one."""
        for name in self.convolutions[net]:
            if name in params and (grad := params[name].grad) is not None:
                yield name, params[name], grad

    def observe(self, step: Step) -> None:
        self._is_main[step.phase[0]] = step.phase not in ("Gpl", "Dr1")

    def before_step(self, net: str, params: Mapping[str, torch.nn.Parameter]) -> None:
        if self.measured and self._is_main[net]:
            sums = self.kept(net, "fisher")
            for name, _, grad in self.reached(net, params):
                sums[name].add_(importance(grad))

    def hold(self, param: torch.nn.Parameter, mask: Tensor) -> None:
        """Keep the filters of `mask` `[O]` as they are now, under any optimizer.

        Their gradients become 0; what momentum moves all the same is taken back.
        """
        assert param.grad is not None
        param.grad.masked_fill_(rows(mask, param), 0)
        self._held[param] = (mask.clone(), param.detach().clone())

    def after_optimizer(self, net: str, params: Mapping[str, torch.nn.Parameter]) -> None:
        for param, (mask, value) in self._held.items():
            param.copy_(torch.where(rows(mask, param), value, param))
        self._held.clear()

    def after_step(self, cur_nimg: int) -> None:
        if self.decides:
            for net in "GD":
                self.decide(net)
        super().after_step(cur_nimg)

    def decide(self, net: str) -> None:
        """Choose among the filters of a network by their importance."""
        raise NotImplementedError
