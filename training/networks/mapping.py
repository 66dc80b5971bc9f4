"""The mapping network: from latents z and labels to w."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from .layers import FullyConnectedLayer, Network, normalize_2nd_moment


class MappingNetwork(Network):
    """Map latents `z [N, z_dim]` and labels `c [N, c_dim]` to `ws [N, num_ws, w_dim]`.

    Without `num_ws` the result is `[N, w_dim]`; with `z_dim` 0 the label alone is mapped.
    """

    fc0: FullyConnectedLayer  # and as many more as `num_layers` says
    w_avg: Tensor  # missing without `num_ws` or `w_avg_beta`

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = 0.995,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = num_layers, w_avg_beta
        embedded = 0
        if c_dim > 0:
            embedded = w_dim if embed_features is None else embed_features
            self.embed = FullyConnectedLayer(c_dim, embedded)
        hidden = w_dim if layer_features is None else layer_features
        widths = [z_dim + embedded, *[hidden] * (num_layers - 1), w_dim]
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            layer = FullyConnectedLayer(
                before, after, activation=activation, lr_multiplier=lr_multiplier
            )
            setattr(self, f"fc{index}", layer)
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,
    ) -> Tensor:
        x = torch.cat(list(self._inputs(z, c)), 1)
        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)
        if self.num_ws is None:
            return x
        if self.training and not skip_w_avg_update and self.w_avg_beta is not None:
            self.w_avg.copy_(x.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        ws = x[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi == 1:
            return ws
        if self.w_avg_beta is None:
            raise ValueError(
                "truncation_psi must be 1 for a network without a mean of w (w_avg_beta None), "
                f"got {truncation_psi}"
            )
        near = self.w_avg.lerp(ws[:, :truncation_cutoff], truncation_psi)
        return (
            near if truncation_cutoff is None else torch.cat([near, ws[:, truncation_cutoff:]], 1)
        )

    def _inputs(self, z: Tensor | None, c: Tensor | None) -> Iterator[Tensor]:
        for value, size, name in ((z, self.z_dim, "z"), (c, self.c_dim, "c")):
            if size == 0:
                continue
            if value is None or value.ndim != 2 or value.shape[1] != size:
                got = None if value is None else list(value.shape)
                raise ValueError(f"{name} must have shape [N, {size}], got {got}")
            value = value.float()
            yield normalize_2nd_moment(self.embed(value) if name == "c" else value)
