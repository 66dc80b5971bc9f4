"""CDC: distances between generated images are kept as the source has them."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import stats
from ..features import compared, latents, layers_of
from ..plugin import Plugin, Run, Step, register


def log_similarities(features: Tensor) -> Tensor:
    """Return how each sample's likeness to the others is distributed, as logarithms `[N, N - 1]`.

    Ojha et al., CVPR 2021 (arXiv 2104.06820), Eq. 2: softmax over cosine similarities.

    Args:
        features: `[N, ...]`; all but the first dimension are one vector.
    """
    unit = F.normalize(features.flatten(1).float(), dim=1)
    others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (unit @ unit.T)[others].view(len(unit), -1).log_softmax(1)


def consistency(adapted: Tensor, source: Tensor) -> Tensor:
    """Return the mean over samples of KL(source || adapted) of their similarities, a scalar.

    Ojha et al., Eq. 3.

    Args:
        adapted: Features `[N, ...]` of the adapted generator.
        source: Those of the source, for the same latents.
    """
    return F.kl_div(
        log_similarities(adapted),
        log_similarities(source),
        log_target=True,
        reduction="batchmean",
    )


@register("cdc")
class CDC(Plugin):
    """Keep distances between images as the source has them (cross-domain correspondence).

    Ojha et al., CVPR 2021 (arXiv 2104.06820), the consistency term: in every pass of G's main loss
    a few latents of its own go through G and through a frozen copy of the source, and at a layer
    drawn at random the likeness of each sample to the others is to be the same in both. The paper's
    other half, anchors and a discriminator of patches, is not here. Remembered, not verified: the
    published code averages the divergence over pairs, not over samples, so that its weight of 1000
    is 1000 / (batch - 1) here; and it draws among all layers but the first and the last, which
    is done here where there are more than two.

    Args:
        lambda_: Weight of the consistency term; 0 switches it off.
        batch: Latents that are compared with one another.
    """

    neutral: ClassVar = {"lambda_": 0.0}

    def __init__(self, *, lambda_: float = 1000.0, batch: int = 4) -> None:
        super().__init__()
        if not lambda_ >= 0:
            raise ValueError(f"--cdc-lambda must not be negative, got {lambda_}")
        if batch < 3:
            raise ValueError(f"--cdc-batch must be at least 3 to compare distances, got {batch}")
        self.lambda_, self.batch = lambda_, batch
        self._nets: tuple[Any, ...] = ()  # G and its source, no parts of this module
        self._layers: list[str] = []

    def setup(self, run: Run) -> None:
        if not self.lambda_:
            return
        run.needs_source(f"--cdc-lambda={self.lambda_:g}", "distances to keep")
        self._nets = run.G, copy.deepcopy(run.G).eval().requires_grad_(False)
        layers = layers_of(run.G)
        self._layers = layers[1:-1] or layers

    def penalty(self, step: Step) -> Tensor | None:
        if step.phase != "Gmain" or not self._nets:
            return None
        G, source = self._nets
        assert step.z is not None
        rng = self.rng(step, step.z.device)
        z, c = latents(step, self.batch, rng)
        number = torch.randint(len(self._layers), [], generator=rng, device=z.device)
        ((adapted, wanted),) = compared(G, source, z, c, [self._layers[int(number)]])
        term = consistency(adapted, wanted)
        stats.report("CDC/consistency", term)
        return self.lambda_ * term
