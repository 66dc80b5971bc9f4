"""Features of a generator's layers, for methods that compare it with its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .networks import synthesis_of
from .plugin import Step


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


def compared(
    G: Any, source: Any, z: Tensor, c: Tensor | None, layers: Sequence[str]
) -> list[tuple[Tensor, Tensor]]:
    """Return `features_of` G and of its source, in pairs; gradients flow through G alone."""
    adapted = features_of(G, z, c, layers)
    with torch.no_grad():
        return list(zip(adapted, features_of(source, z, c, layers), strict=True))


def latents(step: Step, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Return `count` latents `[count, z_dim]` of a method's own, with labels of the pass."""
    assert step.z is not None
    device = step.z.device
    z = torch.randn(count, step.z.shape[1], generator=rng, device=device)
    c = None if step.c is None else step.c[torch.arange(count, device=device) % len(step.c)]
    return z, c
