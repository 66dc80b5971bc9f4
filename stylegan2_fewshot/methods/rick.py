"""RICK: filters that matter are frozen, those that do not are removed, the others adapt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from .. import filters, stats
from ..plugin import Run, register

LAST = "b4."  # D's last layers


def masks(
    fisher: Mapping[str, Tensor], pruned: Mapping[str, Tensor], *, freeze: float, prune: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return which filters of a network are frozen and which are removed, by layer.

    Zhao et al., CVPR 2023: above the percentile `freeze` a filter's knowledge is kept, at or below
    the percentile `prune` it is removed. Both are taken over all filters of the network that are
    left; 100 freezes none, 0 removes none.

    Args:
        fisher: Importance of every filter `[O]`, by layer.
        pruned: Filters `[O]` that have been removed already, by layer.
        freeze: Percentile, from 0 to 100.
        prune: Percentile, from 0 to 100.
    """
    left = [values[~pruned[name]] for name, values in fisher.items()]
    high, low = (filters.percentile(left, percent) for percent in (freeze, prune))
    frozen, removed = {}, {}
    for name, values in fisher.items():
        gone = (values <= low) if prune else torch.zeros_like(pruned[name])
        removed[name] = pruned[name] | gone
        frozen[name] = (values > high) & ~removed[name]
    return frozen, removed


@register("rick")
class RICK(filters.FilterMethod):
    """Keep the source's filters that matter, remove those that do harm, adapt the others (RICK).

    Zhao, Du, Abdollahzadeh et al., CVPR 2023 (arXiv 2305.07427). At first only D's last layers are
    trained; then, every few iterations, the importance of each filter of the convolutions of G and
    D decides anew: above one percentile it is frozen until the next decision, at or below another
    it is 0 for good, and the rest, like all other parameters, is trained. Importance is the mean
    square of a filter's gradient of the main losses over the last batches: gradients of batches, as
    only their order matters. Remembered, not verified, and so our choices: that percentiles are
    taken over a network and over the filters that are left, that D's last layers are its 4x4 end,
    and that ToRGB layers, whose filters are the colours, are left out. Published with batches of 2:
    40 and 0.1 for 1,750 iterations where domains are near, 85 and 0.075 for 2,250 where they are
    far. The original's float16 divides by a filter's largest weight, so it makes NaN of one that is
    0: open such a network there with force_fp32.

    Args:
        freeze: Percentile of importance above which filters are frozen; 100 freezes none.
        prune: Percentile at or below which filters are removed; 0 removes none.
        warmup: Iterations in which only D's last layers are trained.
        every: Iterations between two decisions.
        batches: Batches whose gradients decide, the last ones before a decision.
    """

    neutral: ClassVar = {"freeze": 100.0, "prune": 0.0, "warmup": 0}
    _warming_up = False

    def __init__(
        self,
        *,
        freeze: float = 40.0,
        prune: float = 0.1,
        warmup: int = 250,
        every: int = 50,
        batches: int = 5,
    ) -> None:
        super().__init__()
        for name, value in (("freeze", freeze), ("prune", prune)):
            if not 0 <= value <= 100:
                raise ValueError(f"--rick-{name} must be from 0 to 100, got {value}")
        if prune >= freeze:
            raise ValueError(f"--rick-prune={prune:g} must be less than --rick-freeze={freeze:g}")
        if warmup < 0:
            raise ValueError(f"--rick-warmup must not be negative, got {warmup}")
        if not 1 <= batches <= every:
            raise ValueError(
                f"--rick-batches={batches} must be from 1 to --rick-every={every}, got {batches}"
            )
        self.freeze, self.prune, self.warmup = freeze, prune, warmup
        self.every, self.batches = every, batches

    def setup(self, run: Run) -> None:
        if self.freeze == 100 and not self.prune and not self.warmup:
            return
        run.needs_source(f"--rick-freeze={self.freeze:g}", "filters to keep")
        super().setup(run)

    def starts(self, param: Tensor) -> dict[str, Tensor]:
        none = param.new_zeros(len(param), dtype=torch.bool)
        return {"frozen": none, "pruned": none.clone(), **super().starts(param)}

    def enter(self, done: int) -> None:
        left = self.warmup - done - 1  # iterations after the next one until a decision
        if left < 0:
            left %= self.every
        self._warming_up = done < self.warmup
        self.measured = left < self.batches
        self.decides = left == 0

    def before_step(self, net: str, params: Mapping[str, torch.nn.Parameter]) -> None:
        super().before_step(net, params)
        if self._warming_up:
            filters.drop_gradients(params, [n for n in params if net == "D" and n.startswith(LAST)])
            return
        frozen, pruned = self.kept(net, "frozen"), self.kept(net, "pruned")
        for name, param, _ in self.reached(net, params):
            self.hold(param, frozen[name] | pruned[name])

    def decide(self, net: str) -> None:
        fisher = {n: x for n, x in self.kept(net, "fisher").items() if x.any()}  # if trained
        if not fisher:
            return
        frozen, pruned = self.kept(net, "frozen"), self.kept(net, "pruned")
        chosen = masks(fisher, pruned, freeze=self.freeze, prune=self.prune)
        for name, values in fisher.items():
            param = self.convolutions[net][name]
            frozen[name].copy_(chosen[0][name])
            pruned[name].copy_(chosen[1][name])
            param.masked_fill_(filters.rows(pruned[name], param), 0)
            values.zero_()
            stats.report(f"RICK/frozen/{net}", frozen[name].float())
            stats.report(f"RICK/pruned/{net}", pruned[name].float())
