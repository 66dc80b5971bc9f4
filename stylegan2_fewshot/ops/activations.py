"""Bias, activation, gain and clamp: one kernel, or as few passes as PyTorch allows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference, torch_internals
from .dispatch import SELECTED
from .reference import ACTIVATIONS, BiasActSettings


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
    settings = BiasActSettings(dim, act, alpha, gain, clamp)
    if torch_internals.transforms_are_active():
        return reference.bias_act(x, b, settings)
    if not settings.gradient_reads_output and SELECTED.bias_act(x, b, settings) is None:
        return reference.bias_act(x, b, settings)
    if not torch.is_grad_enabled():  # spares the graph's bookkeeping
        plain: Tensor = _implementation(x, b, settings).bias_act(x, b, settings)
        return plain
    result: Tensor = _BiasAct.apply(x, b, settings)  # type: ignore[no-untyped-call]
    return result


def _implementation(x: Tensor, b: Tensor | None, settings: BiasActSettings) -> Any:
    return SELECTED.bias_act(x, b, settings) or reference


def _gradient(dy: Tensor, kept: Tensor, b: Tensor | None, settings: BiasActSettings) -> Tensor:
    if not torch.is_grad_enabled():
        kernels = _implementation(kept, b, settings)
        plain: Tensor = kernels.bias_act_gradient(dy, kept, b, settings)
        return plain
    dx: Tensor = _BiasActGradient.apply(dy, kept, b, settings)  # type: ignore[no-untyped-call]
    return dx


class _BiasAct(torch.autograd.Function):
    """The operation, by kernels or where the result is all that its gradient needs."""

    @staticmethod
    def forward(ctx, x, b, settings):  # type: ignore[no-untyped-def]
        y = _implementation(x, b, settings).bias_act(x, b, settings)
        ctx.settings = settings
        ctx.save_for_backward(*((y, None) if settings.gradient_reads_output else (x, b)), b)
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        kept, added, b = ctx.saved_tensors
        dx = _gradient(dy, kept, added, ctx.settings)
        db = _sum_for_bias(dx, b, ctx.settings) if ctx.needs_input_grad[1] else None
        return dx, db, None


class _BiasActGradient(torch.autograd.Function):
    """The gradient by `x` from the operation's input or result; itself differentiable once."""

    @staticmethod
    def forward(ctx, dy, kept, b, settings):  # type: ignore[no-untyped-def]
        ctx.settings = settings
        ctx.save_for_backward(dy, kept, b)
        return _implementation(kept, b, settings).bias_act_gradient(dy, kept, b, settings)

    @staticmethod
    def backward(ctx, ddx):  # type: ignore[no-untyped-def]
        dy, kept, b = ctx.saved_tensors
        settings = ctx.settings
        ddy = _gradient(ddx, kept, b, settings)
        if not ACTIVATIONS[settings.act].curved or not any(ctx.needs_input_grad[1:3]):
            return ddy, None, None, None
        kernels: Any = SELECTED.bias_act(kept, b, settings)
        x_gradient = kernels.bias_act_curvature(ddx, dy, kept, b, settings)
        b_gradient = _sum_for_bias(x_gradient, b, settings) if ctx.needs_input_grad[2] else None
        return ddy, x_gradient, b_gradient, None


def _sum_for_bias(dx: Tensor, b: Tensor, settings: BiasActSettings) -> Tensor:
    return dx.sum([i for i in range(dx.ndim) if i != settings.dim % dx.ndim]).to(b.dtype)
