"""Convolution with resampling, plain and modulated by styles (Karras et al. 2020, section 2)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import torch_internals
from .convolve import convolve
from .resample import (
    Pair,
    add_padding,
    as_padding,
    down_padding,
    up_padding,
    upfirdn2d,
)

MUCH_MEMORY = 2**19  # numbers that are worth computing again
SMALL = 1e-8  # what a division by 0 divides by


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Pair = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Convolve images, upsampling before or downsampling after it.

    Args:
        x: Images `[N, C, H, W]`.
        w: Weights `[O, C / groups, k, k]`, dtype of `x`.
        f: Low-pass filter of `setup_filter` for the resampling, or None.
        up: Upsampling factor.
        down: Downsampling factor.
        padding: Padding of the convolution, in pixels of the upsampled image: one number,
            `[x, y]` or `[left, right, top, bottom]`.
        groups: Groups of channels.
        flip_weight: Correlate, as `torch.nn.functional.conv2d` does, instead of convolve.
        flip_filter: Correlate with `f` instead of convolve.
    """
    is_transposed = up > 1 and down == 1 and not _is_pointwise(w)
    if flip_weight == is_transposed:  # a transposed convolution turns them once more
        w = w.flip([2, 3])
    sides = list(as_padding(padding))
    if up > 1:
        sides = add_padding(sides, up_padding(f, (up, up)))
    if down > 1:
        sides = add_padding(sides, down_padding(f, (down, down)))
    if up == down == 1:
        return convolve(x, w, sides, groups)
    if up == 1:
        early = down if _is_pointwise(w) else 1  # a 1x1 convolution may as well come last
        x = upfirdn2d(x, f, down=early, padding=sides, flip_filter=flip_filter)
        return F.conv2d(x, w, stride=down // early, groups=groups)
    if down == 1 and _is_pointwise(w):
        y = F.conv2d(x, w, groups=groups)
        return upfirdn2d(y, f, up=up, padding=sides, gain=up**2, flip_filter=flip_filter)
    if down == 1:  # at the low resolution: transposed convolution, then filter
        y = F.conv_transpose2d(x, _transposed(w, groups), stride=up, groups=groups)
        high, wide = w.shape[2:]
        # Less what the transposed convolution has added.
        sides = add_padding(sides, [1 - wide, up - wide, 1 - high, up - high])
        return upfirdn2d(y, f, padding=sides, gain=up**2, flip_filter=flip_filter)
    x = upfirdn2d(x, f, up=up, padding=sides, gain=up**2, flip_filter=flip_filter)
    return upfirdn2d(F.conv2d(x, w, groups=groups), f, down=down, flip_filter=flip_filter)


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Pair = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool = True,
) -> Tensor:
    """Convolve each image with weights scaled by its own styles.

    Karras et al. 2020 (arXiv 1912.04958), Eq. 1 and 3.

    Args:
        x: Images `[N, C, H, W]`.
        weight: Weights `[O, C, k, k]`.
        styles: A factor for every image and input channel, `[N, C]`.
        noise: What to add to the result, broadcastable to it.
        up: Upsampling factor.
        down: Downsampling factor.
        padding: Padding as in `conv2d_resample`.
        resample_filter: Low-pass filter for the resampling.
        demodulate: Scale each image's output channels to unit variance.
        flip_weight: Correlate instead of convolve.
        fused_modconv: Build each image's own weights, instead of scaling its activations before
            and after a shared convolution. The same numbers; memory `[N, O, C, k, k]`.
    """
    if demodulate and x.dtype in (torch.float16, torch.bfloat16):  # keeps float16 from overflowing
        fan_in = weight[0].numel()
        largest = weight.abs().amax([1, 2, 3], keepdim=True).clamp_min(SMALL)  # a filter may be 0
        weight = weight / largest / fan_in**0.5
        styles = styles / styles.abs().amax(1, keepdim=True)
    scale = _demodulation(weight.float(), styles.float()) if demodulate else None
    arguments: dict[str, Any] = dict(
        f=resample_filter, up=up, down=down, padding=padding, flip_weight=flip_weight
    )
    if fused_modconv:
        y = _per_image(x, weight, styles, scale, arguments)
        return y if noise is None else y + noise.to(y.dtype)
    scaled = x * (factors := styles.to(x.dtype).reshape(*styles.shape, 1, 1))
    with _recomputing(scaled, x, factors):
        y = conv2d_resample(scaled, weight.to(x.dtype), **arguments)
    noise = None if noise is None else noise.to(y.dtype)
    if scale is None:
        return y if noise is None else y + noise
    scale = scale.to(y.dtype).reshape(*scale.shape, 1, 1)
    return y * scale if noise is None else torch.addcmul(noise, y, scale)


