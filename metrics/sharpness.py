"""How sharp images are, and how much blur makes them equally sharp.

A copy that is a little blurred is far from its original in the eyes of a feature network, farther
than an image of something else that is sharp. So what is compared has to be equally sharp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMAS = tuple(i / 4 for i in range(17))  # pixels: 0 to 4


def blur(images: Tensor, sigma: float) -> Tensor:
    """Return images `[N, C, H, W]` of 0 to 255, blurred by a Gaussian of `sigma` pixels."""
    if sigma == 0:
        return images
    radius = min(math.ceil(3 * sigma), images.shape[-1] - 1)
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-places.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images.float(), [radius] * 4, mode="reflect")
    rows = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=images.shape[1])


def sharpness(images: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring pixels of each image, `[N]`."""
    images = images.float()
    across, down = images.diff(dim=3), images.diff(dim=2)
    return across.square().mean([1, 2, 3]) + down.square().mean([1, 2, 3])


def curve(images: Tensor) -> Tensor:
    """Return the sharpness of each image under every blur of `SIGMAS`, `[N, len(SIGMAS)]`."""
    return torch.stack([sharpness(blur(images, sigma)) for sigma in SIGMAS], 1)


def matching(curves: Sequence[Tensor]) -> list[float]:
    """Return the blur, in pixels, that makes each set as sharp as the least sharp one.

    Args:
        curves: Mean sharpness of each set under every blur of `SIGMAS`.
    """
    target = min(float(values[0]) for values in curves)
    return [_reaching(values.tolist(), target) for values in curves]


def _reaching(values: list[float], target: float) -> float:
    """Return where a falling curve comes down to `target`, at most the last of `SIGMAS`."""
    for i in range(1, len(values)):
        if values[i] <= target:
            above, below = values[i - 1] - target, target - values[i]
            share = above / (above + below) if above > 0 else 0.0
            return SIGMAS[i - 1] + share * (SIGMAS[i] - SIGMAS[i - 1])
    return SIGMAS[-1]
