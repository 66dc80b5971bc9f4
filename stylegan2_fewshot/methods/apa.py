"""APA: adaptive pseudo augmentation."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .. import distributed, stats
from ..adaptive import AdaptiveProbability, default_kimg
from ..plugin import Plugin, Run, Step, register

SIGNALS = {"lambda_r": (1.0, 0.0), "lambda_f": (0.0, -1.0), "lambda_rf": (0.5, -0.5)}


def overfitting(signal: str, sums: Tensor) -> Tensor:
    """Return the share by which D is sure of itself, in [-1, 1].

    Jiang et al., NeurIPS 2021 (arXiv 2111.06849), section 3, with D(.) the logit: `lambda_r` is
    E[sign D(x)], `lambda_f` is -E[sign D(G(z))], and `lambda_rf` is the mean of the two.

    Args:
        signal: Name of the heuristic.
        sums: `[[sum of signs, number], ...]` for the real and for the fake logits.
    """
    means = sums[:, 0] / sums[:, 1].clamp(min=1)
    return means @ means.new_tensor(SIGNALS[signal])


def replace(img: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Return `img` `[N, ...]` with the samples where `mask` `[N]` is set taken from `other`."""
    return torch.where(mask.view(-1, *[1] * (img.ndim - 1)), other.to(img.dtype), img)


@register("apa")
class APA(Plugin):
    """Show D generated images as real ones, the more of them the more D overfits (APA).

    Jiang et al., NeurIPS 2021 (arXiv 2111.06849). With probability p per sample, a real image on
    its way into D, in Dmain and, drawn anew, in R1, gives way to an image that the live G made in
    this iteration, which keeps the label it was made with. p starts at 0 and moves every four
    iterations.

    Args:
        target: Signal above which p rises and below which it falls, in [-1, 1].
        kimg: Thousands of images in which p can go from 0 to 1; 500, or 100 with --resume, where
            --cfg=fewshot takes 5 % of the run if that is less.
        max_: Upper bound of p, in [0, 1]; at 1, D may never see a real image.
        signal: Measure of overfitting: signs of the real logits, of the fake ones, or of both.
        signal_on: Measure it on the mixed batch, as published, or on what was not replaced.
    """

    augmentation = True
    status: ClassVar = {"apa_p": "Augment/apa_p", "apa_signal": "APA/signal"}
    neutral: ClassVar = {"max_": 0.0}
    sums: Tensor
    batch: Tensor

    def __init__(
        self,
        *,
        target: float = 0.6,
        kimg: float | None = None,
        max_: float = 0.99,
        signal: Literal["lambda_r", "lambda_f", "lambda_rf"] = "lambda_r",
        signal_on: Literal["mixed", "real"] = "mixed",
    ) -> None:
        super().__init__()
        self.signal, self.signal_on = signal, signal_on
        flags = ("--apa-target", "--apa-kimg", "--apa-max")
        self.adaptive = AdaptiveProbability(target, kimg, max_, flags=flags)
        # Real, fake: sum of signs, number; over all ranks, and of this one in this iteration.
        self.register_buffer("sums", torch.zeros(2, 2))
        self.register_buffer("batch", torch.zeros(2, 2), persistent=False)
        self._fakes: list[tuple[Tensor, Tensor]] = []  # one entry per micro-batch of Gmain
        self._passes: Counter[str] = Counter()
        self._replaced: Tensor | None = None

    @classmethod
    def derived(cls, *, kimg: float, resumed: bool, few_shot: bool) -> dict[str, Any]:
        return {"kimg": default_kimg(kimg=kimg, resumed=resumed, few_shot=few_shot)}

    def setup(self, run: Run) -> None:
        self.adaptive.setup(run)

    def real_images(self, img: Tensor, c: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        fakes, labels = self._fakes[self._passes[step.phase]]
        self._passes[step.phase] += 1
        mask = self._draw(img, step)
        return replace(img, fakes, mask), replace(c, labels, mask)

    def observe(self, step: Step) -> None:
        if step.phase == "Gmain":
            assert step.img is not None and step.c is not None
            self._fakes.append((step.img.detach(), step.c))
        elif step.phase in ("Dreal", "Dr1", "Dfake"):
            assert step.logits is not None
            self._count(step.logits, fake=step.phase == "Dfake")

    def after_step(self, cur_nimg: int) -> None:
        self._fakes.clear()
        self._passes.clear()
        self.sums += distributed.sum_(self.batch)
        self.batch.zero_()
        if self.adaptive.moves_after(cur_nimg):
            signal = overfitting(self.signal, self.sums)
            self.adaptive.observe(signal)
            self.sums.zero_()
            stats.report("APA/signal", signal)
        self.adaptive.update(cur_nimg)
        stats.report("Augment/apa_p", self.adaptive.p)

    def _draw(self, img: Tensor, step: Step) -> Tensor:
        """Draw which samples to replace, `[N]`, and remember it for the signal."""
        rng = self.rng(step, img.device)
        self._replaced = torch.rand(len(img), generator=rng, device=img.device) < self.adaptive.p
        return self._replaced

    def _count(self, logits: Tensor, *, fake: bool) -> None:
        replaced, self._replaced = self._replaced, None
        keep = torch.ones_like(logits.flatten(), dtype=self.batch.dtype)
        if replaced is not None and self.signal_on == "real":
            keep = (~replaced).to(keep)
        self.batch[int(fake)] += torch.stack([(logits.flatten().sign() * keep).sum(), keep.sum()])