def _recomputing(scaled: Tensor, x: Tensor, factors: Tensor) -> AbstractContextManager[Any]:
    """Let the graph keep no `scaled`, which is `x * factors`, but compute it again.

    The graph keeps those two for their own gradients.
    """
    is_worth_it = scaled.device.type == "cpu" and scaled.numel() >= MUCH_MEMORY
    if not is_worth_it or torch_internals.transforms_are_active():
        return nullcontext()
    address, shape = scaled.data_ptr(), scaled.shape

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.data_ptr() == address and tensor.shape == shape else tensor

    def unpack(kept: Tensor | None) -> Tensor:
        return x.detach() * factors.detach() if kept is None else kept

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Return `1 / |weight * styles|` for every image and output channel, `[N, O]`."""
    if torch.is_grad_enabled() and not torch_internals.transforms_are_active():
        scale: Tensor = _Demodulation.apply(weight, styles)  # type: ignore[no-untyped-call]
        return scale
    return _inverse_norms(styles.square(), _energy(weight))


def _energy(weight: Tensor) -> Tensor:
    """Return the sum of squares over each kernel, `[O, C]`.

    It does not depend on the image, so no weights per image are needed:
    `sum (w s)^2 = (sum w^2) s^2`.
    """
    return weight.square().sum([2, 3])


def _inverse_norms(squares: Tensor, energy: Tensor) -> Tensor:
    return (squares @ energy.t() + SMALL).rsqrt()


class _Demodulation(torch.autograd.Function):
    """The factors, with a gradient that passes over the weights once, instead of four times."""

    @staticmethod
    def forward(ctx, weight, styles):  # type: ignore[no-untyped-def]
        ctx.energy = _energy(weight)
        scale = _inverse_norms(styles.square(), ctx.energy)
        ctx.save_for_backward(weight, styles, scale)
        return scale

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        weight, styles, scale = ctx.saved_tensors
        dy = -dy * scale.pow(3)  # twice the gradient by the square of the norm
        dw = ds = None
        if ctx.needs_input_grad[0]:
            dw = weight * (dy.t() @ styles.square()).reshape(*weight.shape[:2], 1, 1)
        if ctx.needs_input_grad[1]:
            energy = _energy(weight) if torch.is_grad_enabled() else ctx.energy
            ds = styles * (dy @ energy)
        return dw, ds


def _per_image(
    x: Tensor, weight: Tensor, styles: Tensor, scale: Tensor | None, arguments: dict[str, Any]
) -> Tensor:
    """Convolve as one grouped convolution, one group per image."""
    count, (outputs, channels, *kernel) = x.shape[0], weight.shape
    own = weight[None] * styles[:, None, :, None, None]
    if scale is not None:
        own = own * scale[:, :, None, None, None]
    own = own.to(x.dtype).reshape(count * outputs, channels, *kernel)
    y = conv2d_resample(x.reshape(1, -1, *x.shape[2:]), own, groups=count, **arguments)
    return y.reshape(count, outputs, *y.shape[2:])


def _is_pointwise(w: Tensor) -> bool:
    return w.shape[2] == w.shape[3] == 1


def _transposed(w: Tensor, groups: int) -> Tensor:
    """Return weights for a convolution as those of a transposed one."""
    if groups == 1:
        return w.transpose(0, 1)
    return w.reshape(groups, -1, *w.shape[1:]).transpose(1, 2).flatten(0, 1)
