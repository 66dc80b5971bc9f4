"""Convolution by 3x3 kernels with fewer multiplications: Winograd's minimal filtering, on the CPU.

Lavin & Gray, CVPR 2016 (arXiv 1509.09308): 4 times fewer in float32, 2.25 times in bfloat16. The
operation, and its gradients by images and by weights, are each other's gradients; so they have
derivatives of every order.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import backend
from .native import LANES

FEWEST_PIXELS = 256  # for the transformation of many weights to pay
FEW_WEIGHTS = 2**14
FEWEST_PRODUCTS = 2**16
FEW_NUMBERS = 2**17  # for another thread to pay
FEWEST_CHANNELS_BF16 = 48
Sides = tuple[int, ...]


class _Scratch(threading.local):
    memory = torch.empty(0)


_SCRATCH = _Scratch()


def pays(x: Tensor, w: Tensor, sides: Sequence[int]) -> bool:
    """Return whether `convolve` takes these images and weights, and is faster than PyTorch."""
    outputs, channels, *size = w.shape
    if size != [3, 3] or channels % LANES or outputs % LANES or x.dtype is not w.dtype:
        return False
    if x.dtype is torch.bfloat16 and min(channels, outputs) < FEWEST_CHANNELS_BF16:
        return False
    high, wide = _size_after(x, sides)
    pixels, weights = x.shape[0] * high * wide, channels * outputs
    if min(high, wide) < 1 or (pixels < FEWEST_PIXELS and weights > FEW_WEIGHTS):
        return False
    if pixels * weights < FEWEST_PRODUCTS:
        return False
    library = backend.native(x)
    if library is None:
        return False
    return x.dtype is torch.float32 or bool(library.winograd_has_bfloat16())


def convolve(x: Tensor, w: Tensor, sides: Sequence[int]) -> Tensor:
    """Correlate padded images with weights, where it `pays`; the result is channels-last.

    Args:
        x: Images `[N, C, H, W]`, float32 or bfloat16.
        w: Weights `[O, C, 3, 3]`, dtype of `x`.
        sides: Padding `[left, right, top, bottom]`; negative numbers crop.
    """
    y: Tensor = _Convolution.apply(x, w, tuple(sides), False)  # type: ignore[no-untyped-call]
    return y


def _size_after(x: Tensor, sides: Sequence[int]) -> tuple[int, int]:
    left, right, top, bottom = sides
    return x.shape[2] + top + bottom - 2, x.shape[3] + left + right - 2


def _opposite(sides: Sides) -> Sides:
    return tuple(2 - side for side in sides)


def _turn(w: Tensor) -> Tensor:
    """Return the weights of the transposed operation."""
    return w.flip([2, 3]).transpose(0, 1)


class _Convolution(torch.autograd.Function):
    """The convolution, with the weights as they are or turned."""

    @staticmethod
    def forward(ctx, x, w, sides, turned):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, w)
        ctx.sides, ctx.turned = sides, turned
        return forward(backend.native(x), x, w, sides, turned)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, w = ctx.saved_tensors
        sides, turned = ctx.sides, ctx.turned
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = _Convolution.apply(dy, w, _opposite(sides), not turned)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            dw = _WeightGradient.apply(x, dy, sides)  # type: ignore[no-untyped-call]
            dw = _turn(dw) if turned else dw
        return dx, dw, None, None


class _WeightGradient(torch.autograd.Function):
    """The gradient by the weights, from the images and the gradient by the result."""

    @staticmethod
    def forward(ctx, x, dy, sides):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, dy)
        ctx.sides = sides
        return weight_gradient(backend.native(x), x, dy, sides)

    @staticmethod
    def backward(ctx, ddw):  # type: ignore[no-untyped-def]
        x, dy = ctx.saved_tensors
        dx = ddy = None
        if ctx.needs_input_grad[0]:
            dx = _Convolution.apply(dy, ddw, _opposite(ctx.sides), True)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[1]:
            ddy = _Convolution.apply(x, ddw, ctx.sides, False)  # type: ignore[no-untyped-call]
        return dx, ddy, None


def forward(library: Any, x: Tensor, w: Tensor, sides: Sides, turned: bool) -> Tensor:
    """Return the convolution; no gradient."""
    outputs, strides, address = w.shape[0], list(w.stride()), w.data_ptr()
    if turned:
        outputs = w.shape[1]
        address += w.element_size() * 2 * (strides[2] + strides[3])
        strides = [strides[1], strides[0], -strides[2], -strides[3]]
    y = x.new_empty(x.shape[0], *_size_after(x, sides), outputs)
    weights = address, (ctypes.c_int64 * 4)(*strides)
    _run(library.winograd_forward, x, sides, *weights, outputs, y.data_ptr(), *y.shape[1:3])
    return y.permute(0, 3, 1, 2)


def weight_gradient(library: Any, x: Tensor, dy: Tensor, sides: Sides) -> Tensor:
    """Return the gradient `[O, C, 3, 3]` by the weights; no gradient of its own."""
    dy = dy.permute(0, 2, 3, 1).contiguous()
    high, wide, outputs = dy.shape[1:]
    dw = x.new_empty(outputs, x.shape[1], 3, 3)
    _run(library.winograd_weight, x, sides, dy.data_ptr(), outputs, high, wide, dw.data_ptr())
    return dw


def _run(function: Any, x: Tensor, sides: Sides, *arguments: Any) -> None:
    """Call a function of the library, again if it asks for more scratch."""
    pixels, threads = x.permute(0, 2, 3, 1).contiguous(), torch.get_num_threads()
    threads = min(threads, 1 + pixels.numel() // FEW_NUMBERS)
    images = x.dtype is torch.bfloat16, pixels.data_ptr(), *pixels.shape, sides[2], sides[0]
    while True:
        memory = _SCRATCH.memory  # kept: the system hands out much memory slowly
        size = function(*images, *arguments, memory.data_ptr(), memory.numel(), threads)
        if size <= memory.numel():
            return
        _SCRATCH.memory = torch.empty(size)
