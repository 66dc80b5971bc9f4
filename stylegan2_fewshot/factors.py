"""Tensors that weights follow from: trained beside the networks, and kept in no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Factors(torch.nn.Module):
    """Named tensors with an Adam of their own, all of it in buffers, so that a checkpoint holds it.

    Kingma and Ba, ICLR 2015 (arXiv 1412.6980), Algorithm 1. Each tensor counts its own steps.

    Args:
        values: Where they start, by name, such as `G.synthesis.b4.conv1.weight`.
        optimizers: `lr`, `betas` and, where it is not 1e-8, `eps` of Adam by network, which is what
            a name begins with.
    """

    def __init__(
        self, values: Mapping[str, Tensor], optimizers: Mapping[str, Mapping[str, Any]]
    ) -> None:
        super().__init__()
        self._optimizers = optimizers
        for name, value in values.items():
            for kind, start in self._starts(value).items():
                self.register_buffer(self._key(name, kind), start)

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(self._key(name, "value"))

    @torch.no_grad()
    def set(self, name: str, value: Tensor) -> None:
        """Start anew from `value`."""
        for kind, start in self._starts(value).items():
            self.get_buffer(self._key(name, kind)).copy_(start)

    @torch.no_grad()
    def step(self, name: str, grad: Tensor) -> Tensor:
        """Take a step of Adam against `grad`, and return the new value."""
        value, first, second, steps = (
            self.get_buffer(self._key(name, kind)) for kind in ("value", "first", "second", "steps")
        )
        adam = self._optimizers[name.partition(".")[0]]
        beta1, beta2 = adam["betas"]
        steps += 1
        first.lerp_(grad, 1 - beta1)
        second.lerp_(grad.square(), 1 - beta2)
        mean = first / (1 - beta1**steps)
        scale = (second / (1 - beta2**steps)).sqrt() + adam.get("eps", 1e-8)
        value -= adam["lr"] * mean / scale
        return value

    @staticmethod
    def _starts(value: Tensor) -> dict[str, Tensor]:
        value = value.detach().clone()
        zeros = torch.zeros_like(value)
        return {
            "value": value,
            "first": zeros,
            "second": zeros.clone(),
            "steps": value.new_zeros([]),
        }

    @staticmethod
    def _key(name: str, kind: str) -> str:
        return f"{name.replace('.', '/')}:{kind}"
