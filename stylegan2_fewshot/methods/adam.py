"""AdAM: filters that matter for the adaptation are modulated, the others fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from .. import filters, stats
from ..factors import Factors
from ..plugin import Run, register, seed_of

SPREAD = 1e-7  # standard deviation of the factors at first


def modulated(source: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return `W (1 + u v^T)` of a weight `[O, C, k, k]`, with `u` `[O]` and `v` `[C]`."""
    return source * (1 + torch.outer(u, v))[:, :, None, None]


def slopes(grad: Tensor, source: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `u` and of `v` out of that of the modulated weight."""
    of_product = (grad * source).sum([2, 3])
    return of_product @ v, u @ of_product


def important(fisher: Mapping[str, Tensor], percent: float) -> dict[str, Tensor]:
    """Return which filters lie above a percentile of all of a network's, by layer `[O]`."""
    bound = filters.percentile(fisher.values(), percent)
    return {name: values > bound for name, values in fisher.items()}


@register("adam")
class AdAM(filters.FilterMethod):
    """Modulate the source's filters that matter for the target, fine-tune the others (AdAM).

    Zhao, Chandrasegaran, Abdollahzadeh and Cheung, NeurIPS 2022 (arXiv 2210.16559). A probe trains
    nothing but factors of rank 1 of the convolutions of G and D, `W (1 + u v^T)`, and measures how
    much each filter matters; then the weights start again from the source. Filters above a
    percentile keep W and train the factors; all else is fine-tuned. Importance is the mean square
    of a filter's gradient of the main losses over the probe's last batches: our choice, where the
    published script makes a pass of its own (250 batches of 4). Also ours, as remembered and not
    verified: percentiles over a network, and no ToRGB layers. Published with batches of 4: 50 for
    1,500 iterations where domains are near, 75 for 2,500 where they are far. The factors have an
    Adam of their own, with --glr and --dlr; network pickles hold the weights that follow from them.

    Args:
        percentile: Percentile of importance above which filters are modulated; 100 modulates none.
        probe: Iterations of the probe.
        batches: Batches whose gradients decide, the probe's last.
    """

    neutral: ClassVar = {"percentile": 100.0}
    _probing = False

    def __init__(self, *, percentile: float = 50.0, probe: int = 500, batches: int = 250) -> None:
        super().__init__()
        if not 0 <= percentile <= 100:
            raise ValueError(f"--adam-percentile must be from 0 to 100, got {percentile}")
        if not 1 <= batches <= probe:
            raise ValueError(f"--adam-batches={batches} must be from 1 to --adam-probe={probe}")
        self.percentile, self.probe, self.batches = percentile, probe, batches

    def setup(self, run: Run) -> None:
        if self.percentile == 100:
            return
        run.needs_source(f"--adam-percentile={self.percentile:g}", "filters to keep")
        super().setup(run)
        starts: dict[str, Tensor] = {}
        for net, convolutions in self.convolutions.items():
            for name, param in convolutions.items():
                starts |= self._factors(f"{net}.{name}", param)
        self.factors = Factors(starts, run.optimizers)

    def starts(self, param: Tensor) -> dict[str, Tensor]:
        every = param.new_ones(len(param), dtype=torch.bool)  # until it is known which ones matter
        return {"source": param.detach().clone(), **super().starts(param), "modulated": every}

    def enter(self, done: int) -> None:
        self._probing = done < self.probe
        self.measured = self.probe - self.batches <= done < self.probe
        self.decides = done == self.probe - 1

    def before_step(self, net: str, params: Mapping[str, torch.nn.Parameter]) -> None:
        super().before_step(net, params)
        sources, masks = self.kept(net, "source"), self.kept(net, "modulated")
        for name, param, grad in self.reached(net, params):
            self._modulate(f"{net}.{name}", param, grad, sources[name], masks[name])
        if self._probing and self.convolutions[net]:
            filters.drop_gradients(params)

    def decide(self, net: str) -> None:
        """End the probe: choose the filters, and let weights and factors start again."""
        if not (convolutions := self.convolutions[net]):
            return
        sources, masks = self.kept(net, "source"), self.kept(net, "modulated")
        for name, mask in important(self.kept(net, "fisher"), self.percentile).items():
            masks[name].copy_(mask)
            convolutions[name].copy_(sources[name])
            for key, value in self._factors(f"{net}.{name}", sources[name]).items():
                self.factors.set(key, value)
            stats.report(f"AdAM/modulated/{net}", mask.float())

    def _modulate(
        self, key: str, param: torch.nn.Parameter, grad: Tensor, source: Tensor, mask: Tensor
    ) -> None:
        """Take a step of the factors, and set and hold the filters that they modulate."""
        u, v, whole = self.factors[f"{key}.u"], self.factors[f"{key}.v"], filters.rows(mask, param)
        of_u, of_v = slopes(grad.masked_fill(~whole, 0), source, u, v)
        u, v = self.factors.step(f"{key}.u", of_u), self.factors.step(f"{key}.v", of_v)
        param.copy_(torch.where(whole, modulated(source, u, v), param))
        self.hold(param, mask)

    def _factors(self, key: str, param: Tensor) -> dict[str, Tensor]:
        """Return the factors that a weight starts with, the same on all ranks."""
        rng = torch.Generator().manual_seed(seed_of(self._seed, self.name, key))
        sizes = {f"{key}.u": param.shape[0], f"{key}.v": param.shape[1]}
        return {
            name: (torch.randn(size, generator=rng) * SPREAD).to(param)
            for name, size in sizes.items()
        }
