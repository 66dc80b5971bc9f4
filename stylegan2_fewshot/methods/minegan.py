"""MineGAN: a miner in front of the source's generator finds what of it is near to the target."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ..factors import Factors
from ..filters import drop_gradients
from ..ops.reference import ACTIVATIONS
from ..plugin import Run, register
from ..stages import Staged

LRELU = ACTIVATIONS["lrelu"]


@torch.no_grad()
def install(G: Any, *, layers: int) -> None:
    """Put a miner into a generator, which makes the same images as before, to rounding.

    In front of the mapping network's layers stand further ones, `fc0` and so on, of the same width.
    For leaky rectifiers f of slope a, `-f(-f(x) / a) = x`: a pair of layers turns the sign, which
    is turned back in the weights of the source's first layer.

    Args:
        G: Generator whose `init_kwargs` are its constructor's arguments; is changed.
        layers: Number of layers, even.
    """
    mapping = G.mapping
    source = [getattr(mapping, f"fc{number}") for number in range(mapping.num_layers)]
    miner = [copy.deepcopy(source[0]) for _ in range(layers)]
    for number, layer in enumerate(miner):
        factor = -1 / LRELU.alpha if number % 2 else 1.0
        layer.weight.copy_(torch.eye(len(layer.weight)) * (factor / LRELU.gain / layer.weight_gain))
        layer.bias.zero_()
    if layers % 4:
        source[0].weight.neg_()
    for number, layer in enumerate([*miner, *source]):
        setattr(mapping, f"fc{number}", layer)
    mapping.num_layers += layers
    kwargs = G.init_kwargs.get("mapping_kwargs") or {}
    width = {"num_layers": mapping.num_layers, "layer_features": len(source[0].weight)}
    G.init_kwargs = {**G.init_kwargs, "mapping_kwargs": {**kwargs, **width}}


def names_in_source(G: Any, *, layers: int) -> dict[str, str | None]:
    """Return what parameters of the mapping were called before `install`; None for the miner's."""
    found: dict[str, str | None] = {}
    for number in range(G.mapping.num_layers):
        for kind, _ in getattr(G.mapping, f"fc{number}").named_parameters():
            old = f"mapping.fc{number - layers}.{kind}"
            found[f"mapping.fc{number}.{kind}"] = old if number >= layers else None
    return found


@register("minegan")
class MineGAN(Staged):
    """Learn where in the source's latent space the target lies, then adapt both (MineGAN).

    Wang et al., CVPR 2020: a small network, the miner, turns z into latents of the source's
    generator. At first only the miner and D are trained, then the whole of G with them. Here the
    miner is the first layers of the mapping network, behind the normalisation of z, which is not
    repeated behind the miner: so a network pickle is an ordinary one with a deeper mapping, and
    whatever loads it draws with the miner. Layers of the source's mapping are named after it: with
    two layers, its `fc0` is `fc2`. Remembered, not verified: two layers as wide as z. Our choices:
    the miner starts as the identity, so that the first images are the source's; its layers learn
    as fast as --glr says, without the mapping's learning rate multiplier of 0.01; how long it is
    alone.

    Args:
        layers: Layers of the miner, an even number, or else it could not start as the identity; 0
            leaves G as it is.
        alone: Iterations in which only the miner and D are trained.
    """

    neutral: ClassVar = {"layers": 0}
    rebuilds = True
    rewrites = True
    _is_alone = False  # the miner

    def __init__(self, *, layers: int = 2, alone: int = 500) -> None:
        super().__init__()
        if layers < 0 or layers % 2:
            raise ValueError(f"--minegan-layers must be an even number, or 0, got {layers}")
        if alone < 0:
            raise ValueError(f"--minegan-alone must not be negative, got {alone}")
        self.layers, self.alone = layers, alone
        self._miner: list[str] = []  # names of its parameters
        self._scale = 1.0  # of the mapping's layers

    def setup(self, run: Run) -> None:
        if not self.layers:
            return
        super().setup(run)
        option = f"--minegan-layers={self.layers}"
        run.needs_source(option, "latents to mine")
        G: Any = run.G
        first = G.mapping.fc0
        if G.c_dim:
            raise ValueError(
                f"{option}: labels enter the mapping network beside z, where the miner stands; "
                "drop --cond or --prior, or take a source without labels"
            )
        if first.weight.shape[0] != first.weight.shape[1] or first.activation != "lrelu":
            raise ValueError(
                f"{option}: to start as the identity, the miner needs a mapping network of leaky "
                "rectifiers as wide as z; take another source"
            )
        for net in (run.G, run.G_ema):
            if net is not None:
                install(net, layers=self.layers)
        names = names_in_source(G, layers=self.layers)
        run.names.update(names)
        self._miner = [name for name, old in names.items() if old is None]
        self._scale = first.bias_gain
        params = {f"G.{name}": G.get_parameter(name) * self._scale for name in self._miner}
        self.factors = Factors(params, run.optimizers)

    def enter(self, done: int) -> None:
        self._is_alone = done < self.alone

    def before_step(self, net: str, params: Mapping[str, torch.nn.Parameter]) -> None:
        if net != "G" or not self._miner:
            return
        for name in self._miner:
            if name in params and (grad := params[name].grad) is not None:
                params[name].copy_(self.factors.step(f"G.{name}", grad / self._scale) / self._scale)
                params[name].grad = None  # the network's optimizer leaves it where it is
        if self._is_alone:
            drop_gradients(params)
