"""FSGAN: only the singular values of the source's weights are adapted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import filters
from ..factors import Factors
from ..plugin import Plugin, Run, register


def is_weight(name: str, param: Tensor) -> bool:
    """Return whether a parameter is a matrix or a convolution; G's constant is neither."""
    return param.ndim in (2, 4)


def decomposed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return `U S` `[O, R]` and `V^T` `[R, I]` of a weight `[O, ...]` as a matrix `[O, I]`.

    A convolution's `[O, C, k, k]` becomes `[O, C k k]`; its transpose with the rows in another
    order, the paper's `[k k C, O]`, has the same singular values and vectors.
    """
    u, s, vt = torch.linalg.svd(weight.detach().flatten(1).double(), full_matrices=False)
    return (u * s).to(weight.dtype), vt.to(weight.dtype)


def slope(grad: Tensor, us: Tensor, vt: Tensor) -> Tensor:
    """Return the gradient `[R]` of the factors out of that of the weight `[O, ...]`."""
    return (us * (grad.flatten(1) @ vt.T)).sum(0)


def recomposed(source: Tensor, us: Tensor, vt: Tensor, factors: Tensor) -> Tensor:
    """Return `U S diag(factors) V^T`, which is `source` exactly where all factors are 1."""
    return source + ((us * (factors - 1)) @ vt).view_as(source)


@register("fsgan")
class FSGAN(Plugin):
    """Adapt only the singular values of the source's weights (FSGAN).

    Robb, Chu, Kumar and Huang 2020 (arXiv 2010.11943): every weight matrix and convolution is
    `U S V^T`; factors of its singular values, 1 at first, are all that is trained, in the mapping,
    the synthesis and D. Biases, constant and noise strengths stay. That the styles' affine layers
    and ToRGB count among the weights is remembered, not verified. The factors have an Adam of their
    own, with --glr and --dlr. Published with batches of 16, --gamma=10, 30 kimg. Network pickles
    hold the weights that follow from the factors; the factors and the source's decomposition, two
    to three times the weights, are in checkpoints.

    Args:
        fsgan: Networks whose singular values are adapted; another one is trained as usual.
    """

    neutral: ClassVar = {"fsgan": "none"}
    rewrites = True

    def __init__(self, *, fsgan: Literal["none", "G", "D", "GD"] = "GD") -> None:
        super().__init__()
        self.fsgan = fsgan
        self._held: set[str] = set()

    def setup(self, run: Run) -> None:
        if self.fsgan == "none":
            return
        run.needs_source(f"--fsgan={self.fsgan}", "singular values to adapt")
        starts: dict[str, Tensor] = {}
        for net, name, param in filters.parameters(run, self.fsgan, is_weight):
            us, vt = decomposed(param)
            starts[f"{net}.{name}"] = param.new_ones(len(vt))
            for kind, tensor in (("source", param), ("us", us), ("vt", vt)):
                self.register_buffer(filters.buffer_name(net, name, kind), tensor.detach().clone())
        self._held = set(starts)
        self.factors = Factors(starts, run.optimizers)

    def trainable(self, net: str, name: str) -> bool:
        return net not in self.fsgan or self.fsgan == "none" or f"{net}.{name}" in self._held

    def before_step(self, net: str, params: Mapping[str, torch.nn.Parameter]) -> None:
        for name, param in params.items():
            key = f"{net}.{name}"
            if key not in self._held or param.grad is None:
                continue
            source, us, vt = (
                self.get_buffer(filters.buffer_name(net, name, kind))
                for kind in ("source", "us", "vt")
            )
            factors = self.factors.step(key, slope(param.grad, us, vt))
            param.copy_(recomposed(source, us, vt, factors))
            param.grad = None  # the network's optimizer leaves it, and its momentum, where it is
