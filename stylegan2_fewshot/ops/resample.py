"""Upsampling, FIR filtering and downsampling of images in one operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import torch_internals
from .dispatch import SELECTED

Pair = int | Sequence[int]


def setup_filter(
    f: Any,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """Return an FIR filter as `upfirdn2d` takes it: float32, 1-D if separable, else 2-D.

    Args:
        f: Numbers, `[taps]` or `[height, width]`; None for the identity.
        device: Where to put the filter.
        normalize: Scale it to a sum of 1.
        flip_filter: Reverse it.
        gain: Factor for the signal's magnitude, over both dimensions.
        separable: Keep a 1-D filter as it is; default: from 8 taps on.
    """
    taps = torch.as_tensor(1 if f is None else f, dtype=torch.float32, device=device)
    taps = taps.reshape(1) if taps.ndim == 0 else taps
    if taps.ndim > 2 or taps.numel() == 0:
        raise ValueError(f"f must be [taps] or [height, width], got {list(taps.shape)}")
    if separable is None:
        separable = taps.ndim == 1 and taps.numel() >= 8
    if taps.ndim == 1 and not separable:
        taps = torch.outer(taps, taps)
    if separable and taps.ndim == 2:
        raise ValueError("separable=True needs a 1-D filter, got a 2-D one")
    if normalize:
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    scale: float = gain ** (taps.ndim / 2)
    return taps * scale


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Pair = 1,
    down: Pair = 1,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Insert zeros, pad, filter, and keep every n-th pixel.

    Args:
        x: Images `[N, C, H, W]`, any float dtype.
        f: Filter of `setup_filter`, or None for the identity.
        up: Upsampling factor, or `[x, y]`; zeros follow each pixel.
        down: Downsampling factor, or `[x, y]`.
        padding: Zeros around the upsampled image: one number, `[x, y]`, or
            `[left, right, top, bottom]`; negative numbers crop.
        flip_filter: Correlate instead of convolve.
        gain: Factor for the signal's magnitude.

    Returns:
        Images `[N, C, H', W']` with `W' = (W * up + left + right - taps) // down + 1`.
    """
    if f is None:
        f = torch.ones(1, 1, device=x.device)
    return _apply(x, f, as_pair(up), as_pair(down), as_padding(padding), flip_filter, float(gain))


def filter2d(
    x: Tensor, f: Tensor | None, padding: Pair = 0, flip_filter: bool = False, gain: float = 1
) -> Tensor:
    """Filter images, keeping their size; `padding` comes on top of what that takes."""
    wide, high = filter_size(f)
    left, right, top, bottom = as_padding(padding)
    whole = [left + wide // 2, right + (wide - 1) // 2, top + high // 2, bottom + (high - 1) // 2]
    return upfirdn2d(x, f, padding=whole, flip_filter=flip_filter, gain=gain)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: Pair = 2,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Enlarge images `up` times at equal brightness; `padding` is that of the result."""
    upx, upy = as_pair(up)
    whole = add_padding(as_padding(padding), up_padding(f, (upx, upy)))
    return upfirdn2d(x, f, (upx, upy), 1, whole, flip_filter, gain * upx * upy)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: Pair = 2,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """Shrink images `down` times at equal brightness; `padding` is that of the input."""
    whole = add_padding(as_padding(padding), down_padding(f, as_pair(down)))
    return upfirdn2d(x, f, 1, down, whole, flip_filter, gain)


def up_padding(f: Tensor | None, up: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the padding at which upsampling by `up` multiplies the size exactly."""
    (wide, high), (upx, upy) = filter_size(f), up
    return (wide + upx - 1) // 2, (wide - upx) // 2, (high + upy - 1) // 2, (high - upy) // 2


def down_padding(f: Tensor | None, down: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the padding at which downsampling by `down` divides the size exactly."""
    (wide, high), (dx, dy) = filter_size(f), down
    return (wide - dx + 1) // 2, (wide - dx) // 2, (high - dy + 1) // 2, (high - dy) // 2


def add_padding(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the sum of two paddings, side by side."""
    return [a + b for a, b in zip(one, other, strict=True)]


def filter_size(f: Tensor | None) -> tuple[int, int]:
    """Return a filter's (width, height)."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def as_pair(value: Pair) -> tuple[int, int]:
    """Return a factor as (x, y)."""
    x, y = (value, value) if isinstance(value, int) else value
    return int(x), int(y)


def as_padding(value: Pair) -> tuple[int, int, int, int]:
    """Return a padding as (left, right, top, bottom)."""
    sides = [value] * 4 if isinstance(value, int) else list(value)
    if len(sides) == 2:
        sides = [sides[0], sides[0], sides[1], sides[1]]
    left, right, top, bottom = sides
    return left, right, top, bottom


def _apply(x: Tensor, f: Tensor, *arguments: Any) -> Tensor:
    is_transformed = torch_internals.transforms_are_active()
    if not is_transformed and not torch.is_grad_enabled():  # spares the graph's bookkeeping
        return SELECTED.upfirdn2d(x, f)(x, f, *arguments)
    function = _TransformedUpFirDn if is_transformed else _UpFirDn
    y: Tensor = function.apply(x, f, *arguments)  # type: ignore[no-untyped-call]
    return y


class _UpFirDn(torch.autograd.Function):
    """The operation; its gradient is the same operation with up and down exchanged."""

    @staticmethod
    def forward(ctx, x, f, *arguments):  # type: ignore[no-untyped-def]
        y = SELECTED.upfirdn2d(x, f)(x, f, *arguments)
        _UpFirDn.remember(ctx, (x, f, *arguments), y)  # type: ignore[no-untyped-call]
        return y

    @staticmethod
    def remember(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, f, *ctx.arguments = inputs
        ctx.save_for_backward(f)
        ctx.sizes = (x.shape[-1], output.shape[-1]), (x.shape[-2], output.shape[-2])

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        (f,) = ctx.saved_tensors
        up, down, padding, flip_filter, gain = ctx.arguments
        mirrored: list[int] = []
        for axis, (before, after) in enumerate(ctx.sizes):
            start = padding[2 * axis]
            mirrored.append(filter_size(f)[axis] - 1 - start)
            mirrored.append(before * up[axis] - after * down[axis] + start - up[axis] + 1)
        dx = _apply(dy, f, down, up, tuple(mirrored), not flip_filter, gain)
        return dx, None, None, None, None, None, None


class _TransformedUpFirDn(torch.autograd.Function):
    """The same inside a transform of torch.func, which takes a slower kind of function."""

    backward = _UpFirDn.backward
    setup_context = _UpFirDn.remember

    @staticmethod
    def forward(x, f, *arguments):  # type: ignore[no-untyped-def]
        return SELECTED.upfirdn2d(x, f)(x, f, *arguments)

    @staticmethod
    def vmap(info, in_dims, x, *rest):  # type: ignore[no-untyped-def]
        """Take the images of all samples as one batch: fast, and free to choose the layout."""
        x = x.movedim(in_dims[0], 0)
        y = _apply(x.flatten(0, 1), *rest)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
