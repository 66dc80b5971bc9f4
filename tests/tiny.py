"""Networks of a few channels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training import pickles
from training.networks import Discriminator, Generator


def networks(
    size: int = 16,
    c_dim: int = 0,
    *,
    seed: int = 0,
    channels: int = 3,
    z_dim: int = 8,
    noise: float = 0.0,
    group: int = 2,
    mapping: Mapping[str, Any] | None = None,
    **layers: Any,
) -> tuple[Generator, Discriminator]:
    """Return G and D, always the same.

    Args:
        size: Resolution.
        c_dim: Width of the labels.
        seed: Other weights for another one.
        channels: Channels of the images.
        z_dim: Width of z.
        noise: Strength of the noise, which is 0 in a fresh network: its mode would change nothing.
        group: Images whose standard deviation D sees.
        mapping: Further arguments of the mapping network.
        layers: Further ones of the layers of both.
    """
    torch.manual_seed(seed)
    widths: dict[str, Any] = {"channel_base": 128, "channel_max": 8, **layers}
    G = Generator(z_dim, c_dim, 8, size, channels, {"num_layers": 2, **(mapping or {})}, widths)
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(noise)
    D = Discriminator(c_dim, size, channels, **widths, epilogue_kwargs={"mbstd_group_size": group})
    return G, D


def save(path: Path | str, size: int = 16, c_dim: int = 0, **options: Any) -> Path:
    """Write `networks` to a pickle whose G_ema is G; return its path."""
    G, D = networks(size, c_dim, **options)
    pickles.save(path, G=G, D=D, G_ema=G)
    return Path(path)
