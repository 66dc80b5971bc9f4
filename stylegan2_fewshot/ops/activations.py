"""Bias, activation, gain and clamp in as few passes over memory as PyTorch allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(NamedTuple):
    """A function of (x, alpha), with the original's default alpha and gain."""

    apply: Callable[[Tensor, float], Tensor]
    alpha: float
    gain: float


ACTIVATIONS = {
    "linear": Activation(lambda x, alpha: x, 0.0, 1.0),
    "relu": Activation(lambda x, alpha: torch.relu(x), 0.0, math.sqrt(2)),
    "lrelu": Activation(lambda x, alpha: F.leaky_relu(x, alpha), 0.2, math.sqrt(2)),
    "tanh": Activation(lambda x, alpha: torch.tanh(x), 0.0, 1.0),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x), 0.0, 1.0),
    "elu": Activation(lambda x, alpha: F.elu(x), 0.0, 1.0),
    "selu": Activation(lambda x, alpha: F.selu(x), 0.0, 1.0),
    "softplus": Activation(lambda x, alpha: F.softplus(x), 0.0, 1.0),
    "swish": Activation(lambda x, alpha: x * torch.sigmoid(x), 0.0, math.sqrt(2)),
}
_HOMOGENEOUS = ("linear", "relu", "lrelu")  # gain * act(x) = act(gain * x) for gain >= 0
_REDUCED = (torch.float16, torch.bfloat16)


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Return `clamp(act(x + b) * gain)`, with the dtype and memory format of `x`.

    Args:
        x: Any shape.
        b: Bias, one value for every index of `dim`.
        dim: The dimension of `x` that the bias runs along.
        act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: Slope of lrelu below zero; default 0.2.
        gain: Factor after the activation; default sqrt(2) for relu, lrelu and swish, else 1.
        clamp: Bound of the result's magnitude, after the gain.

    Raises:
        ValueError: `act` is none of these, or `b` does not fit `x`.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
    if b is not None and b.shape != (x.shape[dim],):
        raise ValueError(f"b must have shape [{x.shape[dim]}], got {list(b.shape)}")
    kind = ACTIVATIONS[act]
    alpha = kind.alpha if alpha is None else alpha
    gain = kind.gain if gain is None else gain
    if b is not None:
        b = b.reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    if act in _HOMOGENEOUS and gain >= 0 and x.dtype in _REDUCED:
        y = kind.apply(_scale_shift(x, gain, b), alpha)
    else:  # the original's order: whether x + b rounds to above zero decides a gradient
        y = kind.apply(x if b is None else x + b, alpha)
        y = y if gain == 1 else y * gain
    return y if clamp is None else F.hardtanh(y, -clamp, clamp)


def _scale_shift(x: Tensor, gain: float, b: Tensor | None) -> Tensor:
    """Return `gain * (x + b)` in one pass."""
    if b is None:
        return x if gain == 1 else x * gain
    return torch.add(b * gain, x, alpha=gain)
