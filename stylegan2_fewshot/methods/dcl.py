"""DCL: what one latent makes of source and adapted network resembles itself most."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import stats
from ..features import compared, latents, layers_of
from ..networks import synthesis_of
from ..plugin import Plugin, Run, Step, register


def contrast(adapted: Tensor, source: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE loss whose positive pairs are `(adapted[i], source[i])`, a scalar.

    Van den Oord et al. 2018 (arXiv 1807.03748), Eq. 4, with cosine similarities: every `adapted[i]`
    is to resemble `source[i]` more than any other `source[j]`.

    Args:
        adapted: Features `[N, ...]`; all but the first dimension are one vector.
        source: Features of the same shape.
        temperature: What similarities are divided by.
    """
    rows, columns = (F.normalize(x.flatten(1).float(), dim=1) for x in (adapted, source))
    return F.cross_entropy(
        rows @ columns.T / temperature, torch.arange(len(rows), device=rows.device)
    )


@register("dcl")
class DCL(Plugin):
    """Let what one latent makes of source and adapted G resemble itself most (DCL).

    Zhao, Ding, Huang, Cao, Li and Huang, CVPR 2022: latents of its own go through G and through a
    frozen copy of the source; the same latent is the positive pair, the others are negatives. In
    G's main loss on the features of the generator's layers (the mean over all of them, which is our
    choice), in D's on what D's last block is given of either image, unaugmented. Weights and
    temperature are remembered, not verified; so is that negatives in D are generated images.

    Args:
        g: Weight of the contrast in G, 2 as remembered; 0 switches it off.
        d: Weight of the contrast in D.
        temperature: Temperature of both.
        batch: Latents that are told from one another.
    """

    neutral: ClassVar = {"g": 0.0, "d": 0.0}

    def __init__(
        self, *, g: float = 2.0, d: float = 0.5, temperature: float = 0.07, batch: int = 4
    ) -> None:
        super().__init__()
        for name, value in (("g", g), ("d", d)):
            if not value >= 0:
                raise ValueError(f"--dcl-{name} must not be negative, got {value}")
        if not temperature > 0:
            raise ValueError(f"--dcl-temperature must be positive, got {temperature}")
        if batch < 2:
            raise ValueError(f"--dcl-batch must be at least 2 to have negatives, got {batch}")
        self.weights = {"Gmain": g, "Dfake": d}
        self.temperature, self.batch = temperature, batch
        self._nets: tuple[Any, ...] = ()  # G, D and the source's G, no parts of this module

    def setup(self, run: Run) -> None:
        if not any(self.weights.values()):
            return
        weights = zip("gd", self.weights.values(), strict=True)
        option = next(f"--dcl-{name}={weight:g}" for name, weight in weights if weight)
        run.needs_source(option, "images to compare with")
        source = copy.deepcopy(run.G).eval().requires_grad_(False)
        self._nets = run.G, run.D, source

    def penalty(self, step: Step) -> Tensor | None:
        if not self._nets or not self.weights.get(step.phase):
            return None
        assert step.z is not None
        z, c = latents(step, self.batch, self.rng(step, step.z.device))
        term = self._in_g(z, c) if step.phase == "Gmain" else self._in_d(z, c)
        stats.report(f"DCL/{step.phase[0]}", term)
        return self.weights[step.phase] * term

    def _in_g(self, z: Tensor, c: Tensor | None) -> Tensor:
        G, _, source = self._nets
        pairs = compared(G, source, z, c, layers_of(G))
        return torch.stack([contrast(*pair, self.temperature) for pair in pairs]).mean()

    def _in_d(self, z: Tensor, c: Tensor | None) -> Tensor:
        G, D, source = self._nets
        found: list[Tensor] = []
        handle = D.b4.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
        try:
            for net in (G, source):
                with torch.no_grad():
                    ws = net.mapping(z, c, skip_w_avg_update=True)
                    img = net.synthesis(ws, noise_mode="const", **synthesis_of(net, z))
                D(img, c)
        finally:
            handle.remove()
        return contrast(found[0], found[1], self.temperature)
