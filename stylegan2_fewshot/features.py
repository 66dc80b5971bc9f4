"""Features of a generator's layers, for methods that compare it with its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .networks import synthesis_of


def layers_of(G: Any) -> list[str]:
    """Return the names of the convolutional layers of `G.synthesis`, the latent's first."""
    modules = G.synthesis.named_modules()
    return [name for name, _ in modules if name.endswith((".conv0", ".conv1"))]


def features_of(G: Any, z: Tensor, c: Tensor | None, layers: Sequence[str]) -> list[Tensor]:
    """Return what layers put out, `[N, C, H, W]` each, for latents `z` without style mixing.

    Noise is constant and w's average stays as it is: nothing random is drawn.

    Args:
        G: Generator.
        z: Latents `[N, z_dim]`.
        c: Labels `[N, c_dim]`.
        layers: Some of `layers_of(G)`.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for name in layers:

        def keep(module: torch.nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            found[name] = output

        handles.append(G.synthesis.get_submodule(name).register_forward_hook(keep))
    try:
        ws = G.mapping(z, c, skip_w_avg_update=True)
        G.synthesis(ws, noise_mode="const", **synthesis_of(G, z))
    finally:
        for handle in handles:
            handle.remove()
    return [found[name] for name in layers]
