"""Perceptual path length: how evenly images change along short steps between latents."""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from stylegan2_fewshot.networks import synthesis_of

from .detectors import Detector, to_rgb
from .features import Subject, group_size, seeded

Space = Literal["z", "w"]
Sampling = Literal["full", "end"]


class PathSteps:
    """Squared LPIPS distance per squared length of a small step between two latents, `[N]`.

    Karras et al., CVPR 2019 (arXiv 1812.04948), section 4.1. Both ends see the same noise, drawn
    anew for every group.

    Args:
        subject: The generator; a copy of it is used, as its noise buffers are written to.
        size: Number of steps.
        lpips: Detector whose squared distances are LPIPS.
        space: Interpolate in z, along the sphere, or in w, along the line.
        sampling: Where steps start: anywhere on the path ("full") or at its first end.
        crop: Look at the middle of the image only, as for portraits.
        epsilon: Length of a step, as a share of the path.
    """

    def __init__(
        self,
        subject: Subject,
        size: int,
        *,
        lpips: Detector,
        space: Space = "w",
        sampling: Sampling = "end",
        crop: bool = False,
        epsilon: float = 1e-4,
    ) -> None:
        self.subject = subject
        self.G = copy.deepcopy(subject.G)
        self.size = size
        self.lpips = lpips
        self.space = space
        self.sampling = sampling
        self.crop = crop
        self.epsilon = epsilon
        self.group = max(1, group_size(subject.G.img_resolution) // 4)

    @torch.no_grad()
    def load(self, start: int, stop: int) -> Tensor:
        with seeded(self.subject.seed, start, self.subject.device) as rng:
            z = torch.randn(2, self.group, self.G.z_dim, generator=rng)
            t = torch.rand(self.group, 1, generator=rng) * (self.sampling == "full")
            c = self.subject.draw_labels(self.group, rng)
            _redraw_noise(self.G, rng)
            inputs = (x[: stop - start].to(self.subject.device) for x in (z[0], z[1], t, c))
            return self._lengths(*inputs)

    def _lengths(self, z0: Tensor, z1: Tensor, t: Tensor, c: Tensor) -> Tensor:
        ws = self._latents(z0, z1, torch.cat([t, t + self.epsilon]), c.repeat(2, 1))
        # Both ends take one route.
        images = self._images(ws, **synthesis_of(self.G, z0.repeat(2, 1)))
        near, far = self.lpips(images).chunk(2)
        return (near - far).square().sum(1) / self.epsilon**2

    def _latents(self, z0: Tensor, z1: Tensor, t: Tensor, c: Tensor) -> Tensor:
        z0, z1 = z0.repeat(2, 1), z1.repeat(2, 1)
        ws: Tensor
        if self.space == "z":
            ws = self.G.mapping(slerp(z0, z1, t), c)
        else:
            ws = self.G.mapping(z0, c).lerp(self.G.mapping(z1, c), t.unsqueeze(2))
        return ws

    def _images(self, ws: Tensor, **route: Tensor) -> Tensor:
        images = self.G.synthesis(ws, noise_mode="const", force_fp32=True, **route).float()
        if self.crop:
            unit = images.shape[-1] // 8
            images = images[:, :, 3 * unit : 7 * unit, 2 * unit : 6 * unit]
        if images.shape[-1] > 256:
            images = nn.functional.avg_pool2d(images, images.shape[-1] // 256)
        return to_rgb((images + 1) * 127.5)


def trimmed_mean(lengths: Tensor) -> float:
    """Return the mean without the lowest and the highest percent."""
    values = lengths.double().numpy()
    low = np.percentile(values, 1, method="lower")
    high = np.percentile(values, 99, method="higher")
    return float(values[(values >= low) & (values <= high)].mean())


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Interpolate on the unit sphere between the directions of a and b `[N, F]`, at t `[N, 1]`."""
    a, b = nn.functional.normalize(a, dim=1), nn.functional.normalize(b, dim=1)
    cosine = (a * b).sum(1, keepdim=True)
    across = nn.functional.normalize(b - cosine * a, dim=1)
    angle = t * cosine.clamp(-1, 1).acos()
    return a * angle.cos() + across * angle.sin()


def _redraw_noise(G: nn.Module, rng: torch.Generator) -> None:
    for name, buffer in G.named_buffers():
        if name.endswith("noise_const"):
            buffer.copy_(torch.randn(buffer.shape, generator=rng))
