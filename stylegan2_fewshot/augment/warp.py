"""Resampling and filtering of whole batches, each image in its own way, as matrix products.

Reflecting at the border, padding, upsampling and filtering an axis are one banded matrix. On the
CPU a dense product with it is far faster than a convolution of so few channels, and it can be
differentiated any number of times.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Orthogonal low-pass filters of Daubechies' symlets with 2 and 6 vanishing moments; sum sqrt(2).
SYM2 = (0.48296291314469025, 0.836516303737469, 0.22414386804185735, -0.12940952255092145)
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
Reach = list[tuple[int, int]]  # (left, right), (top, bottom)
_MARGIN = 3  # pixels on either side that the low-pass filter reaches


def warp(images: Tensor, inverse: Tensor, taps: Tensor, reach: Reach | None = None) -> Tensor:
    """Resample images `[N, C, H, W]` through `inverse` `[N, 3, 3]` at twice their resolution.

    Reflected at the border by at most the image's size and zero beyond. Upsampling with the
    orthogonal low-pass `taps` `[12]` is undone by downsampling, so the identity and shifts by whole
    pixels are exact; flips are not, as the taps are not quite symmetric.

    Args:
        images: Images of any number of channels.
        inverse: Maps from output to input, in pixels from the centre; on the CPU, or with `reach`
            on the images' device.
        taps: Low-pass filter, sum 1.
        reach: Pixels to provide beyond each border; by default as many as the maps need.
    """
    height, width = images.shape[2:]
    x, y = reach or _reach(inverse, width, height)
    grid = _grid(inverse, (*x, width), (*y, height)).to(images)
    taps = taps.to(images.dtype)
    fine = 4 * _upsampler(taps, height, *y) @ images @ _upsampler(taps, width, *x).T
    return _downsampler(taps, height) @ _lookup(fine, grid) @ _downsampler(taps, width).T


def farthest(width: int, height: int) -> Reach:
    """Return the pixels beyond each border that suffice for any map."""
    return [(width - 1, width - 1), (height - 1, height - 1)]


def _reach(inverse: Tensor, width: int, height: int) -> Reach:
    """Return the pixels needed beyond each border."""
    half = torch.tensor([width - 1, height - 1]) / 2
    corners = torch.tensor([[-1.0, -1, 1, 1], [-1, 1, -1, 1]]) * half[:, None]
    inputs = inverse[:, :2, :2] @ corners + inverse[:, :2, 2:]
    over = torch.stack([-inputs.amin(dim=(0, 2)), inputs.amax(dim=(0, 2))], dim=1)
    over = (over - half[:, None] + 2 * _MARGIN).ceil().clamp_(min=0)
    return [
        (min(int(a), n - 1), min(int(b), n - 1))
        for (a, b), n in zip(over.tolist(), (width, height), strict=True)
    ]


def _grid(inverse: Tensor, x: tuple[int, int, int], y: tuple[int, int, int]) -> Tensor:
    """Return where to look, `[N, 2 (H + 6), 2 (W + 6), 2]`, -1 and 1 being the outermost borders.

    x and y are pixels added before, after, and the size. An upsampled image's sample 2i lies at
    pixel i, half a sample off the centre of the array that holds it.
    """
    low, high, size = (_pair(*values, inverse) for values in zip(x, y, strict=True))
    outputs = 2 * (size + 2 * _MARGIN)
    linear = inverse[:, :2, :2] * (outputs / 4)
    centre = inverse[:, :2, :2].sum(dim=2) / 4 + inverse[:, :2, 2]
    theta = torch.cat([4 * linear, (4 * centre - 1 + 2 * (low - high))[:, :, None]], dim=2)
    theta = theta / (2 * (size + low + high))[:, None]
    shape = [len(inverse), 1, *(2 * (axis[2] + 2 * _MARGIN) for axis in (y, x))]
    return F.affine_grid(theta, shape, align_corners=False)


def _pair(x: float, y: float, like: Tensor) -> Tensor:
    """Return `[x, y]` without a copy from the CPU, which a GPU would have to be waited for."""
    return torch.cat([like.new_full([1], x), like.new_full([1], y)])


def _upsampler(taps: Tensor, size: int, before: int, after: int) -> Tensor:
    """Return the matrix `[2 (before + size + after), size]` that reflects and upsamples an axis."""
    total = before + size + after
    fine = torch.arange(2 * total, device=taps.device)[:, None]
    pixel = fine // 2 + torch.arange(-3, 4, device=taps.device)
    weight = F.pad(taps, (1, 1))[6 + fine - 2 * pixel] * ((pixel >= 0) & (pixel < total))
    matrix = taps.new_zeros(2 * total, size)
    return matrix.scatter_add_(1, _reflect(pixel - before, size), weight)


def filter_symmetric(images: Tensor, taps: Tensor) -> Tensor:
    """Convolve each image, rows and columns, with its own symmetric `taps` `[N, K]`; reflects."""
    height, width = images.shape[2:]
    rows = _convolver(taps, height)[:, None].to(images.dtype)
    columns = _convolver(taps, width)[:, None].to(images.dtype)
    return rows @ images @ columns.mT


def _convolver(taps: Tensor, size: int) -> Tensor:
    index = torch.arange(size, device=taps.device)
    reach = torch.arange(taps.shape[1], device=taps.device) - taps.shape[1] // 2
    source = _reflect(index[:, None] + reach, size).expand(len(taps), -1, -1)
    weight = taps[:, None].expand_as(source)
    return taps.new_zeros(len(taps), size, size).scatter_add_(2, source, weight)


def _downsampler(taps: Tensor, size: int) -> Tensor:
    """Return the matrix `[size, 2 (size + 6)]` that undoes upsampling: the filter is orthogonal."""
    return _upsampler(taps, size + 2 * _MARGIN, 0, 0)[:, _MARGIN:-_MARGIN].T


def _reflect(index: Tensor, size: int) -> Tensor:
    period = max(2 * (size - 1), 1)
    index = index % period
    return torch.minimum(index, period - index)


def filter_bank(low_pass: tuple[float, ...]) -> NDArray[np.float64]:
    """Return four symmetric band-pass filters `[4, 43]` that sum to the identity; appendix B.

    They cover, from the first to the last, frequencies below 1/8 and the three octaves above.
    """
    low = np.convolve(low_pass, low_pass[::-1]) / 2
    high = low * (-1.0) ** (np.arange(len(low)) - len(low) // 2)
    bands, rest = [], np.ones(1)
    for step in (1, 2, 4):  # split off the upper half of what is left
        bands.append(np.convolve(rest, _stretch(high, step)))
        rest = np.convolve(rest, _stretch(low, step))
    pads = [(len(rest) - len(band)) // 2 for band in (rest, *reversed(bands))]
    return np.stack([np.pad(b, pad) for b, pad in zip((rest, *reversed(bands)), pads, strict=True)])


def _stretch(taps: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    stretched = np.zeros(step * (len(taps) - 1) + 1)
    stretched[::step] = taps
    return stretched


def _lookup(x: Tensor, grid: Tensor, size: torch.Size | None = None) -> Tensor:
    """Look up images `x` at `grid`; given a size, the transpose: spread `x` into such images."""
    result: Tensor = _Lookup.apply(x, grid, size)  # type: ignore[no-untyped-call]
    return result


class _Lookup(torch.autograd.Function):
    """Bilinear lookup; linear in x, so it can be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor, size: torch.Size | None) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = x.shape if size is None else None
        if size is None:
            return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
        images = x.new_empty(1).expand(size)  # only its size matters
        transpose = torch.ops.aten.grid_sampler_2d_backward
        spread: Tensor = transpose(x, images, grid, 0, 0, False, (True, False))[0]
        return spread

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _lookup(grad, grid, ctx.size), None, None
