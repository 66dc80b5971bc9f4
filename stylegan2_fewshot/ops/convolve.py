"""Convolution at one resolution: by the device's kernels where they are faster, or PyTorch's.

With kernels, the operation and its gradients by images and by weights are each other's gradients;
so they have derivatives of every order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .dispatch import SELECTED, Kernels

Sides = tuple[int, ...]


def convolve(x: Tensor, w: Tensor, sides: Sequence[int], groups: int = 1) -> Tensor:
    """Correlate padded images with weights.

    Args:
        x: Images `[N, C, H, W]`.
        w: Weights `[O, C / groups, k, k]`, dtype of `x`.
        sides: Padding `[left, right, top, bottom]`; negative numbers crop.
        groups: Groups of channels.
    """
    kernels = SELECTED.convolution(x, w, sides) if groups == 1 else None
    if kernels is None:
        return reference.convolve(x, w, sides, groups)
    return _convolve(kernels, x, w, tuple(sides), False)


def _convolve(kernels: Kernels, x: Tensor, w: Tensor, sides: Sides, turned: bool) -> Tensor:
    if not torch.is_grad_enabled():  # spares the graph's bookkeeping
        return kernels.convolve(x, w, sides, turned)
    y: Tensor = _Convolution.apply(kernels, x, w, sides, turned)  # type: ignore[no-untyped-call]
    return y


def _weight_gradient(kernels: Kernels, x: Tensor, dy: Tensor, sides: Sides) -> Tensor:
    if not torch.is_grad_enabled():
        return kernels.convolution_weight_gradient(x, dy, sides)
    dw: Tensor = _WeightGradient.apply(kernels, x, dy, sides)  # type: ignore[no-untyped-call]
    return dw


def _opposite(sides: Sides, w: Tensor) -> Sides:
    size = w.shape[2] - 1
    return tuple(size - side for side in sides)


def _turn(w: Tensor) -> Tensor:
    """Return the weights of the transposed operation."""
    return w.flip([2, 3]).transpose(0, 1)


class _Convolution(torch.autograd.Function):
    """The convolution, with the weights as they are or turned."""

    @staticmethod
    def forward(ctx, kernels, x, w, sides, turned):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, w)
        ctx.kernels, ctx.sides, ctx.turned = kernels, sides, turned
        return kernels.convolve(x, w, sides, turned)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, w = ctx.saved_tensors
        kernels, sides, turned = ctx.kernels, ctx.sides, ctx.turned
        dx = dw = None
        if ctx.needs_input_grad[1]:
            dx = _convolve(kernels, dy, w, _opposite(sides, w), not turned)
        if ctx.needs_input_grad[2]:
            dw = _weight_gradient(kernels, x, dy, sides)
            dw = _turn(dw) if turned else dw
        return None, dx, dw, None, None


class _WeightGradient(torch.autograd.Function):
    """The gradient by the weights, from the images and the gradient by the result."""

    @staticmethod
    def forward(ctx, kernels, x, dy, sides):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, dy)
        ctx.kernels, ctx.sides = kernels, sides
        return kernels.convolution_weight_gradient(x, dy, sides)

    @staticmethod
    def backward(ctx, ddw):  # type: ignore[no-untyped-def]
        x, dy = ctx.saved_tensors
        kernels, sides = ctx.kernels, ctx.sides
        dx = ddy = None
        if ctx.needs_input_grad[1]:
            dx = _convolve(kernels, dy, ddw, _opposite(sides, ddw), True)
        if ctx.needs_input_grad[2]:
            ddy = _convolve(kernels, x, ddw, sides, False)
        return None, dx, ddy, None
