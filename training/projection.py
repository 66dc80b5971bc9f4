"""Finds the latents whose images look like given ones, and tunes a generator around them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stylegan2_fewshot.pixels import to_float

Embedding = Callable[[Tensor], Tensor]  # images [N, 3, H, W] of 0 to 255 to LPIPS vectors [N, F]

LARGEST = 256  # pixels a side that LPIPS looks at
_SAMPLES = 10_000  # latents behind the mean and the deviation of w
_SAMPLES_SEED = 123
_NOISE_SMALLEST = 8


@dataclass(frozen=True)
class Settings:
    """How to search, by default as Karras et al., CVPR 2020 (arXiv 1912.04958), appendix D.

    Attributes:
        space: "w" for one vector, "w+" for one per layer.
        steps: Steps of Adam.
        free_noise: Let the noise maps follow the image too, and have the search start from random
            ones. They are dropped at the end: images are made with the network's own. Without it
            the network's own stay as they are.
        seed: Seed of the noise; each image has its own stream, so that a batch changes nothing.
        lr: Learning rate between its ramps.
        rampup: Share of the steps over which the learning rate rises.
        rampdown: Share of the steps over which it falls.
        jitter: Deviation of what is added to w at first, relative to that of w.
        jitter_until: Share of the steps over which that falls to 0.
        shared_until: Share of the steps over which the layers of W+ keep one vector. Freed at once
            they sometimes end in a local optimum, where a part of the image is missing.
        noise_weight: Weight of the noise maps' correlation with themselves, moved by a pixel.
    """

    space: str = "w"
    steps: int = 1000
    free_noise: bool = True
    seed: int = 303
    lr: float = 0.1
    rampup: float = 0.05
    rampdown: float = 0.25
    jitter: float = 0.05
    jitter_until: float = 0.75
    shared_until: float = 0.25
    noise_weight: float = 1e5

    def rate_at(self, done: float) -> float:
        """Return the learning rate when a share `done` of the steps is done."""
        falling = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / self.rampdown))
        return self.lr * falling * min(1.0, done / self.rampup)

    def jitter_at(self, done: float) -> float:
        """Return the jitter when a share `done` of the steps is done."""
        return self.jitter * max(0.0, 1 - done / self.jitter_until) ** 2


def mean_and_deviation(mapping: Any, c: Tensor) -> tuple[Tensor, float]:
    """Return the mean `[1, w_dim]` of w for one condition `[1, c_dim]`, and its deviation."""
    device = next(mapping.parameters()).device
    z = np.random.RandomState(_SAMPLES_SEED).randn(_SAMPLES, mapping.z_dim)
    with torch.no_grad():
        w = mapping(torch.from_numpy(z).to(device), c.to(device).expand(_SAMPLES, -1))[:, 0]
    mean = w.mean(0, keepdim=True)
    return mean, float(((w - mean).square().sum() / _SAMPLES).sqrt())


class Projection:
    """A search for the latents of a batch of images.

    Args:
        G: Generator; a copy of it is used.
        targets: Images `[N, C, R, R]` of 0 to 255, of the generator's size.
        c: Their conditions `[N, c_dim]`.
        embed: LPIPS of images as squared distances.
        settings: How to search.
        synthesis: Further arguments of the generator's synthesis, as a route.

    Attributes:
        w: The latents, `[N, 1, w_dim]`, or `[N, num_ws, w_dim]` in W+.
    """

    def __init__(
        self,
        G: Any,
        targets: Tensor,
        c: Tensor,
        embed: Embedding,
        settings: Settings,
        synthesis: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.embed = settings, embed
        device = next(G.parameters()).device
        self.G = copy.deepcopy(G).eval().requires_grad_(False)
        self.synthesis = {"noise_mode": "const", **(synthesis or {})}
        if device.type == "cpu":  # bfloat16 is too coarse to follow
            self.synthesis["force_fp32"] = True
        self.wanted = embed(visible(targets.to(device).float()))
        found = [mean_and_deviation(self.G.mapping, row[None]) for row in c]
        count = self.G.num_ws if settings.space == "w+" else 1
        self.w = torch.stack([mean for mean, _ in found]).repeat(1, count, 1).requires_grad_(True)
        self._deviations = torch.tensor([d for _, d in found], device=device)[:, None, None]
        self._random = [torch.Generator().manual_seed(settings.seed) for _ in c]
        self.noise = self._free_noise() if settings.free_noise else []
        self._adam = torch.optim.Adam([self.w, *self.noise], betas=(0.9, 0.999), lr=settings.lr)

    def _draw(self, *shape: int) -> Tensor:
        each = [torch.randn(shape, generator=rng) for rng in self._random]
        return torch.stack(each).to(self.w.device)

    def _free_noise(self) -> list[Tensor]:
        """Give every image noise maps of its own, `[N, 1, r, r]`."""
        layers = [layer for layer in self.G.synthesis.modules() if hasattr(layer, "noise_const")]
        for layer in layers:
            layer.noise_const = self._draw(*layer.noise_const.shape)[:, None].requires_grad_(True)
        return [layer.noise_const for layer in layers]

    def latents(self) -> Tensor:
        """Return what was found so far, `[N, num_ws, w_dim]`."""
        return self.w.detach().expand(-1, self.G.num_ws, -1).clone()

    def run(self) -> Iterator[Tensor]:
        """Search; yield after each step the images' LPIPS `[N]` before it."""
        for step in range(self.settings.steps):
            done = step / self.settings.steps
            for group in self._adam.param_groups:
                group["lr"] = self.settings.rate_at(done)
            jitter = self._draw(*self.w.shape[1:]) * self._deviations
            is_shared = done < self.settings.shared_until
            jitter = jitter[:, :1] if is_shared else jitter
            distances = self._distances(self.w + jitter * self.settings.jitter_at(done))
            self._adam.zero_grad(set_to_none=True)
            (distances.sum() + self._correlation() * self.settings.noise_weight).backward()
            if is_shared and self.w.grad is not None:
                self.w.grad.copy_(self.w.grad.mean(1, keepdim=True))
            self._adam.step()
            self._normalise_noise()
            yield distances.detach()

    def sec_per_step(self) -> float:
        """Return how long a step takes on this machine; nothing changes by it."""
        for _ in range(2):  # the first one is slow
            start = time.perf_counter()
            self._distances(self.w).sum().backward()
            spent = time.perf_counter() - start
        self._adam.zero_grad(set_to_none=True)
        return spent

    def _distances(self, w: Tensor) -> Tensor:
        ws = w.expand(-1, self.G.num_ws, -1)
        return distances(self.embed, self.G.synthesis(ws, **self.synthesis), self.wanted)

    def _correlation(self) -> Tensor:
        total = torch.zeros([], device=self.w.device)
        for noise in self.noise:
            total = total + correlation(noise).sum()
        return total

    @torch.no_grad()
    def _normalise_noise(self) -> None:
        for noise in self.noise:
            noise -= noise.mean([1, 2, 3], keepdim=True)
            noise *= noise.square().mean([1, 2, 3], keepdim=True).rsqrt()


