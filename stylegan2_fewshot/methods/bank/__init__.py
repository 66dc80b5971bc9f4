"""Stochastic filter banks: an ensemble of generators in one."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from ...drawing import DrawOptions
from ...patterns import chosen
from ...plugin import Plugin, Run, register
from .filters import KEY, banks_of, candidates, install, parse_route, route_argument


class BankDrawing(DrawOptions):
    """Routes through the filter banks.

    Args:
        route: Filter set of each bank, such as 3,1,4; mean; or random, which follows from the
            seed.
    """

    option_names: ClassVar = {"route": "route"}

    def __init__(self, *, route: str = "random") -> None:
        self.route = route

    def synthesis(self, G: Any) -> dict[str, Any] | None:
        return None if self.route == "random" else {"route": parse_route(self.route, G)}


@register("bank")
class Bank(Plugin):
    """Train many generators in one: layers hold several filter sets, every sample takes one each.

    Chaplygin and Chacksfield 2018 (arXiv 1802.02436): K sets in L layers are K^L routes through G,
    weak generators that keep one another from collapsing. A sample's route is a function of its z.
    A set that no sample of a batch takes is not trained in that step, and has not moved after it.
    The sets of a source network start as its filters and jitter, those from scratch independently.
    With EWC, sets are held to the source's filters without the jitter, as the Fisher information
    of the banked network says; a file of the source's knows no sets, and leaves them free.

    Args:
        size: Filter sets per layer, K; 1 leaves G as it is.
        layers: Layers with a bank: patterns, separated by commas, such as `b4.*,b8.conv1`; by
            default the half of them that is nearest to the latent.
        jitter: Standard deviation of what is added to the filters of a source network, relative to
            their root mean square; small against what an adaptation changes.
    """

    neutral: ClassVar = {"size": 1}
    rebuilds = True
    network_key = KEY
    tensor_counts = ("size",)
    ordinary = (
        "make an ordinary network of one route first: "
        "python -m tools.bank_export IN.pkl OUT.pkl --route=mean"
    )
    draws = BankDrawing

    def __init__(self, *, size: int = 1, layers: str = "", jitter: float = 0.01) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"--bank-size must be at least 1, got {size}")
        if not 0 <= jitter < math.inf:
            raise ValueError(f"--bank-jitter must not be negative, got {jitter}")
        self.size, self.layers, self.jitter = size, layers, jitter
        self._G: list[Any] = []  # in a list, or else G would be a part of this module

    @classmethod
    def synthesis_of(cls, G: Any, z: Tensor) -> dict[str, Any]:
        return route_argument(G, z)

    @classmethod
    def rebuild(cls, net: Any, **arguments: Any) -> None:
        install(net, **arguments)

    def setup(self, run: Run) -> None:
        self._G = [run.G]
        layers = candidates(run.G)
        if self.layers:
            layers = chosen("--bank-layers", self.layers, layers)
        else:
            layers = layers[: max(len(layers) // 2, 1)]
        if have := banks_of(run.G):
            self._refuse_others(have, layers)
        elif self.size > 1:
            jitter = self.jitter if run.resumed else None
            for net in (run.G, run.G_ema):
                if net is not None:
                    origins = install(
                        net, size=self.size, layers=layers, jitter=jitter, seed=run.seed
                    )
                    if net is run.G and run.resumed:
                        run.origins.update(origins)

    def synthesis(self, z: Tensor) -> dict[str, Any]:
        return route_argument(self._G[0], z)

    def _refuse_others(self, have: dict[str, Any], layers: list[str]) -> None:
        if have["size"] != self.size:
            raise ValueError(
                f"--bank-size={self.size}: the source network has {have['size']} sets per layer; "
                "give that number"
            )
        if self.layers and have["layers"] != layers:
            raise ValueError(
                f"--bank-layers={self.layers}: the source network has banks in "
                f"{', '.join(have['layers'])}; drop the option"
            )
