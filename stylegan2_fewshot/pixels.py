"""Pixels of images: of files they are uint8, to networks they run from -1 to 1."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Return images of [-1, 1] as uint8, clipping the rest."""
    return (images.detach().float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