def correlation(noise: Tensor) -> Tensor:
    """Return how much maps `[N, 1, R, R]` resemble themselves moved by a pixel, over scales, `[N]`.

    Karras et al., CVPR 2020 (arXiv 1912.04958), Eq. 6.
    """
    total = torch.zeros(len(noise), device=noise.device)
    while True:
        for axis in (3, 2):
            total = total + (noise * noise.roll(1, axis)).mean([1, 2, 3]).square()
        if noise.shape[2] <= _NOISE_SMALLEST:
            return total
        noise = F.avg_pool2d(noise, 2)


def visible(images: Tensor) -> Tensor:
    """Return what LPIPS sees of images of 0 to 255: `[N, 3, h, w]`, 256 pixels at most."""
    if images.shape[1] == 4:
        alpha = images[:, 3:] / 255
        images = images[:, :3] * alpha + 255 * (1 - alpha)
    if images.shape[2] > LARGEST:
        images = F.interpolate(images, size=(LARGEST, LARGEST), mode="area")
    return images.expand(-1, 3, -1, -1)


def distances(embed: Embedding, images: Tensor, wanted: Tensor) -> Tensor:
    """Return LPIPS `[N]` of images in [-1, 1] to those with the vectors `wanted` `[N, F]`."""
    return (embed(visible((images + 1) * 127.5)) - wanted).square().sum(1)


def tuned(
    G: Any,
    ws: Tensor,
    targets: Tensor,
    embed: Embedding,
    *,
    steps: int,
    lr: float = 3e-4,
    synthesis: Mapping[str, Any] | None = None,
    on_step: Callable[[float], object] = lambda loss: None,
) -> Any:
    """Return a generator whose images at latents `ws` are nearer to the targets.

    Pivotal tuning: Roich et al., TOG 2022 (arXiv 2106.05744), Eq. 3: LPIPS and the mean squared
    difference of pixels, over the weights of the synthesis, at fixed latents.

    Args:
        G: Generator; a copy is trained.
        ws: Latents `[N, num_ws, w_dim]`.
        targets: Images `[N, C, R, R]` of 0 to 255.
        embed: LPIPS of images as squared distances.
        steps: Steps of Adam, each over all images.
        lr: Learning rate.
        synthesis: Further arguments of the synthesis.
        on_step: Is told the mean loss before each step.
    """
    G = copy.deepcopy(G).eval().requires_grad_(False)
    ws, targets = ws.to(next(G.parameters()).device), targets.to(next(G.parameters()).device)
    arguments = {"noise_mode": "const", "force_fp32": True, **(synthesis or {})}
    wanted, pixels = embed(visible(targets.float())), to_float(targets)
    weights = list(G.synthesis.requires_grad_(True).parameters())
    adam = torch.optim.Adam(weights, lr=lr)
    for _ in range(steps):
        adam.zero_grad(set_to_none=True)
        images = G.synthesis(ws, **arguments)
        loss = distances(embed, images, wanted).mean() + F.mse_loss(images, pixels)
        loss.backward()
        adam.step()
        on_step(float(loss.detach()))
    return G.requires_grad_(False)
