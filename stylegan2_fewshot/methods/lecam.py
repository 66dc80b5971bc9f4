"""LeCam: D's logits are held near their own running means."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import relu

from .. import distributed, stats
from ..plugin import Plugin, Step, register

ROW = {"Dreal": 0, "Dfake": 1}


def excess(logits: Tensor, mean: Tensor, *, real: bool) -> Tensor:
    """Return the mean squared amount by which D wins against the other side's running mean.

    Tseng et al., CVPR 2021 (arXiv 2104.03310), Eq. 2: E[relu(D(x) - m_fake)^2] for real logits,
    E[relu(m_real - D(G(z)))^2] for fake ones.

    Args:
        logits: D's output, any shape.
        mean: Running mean of the logits of the other kind, a scalar.
        real: Whether `logits` are those of real images.
    """
    return relu(logits - mean if real else mean - logits).square().mean()


@register("lecam")
class LeCam(Plugin):
    """Keep D's logits near their own running means (LeCam regularisation).

    Tseng et al., CVPR 2021 (arXiv 2104.03310), Eq. 2. Real logits are pulled towards the running
    mean of the fake ones and the reverse, only on the side where D is winning. The means start
    with the first iteration's, and take in one batch, over all ranks, in every further one.

    Args:
        lambda_: Strength of the penalty; 0 switches it off, 3e-7 is the published one.
        decay: Share of the running mean kept per batch, in [0, 1).
        start_kimg: Thousands of images shown to D before the penalty sets in.
    """

    neutral: ClassVar = {"lambda_": 0.0}
    means: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self, *, lambda_: float = 0.0, decay: float = 0.99, start_kimg: float = 0.0
    ) -> None:
        super().__init__()
        if not lambda_ >= 0:
            raise ValueError(f"--lecam-lambda must not be negative, got {lambda_}")
        if not 0 <= decay < 1:
            raise ValueError(f"--lecam-decay must be in [0, 1), got {decay}")
        self.lambda_, self.decay, self.start_kimg = lambda_, decay, start_kimg
        self.register_buffer("means", torch.zeros(2))  # real, fake
        self.register_buffer("sums", torch.zeros(2, 2))  # real, fake: sum of logits, number
        self.register_buffer("started", torch.zeros([]))  # 1 once there are means

    def observe(self, step: Step) -> None:
        if step.phase in ROW and step.logits is not None:
            total = step.logits.sum()
            number = torch.full_like(total, step.logits.numel())
            self.sums[ROW[step.phase]] += torch.stack([total, number])

    def penalty(self, step: Step) -> Tensor | None:
        if step.phase not in ROW or step.logits is None or not self.lambda_:
            return None
        if step.cur_nimg < self.start_kimg * 1000:
            return None
        row = ROW[step.phase]
        term = excess(step.logits.float(), self.means[1 - row], real=row == 0) * self.started
        stats.report("LeCam/penalty", term)
        return self.lambda_ * term

    def after_step(self, cur_nimg: int) -> None:
        total = distributed.sum_(self.sums)
        batch = total[:, 0] / total[:, 1].clamp(min=1)
        self.means.lerp_(batch, 1 - self.decay * self.started)
        self.started.fill_(1)
        self.sums.zero_()
