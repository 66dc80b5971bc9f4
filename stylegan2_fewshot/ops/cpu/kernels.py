"""The CPU's kernels as functions of tensors: float32 and bfloat16, channels-last, in C++.

3x3 convolution by Winograd's minimal filtering: Lavin & Gray, CVPR 2016 (arXiv 1509.09308).
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..dispatch import Kernels
from ..reference import BiasActSettings

LANES = 16  # channels of images come in multiples of this
FEWEST_PIXELS = 256  # for the transformation of many weights to pay
FEW_WEIGHTS = 2**14
FEWEST_PRODUCTS = 2**16
FEW_NUMBERS = 2**17  # for another thread to pay
FEWEST_CHANNELS_BF16 = 48
OPERATIONS = frozenset(("convolution", "upfirdn2d", "bias_act"))
_DTYPES = (torch.float32, torch.bfloat16)


class _Scratch(threading.local):
    memory = torch.empty(0)


class CPUKernels(Kernels):
    """The compiled library's operations.

    Args:
        library: What `loader` has loaded.
        operations: Which of `OPERATIONS` it serves.
    """

    channels_last_from = LANES

    def __init__(self, library: Any, operations: frozenset[str] = OPERATIONS) -> None:
        self.library, self.operations = library, operations
        self.convolves_bfloat16 = bool(library.winograd_has_bfloat16())
        self.scratch = _Scratch()

    def takes_upfirdn2d(self, x: Tensor) -> bool:
        """Return whether channels fill the processor's vectors."""
        return x.dtype in _DTYPES and x.shape[1] % LANES == 0 and "upfirdn2d" in self.operations

    def takes_bias_act(self, x: Tensor, settings: BiasActSettings) -> bool:
        """Return whether it is an activation of two straight lines."""
        is_served = x.dtype in _DTYPES and "bias_act" in self.operations
        return is_served and settings.gradient_reads_output

    def takes_convolution(self, x: Tensor, w: Tensor, sides: Sequence[int]) -> bool:
        """Return whether Winograd's filtering serves, and is faster than PyTorch."""
        outputs, channels, *size = w.shape
        if size != [3, 3] or channels % LANES or outputs % LANES or x.dtype is not w.dtype:
            return False
        if x.dtype not in _DTYPES or "convolution" not in self.operations:
            return False
        high, wide = _size_after(x, sides)
        pixels, weights = x.shape[0] * high * wide, channels * outputs
        if min(high, wide) < 1 or (pixels < FEWEST_PIXELS and weights > FEW_WEIGHTS):
            return False
        if pixels * weights < FEWEST_PRODUCTS:
            return False
        if x.dtype is torch.float32:
            return True
        return self.convolves_bfloat16 and min(channels, outputs) >= FEWEST_CHANNELS_BF16

    def upfirdn2d(
        self,
        x: Tensor,
        f: Tensor,
        up: tuple[int, int],
        down: tuple[int, int],
        padding: Sequence[int],
        flip_filter: bool,
        gain: float,
    ) -> Tensor:
        """As `reference.upfirdn2d`; the result is channels-last."""
        taps = torch.outer(f, f) if f.ndim == 1 else f.contiguous()
        (high, wide), (left, right, top, bottom) = taps.shape, padding
        size = [
            (x.shape[2] * up[1] + top + bottom - high) // down[1] + 1,
            (x.shape[3] * up[0] + left + right - wide) // down[0] + 1,
        ]
        pixels, y = _channels_last(x), _empty(x, x.shape[1], size)
        pairs = [(ctypes.c_int64 * 2)(*pair) for pair in (up[::-1], down[::-1], (top, left))]
        images = x.dtype is torch.bfloat16, pixels.data_ptr(), *_sizes(x)
        filter_ = taps.data_ptr(), high, wide, flip_filter, gain
        result = y.data_ptr(), *size, torch.get_num_threads()
        self.library.upfirdn2d(*images, *filter_, *pairs, *result)
        return y

    def bias_act(self, x: Tensor, b: Tensor | None, settings: BiasActSettings) -> Tensor:
        """As `reference.bias_act`."""
        dim = settings.dim % x.ndim
        is_last = x.ndim == 4 and dim == 1 and x.is_contiguous(memory_format=torch.channels_last)
        x = x if is_last else x.contiguous()
        y, inner = torch.empty_like(x), 1 if is_last else x.shape[dim + 1 :].numel()
        channels = x.shape[dim]
        sizes = x.numel() // max(channels * inner, 1), channels, inner
        bias = None if b is None else b.to(x.dtype).contiguous()
        address = None if bias is None else bias.data_ptr()
        tensors = x.dtype is torch.bfloat16, x.data_ptr(), address
        result = y.data_ptr(), torch.get_num_threads()
        self.library.bias_act_forward(*tensors, *sizes, *_numbers(settings), *result)
        return y

    def bias_act_gradient(
        self, dy: Tensor, x: Tensor, b: Tensor | None, settings: BiasActSettings
    ) -> Tensor:
        """Return the gradient by the input from the result `x`."""
        dim = settings.dim % x.ndim
        if not (x.ndim == 4 and dim == 1 and x.is_contiguous(memory_format=torch.channels_last)):
            x = x.contiguous()
        dx = torch.empty_like(x)
        if dy.stride() != x.stride():
            dy = torch.empty_like(x).copy_(dy)
        tensors = x.dtype is torch.bfloat16, dy.data_ptr(), x.data_ptr(), x.numel()
        result = dx.data_ptr(), torch.get_num_threads()
        self.library.bias_act_gradient(*tensors, *_numbers(settings), *result)
        return dx

    def convolve(self, x: Tensor, w: Tensor, sides: Sequence[int], turned: bool) -> Tensor:
        """Correlate padded images with weights; the result is channels-last."""
        outputs, strides, address = w.shape[0], list(w.stride()), w.data_ptr()
        if turned:
            outputs = w.shape[1]
            address += w.element_size() * 2 * (strides[2] + strides[3])
            strides = [strides[1], strides[0], -strides[2], -strides[3]]
        y = _empty(x, outputs, _size_after(x, sides))
        weights = address, (ctypes.c_int64 * 4)(*strides)
        result = y.data_ptr(), *y.shape[2:]
        self._convolve(self.library.winograd_forward, x, sides, *weights, outputs, *result)
        return y

    def convolution_weight_gradient(self, x: Tensor, dy: Tensor, sides: Sequence[int]) -> Tensor:
        """Return the gradient `[O, C, 3, 3]` by the weights."""
        dy = _channels_last(dy)
        outputs, high, wide = dy.shape[1:]
        dw = x.new_empty(outputs, x.shape[1], 3, 3)
        arguments = dy.data_ptr(), outputs, high, wide, dw.data_ptr()
        self._convolve(self.library.winograd_weight, x, sides, *arguments)
        return dw

    def _convolve(self, function: Any, x: Tensor, sides: Sequence[int], *arguments: Any) -> None:
        """Call a function of the library, again if it asks for more scratch."""
        pixels, threads = _channels_last(x), torch.get_num_threads()
        threads = min(threads, 1 + pixels.numel() // FEW_NUMBERS)
        images = x.dtype is torch.bfloat16, pixels.data_ptr(), *_sizes(x), sides[2], sides[0]
        while True:
            memory = self.scratch.memory  # kept: the system hands out much memory slowly
            size = function(*images, *arguments, memory.data_ptr(), memory.numel(), threads)
            if size <= memory.numel():
                return
            self.scratch.memory = torch.empty(size)


def _numbers(settings: BiasActSettings) -> tuple[float, float, float]:
    """Return slope, gain and clamp as the library takes them."""
    slope = {"linear": 1.0, "relu": 0.0, "lrelu": settings.alpha}[settings.act]
    return slope, settings.gain, math.inf if settings.clamp is None else settings.clamp


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """Return memory for images of another size, channels-last."""
    shape = x.shape[0], channels, *size
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Return the sizes of images in the order in which they lie in memory."""
    count, channels, high, wide = x.shape
    return count, high, wide, channels


def _size_after(x: Tensor, sides: Sequence[int]) -> tuple[int, int]:
    left, right, top, bottom = sides
    return x.shape[2] + top + bottom - 2, x.shape[3] + left + right - 2
