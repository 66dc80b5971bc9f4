"""The losses of StyleGAN2, with the five places where plugins take part."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import stats
from .plugin import Plugins, Step


class StyleGAN2Loss:
    """Non-saturating logistic loss with R1 and path-length regularisation.

    Karras et al., CVPR 2020 (arXiv 1912.04958); R1: Mescheder et al., ICML 2018 (arXiv 1801.04406).

    Args:
        device: Where the networks are.
        G_mapping: `(z, c) -> ws`.
        G_synthesis: `ws -> images`.
        D: `(images, c) -> logits [N, 1]`.
        plugins: Methods that take part; None for none.
        style_mixing_prob: Probability that a batch, all of it, gets second latents.
        r1_gamma: Weight of R1.
        pl_batch_shrink: Path lengths are measured on a batch this many times smaller.
        pl_decay: How fast the mean path length follows, per batch.
        pl_weight: Weight of the path-length penalty.
    """

    def __init__(
        self,
        device: torch.device,
        G_mapping: Callable[..., Tensor],
        G_synthesis: Callable[..., Tensor],
        D: Callable[..., Tensor],
        plugins: Plugins | None = None,
        style_mixing_prob: float = 0.9,
        r1_gamma: float = 10,
        pl_batch_shrink: int = 2,
        pl_decay: float = 0.01,
        pl_weight: float = 2,
    ) -> None:
        self.G_mapping, self.G_synthesis, self.D = G_mapping, G_synthesis, D
        self.plugins = Plugins() if plugins is None else plugins
        self.style_mixing_prob = style_mixing_prob
        self.r1_gamma = r1_gamma
        self.pl_batch_shrink, self.pl_decay, self.pl_weight = pl_batch_shrink, pl_decay, pl_weight
        self.pl_mean = torch.zeros([], device=device)
        self.cur_nimg = 0  # the loop sets it once an iteration; plugins see it in each Step

    def accumulate_gradients(
        self,
        phase: str,
        real_img: Tensor,
        real_c: Tensor,
        gen_z: Tensor,
        gen_c: Tensor,
        sync: bool = True,
        gain: float = 1,
    ) -> None:
        """Add the gradients of one phase, for one micro-batch.

        Args:
            phase: Gmain, Greg, Gboth, Dmain, Dreg or Dboth.
            real_img: Real images `[N, C, H, W]` in [-1, 1].
            real_c: Their labels `[N, c_dim]`.
            gen_z: Latents `[N, z_dim]`.
            gen_c: Labels of the generated images `[N, c_dim]`.
            sync: Whether DistributedDataParallel, where a network is wrapped in it, is to average
                the gradients now.
            gain: Factor of the loss.
        """
        if phase not in ("Gmain", "Greg", "Gboth", "Dmain", "Dreg", "Dboth"):
            raise ValueError(f"phase must be (G|D)(main|reg|both), got {phase!r}")
        main, reg = phase[1:] in ("main", "both"), phase[1:] in ("reg", "both")
        if phase[0] == "G":
            if main:
                self._g_main(gen_z, gen_c, gain, sync and not (reg and self.pl_weight))
            if reg and self.pl_weight != 0:
                self._g_path_length(gen_z, gen_c, gain, sync)
        else:
            of_fakes = self._d_fake(gen_z, gen_c, gain) if main else None
            self._d_real(real_img, real_c, gain, sync, of_fakes, reg and self.r1_gamma != 0)

    def pl_noise(self, img: Tensor) -> Tensor:
        """Draw the standard normal noise of the path-length term, in the shape of `img`."""
        return torch.randn_like(img)

    def _generate(self, z: Tensor, c: Tensor, sync: bool) -> tuple[Tensor, Tensor]:
        """Return images and their `ws`."""
        with _synced(self.G_mapping, sync):
            ws = self._mix_styles(self.G_mapping(z, c), z, c)
        if torch.is_grad_enabled():
            ws.requires_grad_()  # path lengths are slopes along it, and the mapping may be frozen
        with _synced(self.G_synthesis, sync):
            return self.G_synthesis(ws, **self.plugins.synthesis(z)), ws

    def _mix_styles(self, ws: Tensor, z: Tensor, c: Tensor) -> Tensor:
        """Give the whole batch second latents from one random layer on, or none of it: one draw."""
        if self.style_mixing_prob <= 0:
            return ws
        cut = torch.randint(1, ws.shape[1], [], device=ws.device)
        mixed = torch.rand([], device=ws.device) < self.style_mixing_prob
        other = self.G_mapping(torch.randn_like(z), c, skip_w_avg_update=True)
        later = torch.arange(ws.shape[1], device=ws.device) >= cut
        return torch.where((later & mixed)[:, None], other, ws)

    def _discriminate(
        self, img: Tensor, c: Tensor, step: Step, sync: bool = False
    ) -> tuple[Tensor, Step]:
        """Return D's logits `[N, 1]`, and the step with them, which plugins have observed."""
        with _synced(self.D, sync):
            logits = self.D(self.plugins.augment(img, step), c)
        step = replace(step, logits=logits)
        kind = "real" if step.is_real else "fake"
        stats.report(f"Loss/scores/{kind}", logits)
        stats.report(f"Loss/signs/{kind}", logits.sign())
        self.plugins.observe(step)
        return logits, step

    def _backward(self, loss: Tensor, step: Step, gain: float) -> None:
        """Add the plugins' penalties and let the gradients flow."""
        penalty = self.plugins.penalty(step)
        loss = loss if penalty is None else loss + penalty
        loss.mul(gain).backward()

    def _g_main(self, z: Tensor, c: Tensor, gain: float, sync: bool) -> None:
        img, ws = self._generate(z, c, sync)
        step = Step("Gmain", self.cur_nimg, c=c, ws=ws, img=img, z=z)
        logits, step = self._discriminate(img, c, step)
        loss = F.softplus(-logits)
        stats.report("Loss/G/loss", loss)
        self._backward(loss.mean(), step, gain)

    def _g_path_length(self, z: Tensor, c: Tensor, gain: float, sync: bool) -> None:
        """Karras et al. 2020, Eq. 4: keep `|J_w^T y|` at its running mean for random images y."""
        count = max(len(z) // self.pl_batch_shrink, 1)
        c = c[:count]
        img, ws = self._generate(z[:count], c, sync)
        noise = self.pl_noise(img) / math.sqrt(img.shape[2] * img.shape[3])
        (slope,) = torch.autograd.grad((img * noise).sum(), [ws], create_graph=True)
        lengths = slope.square().sum(2).mean(1).sqrt()
        mean = self.pl_mean.lerp(lengths.mean(), self.pl_decay)
        self.pl_mean.copy_(mean.detach())
        excess = (lengths - mean).square()
        stats.report("Loss/pl_penalty", excess)
        step = Step("Gpl", self.cur_nimg, c=c, ws=ws, img=img, z=z[:count])
        self.plugins.observe(step)
        # The image takes part with weight 0, so that every parameter has a gradient.
        self._backward((excess * self.pl_weight + img[:, 0, 0, 0] * 0).mean(), step, gain)

    def _d_fake(self, z: Tensor, c: Tensor, gain: float) -> Tensor:
        """Return the loss of each fake `[N, 1]`, detached."""
        with torch.no_grad():
            img, ws = self._generate(z, c, sync=False)
        step = Step("Dfake", self.cur_nimg, c=c, ws=ws, img=img, z=z)
        logits, step = self._discriminate(img, c, step)
        loss = F.softplus(logits)
        self._backward(loss.mean(), step, gain)
        return loss.detach()

    def _d_real(
        self, img: Tensor, c: Tensor, gain: float, sync: bool, of_fakes: Tensor | None, r1: bool
    ) -> None:
        if of_fakes is None and not r1:
            return
        step = Step("Dr1" if of_fakes is None else "Dreal", self.cur_nimg, c=c)
        img, c = self.plugins.real_images(img, c, step)
        img = img.detach().requires_grad_(r1)
        logits, step = self._discriminate(img, c, replace(step, c=c, img=img), sync)
        loss = logits.mean() * 0  # every parameter has a gradient, whatever is measured
        if of_fakes is not None:
            of_reals = F.softplus(-logits)
            loss = of_reals.mean()
            stats.report("Loss/D/loss", of_reals + of_fakes)
        if r1:
            (slope,) = torch.autograd.grad(logits.sum(), [img], create_graph=True)
            square = slope.square().sum([1, 2, 3])
            stats.report("Loss/r1_penalty", square)
            loss = loss + square.mean() * (self.r1_gamma / 2)
        self._backward(loss, step, gain)


def _synced(module: Any, sync: bool) -> contextlib.AbstractContextManager[None]:
    """Keep DistributedDataParallel from averaging gradients unless it is time to."""
    wrapped = isinstance(module, torch.nn.parallel.DistributedDataParallel)
    return contextlib.nullcontext() if sync or not wrapped else module.no_sync()
