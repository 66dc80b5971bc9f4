"""The stochastic augmentations of ADA: 18 transforms, drawn per image, applied differentiably."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Params = dict[str, Tensor]

# Orthogonal low-pass filters of Daubechies' symlets with 2 and 6 vanishing moments; sum sqrt(2).
_SYM2 = (0.48296291314469025, 0.836516303737469, 0.22414386804185735, -0.12940952255092145)
_SYM6 = (
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
_MARGIN = 3  # pixels on either side that the low-pass filter reaches
_BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # 1/f power spectrum of photographs, per band


@dataclass(frozen=True)
class Settings:
    """Constructor arguments of `AugmentPipe`.

    A field named like a transform multiplies the pipe's p for that transform; 0 leaves it out.
    Shares are of the image's width and height, angles of pi, standard deviations of scales of one
    octave.
    """

    xflip: float = 0
    rotate90: float = 0
    xint: float = 0
    xint_max: float = 0.125
    scale: float = 0
    rotate: float = 0
    aniso: float = 0
    xfrac: float = 0
    scale_std: float = 0.2
    rotate_max: float = 1
    aniso_std: float = 0.2
    xfrac_std: float = 0.125
    brightness: float = 0
    contrast: float = 0
    lumaflip: float = 0
    hue: float = 0
    saturation: float = 0
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    hue_max: float = 1
    saturation_std: float = 1
    imgfilter: float = 0
    imgfilter_bands: tuple[float, ...] = (1, 1, 1, 1)
    imgfilter_std: float = 1
    noise: float = 0
    cutout: float = 0
    noise_std: float = 0.1
    cutout_size: float = 0.5


class AugmentPipe(torch.nn.Module):
    """Transform each image at random: pixel blits, geometry, colour, filtering, corruptions.

    Karras et al., NeurIPS 2020 (arXiv 2006.06676), appendix B. Every transform is applied to an
    image with probability p times its multiplier; all of the geometry is one warp. An image that
    drew no transform is returned bit for bit.

    Args:
        **kwargs: Fields of `Settings`.
    """

    p: Tensor
    Hz_geom: Tensor
    Hz_fbank: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.init_kwargs = kwargs
        self.settings = Settings(**kwargs)
        self.register_buffer("p", torch.ones([]))
        self.register_buffer("Hz_geom", torch.tensor(_SYM6) / sum(_SYM6))
        self.register_buffer("Hz_fbank", torch.from_numpy(_filter_bank(_SYM2)).float())

    def forward(
        self,
        images: Tensor,
        debug_percentile: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the images `[N, C, H, W]` transformed, in the same shape and dtype.

        Args:
            images: Grey, RGB or RGBA images, [-1, 1]; colour transforms leave alpha as it is.
            debug_percentile: Replace every draw by this quantile of its distribution, in (0, 1),
                and apply every transform to every image.
            generator: Source of all randomness; the CPU's global one where None.
        """
        params = sample(self.settings, _Draw(len(images), self.p, debug_percentile, generator))
        images = _on_drawn(images, params, _GEOMETRY, self._warp)
        images = _on_drawn(images, params, _COLOR, recolor)
        images = _on_drawn(images, params, ("imgfilter",), self._filter)
        images = _on_drawn(images, params, ("noise",), partial(add_noise, generator=generator))
        return _on_drawn(images, params, ("cutout",), cut_out)

    def _warp(self, images: Tensor, params: Params) -> Tensor:
        height, width = images.shape[2:]
        return warp(images, inverse_geometry(params, width, height), self.Hz_geom)

    def _filter(self, images: Tensor, params: Params) -> Tensor:
        gains = band_gains(params["imgfilter"]).to(self.Hz_fbank)
        return filter_symmetric(images, gains @ self.Hz_fbank)


def _on_drawn(
    images: Tensor,
    params: Params,
    names: Iterable[str],
    transform: Callable[[Tensor, Params], Tensor],
) -> Tensor:
    """Transform the images that drew any of the named transforms; the others stay as they are."""
    params = {name: params[name] for name in names if name in params}
    rows = sum((value.any(dim=1) for value in params.values()), torch.zeros(len(images)))
    if not rows.any():
        return images
    if rows.all():
        return transform(images, params)
    rows = rows.nonzero()[:, 0]
    params = {name: value[rows] for name, value in params.items()}
    index = rows.to(images.device)
    return images.index_copy(0, index, transform(images[index], params))


class _Draw:
    """Random numbers `[N, K]` for N images, or their quantile; and the gate of each transform."""

    def __init__(
        self,
        n: int,
        p: Tensor,
        percentile: float | None,
        generator: torch.Generator | None,
    ) -> None:
        self.n, self.percentile, self.generator = n, percentile, generator
        self.p = float(p) if percentile is None else 1.0

    def _random(self, law: Callable[..., Tensor], columns: int) -> Tensor:
        # Moved to the CPU: small tensors are faster there, and the warp has to know its extent.
        device = self.generator.device if self.generator else None
        return law(self.n, columns, generator=self.generator, device=device).cpu()

    def _quantile(self, value: float, columns: int) -> Tensor:
        return torch.full([self.n, columns], value)

    def uniform(self, low: float, high: float, columns: int = 1) -> Tensor:
        if self.percentile is None:
            return low + (high - low) * self._random(torch.rand, columns)
        return self._quantile(low + (high - low) * self.percentile, columns)

    def integer(self, count: int) -> Tensor:
        return self.uniform(0, count).floor().clamp_(max=count - 1)

    def normal(self, std: float, columns: int = 1) -> Tensor:
        if self.percentile is None:
            return std * self._random(torch.randn, columns)
        return std * self._quantile(self.percentile * 2 - 1, columns).erfinv()

    def half_normal(self, std: float) -> Tensor:
        if self.percentile is None:
            return self.normal(std).abs()
        return std * self._quantile(self.percentile, 1).erfinv()

    def gate(self, probability: float, value: Tensor) -> Tensor:
        """Zero each row of `value` except with the given probability."""
        if self.percentile is not None:
            return value
        return value * (self._random(torch.rand, 1) < probability)


def sample(s: Settings, draw: _Draw) -> Params:
    """Draw the parameters of every transform whose probability is not 0, `[N, K]` each.

    A row of zeros stands for a transform that is not applied: scales are given in octaves,
    rotations in radians, translations in shares of the image.
    """
    # Two rotations, each with such a probability that either happens with p; appendix B.
    turn = 1 - math.sqrt(1 - min(draw.p * s.rotate, 1))
    angle, shift = math.pi * s.rotate_max, s.xint_max
    laws: dict[str, tuple[float, Callable[[], Tensor]]] = {
        "xflip": (draw.p * s.xflip, lambda: draw.integer(2)),
        "rotate90": (draw.p * s.rotate90, lambda: draw.integer(4)),
        "xint": (draw.p * s.xint, lambda: draw.uniform(-shift, shift, 2)),
        "scale": (draw.p * s.scale, lambda: draw.normal(s.scale_std)),
        "rotate_before": (turn, lambda: draw.uniform(-angle, angle)),
        "aniso": (draw.p * s.aniso, lambda: draw.normal(s.aniso_std)),
        "rotate_after": (turn, lambda: draw.uniform(-angle, angle) * (draw.percentile is None)),
        "xfrac": (draw.p * s.xfrac, lambda: draw.normal(s.xfrac_std, 2)),
        "brightness": (draw.p * s.brightness, lambda: draw.normal(s.brightness_std)),
        "contrast": (draw.p * s.contrast, lambda: draw.normal(s.contrast_std)),
        "lumaflip": (draw.p * s.lumaflip, lambda: draw.integer(2)),
        "hue": (draw.p * s.hue, lambda: draw.uniform(-math.pi * s.hue_max, math.pi * s.hue_max)),
        "saturation": (draw.p * s.saturation, lambda: draw.normal(s.saturation_std)),
        "noise": (draw.p * s.noise, lambda: draw.half_normal(s.noise_std)),
        "cutout": (
            draw.p * s.cutout,
            lambda: F.pad(draw.uniform(0, 1, 2), (1, 0), value=s.cutout_size),
        ),
    }
    params = {name: draw.gate(q, value()) for name, (q, value) in laws.items() if q > 0}
    bands = [draw.p * s.imgfilter * share for share in s.imgfilter_bands]
    if any(bands):
        columns = [draw.gate(q, draw.normal(s.imgfilter_std if q else 0)) for q in bands]
        params["imgfilter"] = torch.cat(columns, dim=1)
    return params


def inverse_geometry(params: Params, width: int, height: int) -> Tensor:
    """Return the maps `[N, 3, 3]` from output to input, in pixels from the image's centre."""
    size = torch.tensor([width, height])
    stages = [build(params[k], size) for k, build in _GEOMETRY.items() if k in params]
    return reduce(torch.matmul, stages)


def _translate(shift: Tensor) -> Tensor:
    matrix = torch.eye(3).repeat(len(shift), 1, 1)
    matrix[:, :2, 2] = shift
    return matrix


def _scale(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y, torch.ones_like(x)], dim=1).diag_embed()


def _rotate(angle: Tensor) -> Tensor:
    matrix = torch.eye(3).repeat(len(angle), 1, 1)
    cos, sin = angle.cos(), angle.sin()
    matrix[:, :2, :2] = torch.cat([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
    return matrix


# The inverse of each geometric transform, in the order of application; their product maps an
# output pixel back to the input.
_GEOMETRY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "xflip": lambda v, size: _scale(1 - 2 * v, torch.ones_like(v)),
    "rotate90": lambda v, size: _rotate(v * (math.pi / 2)),
    "xint": lambda v, size: _translate(-(v * size).round()),
    "scale": lambda v, size: _scale((-v).exp2(), (-v).exp2()),
    "rotate_before": lambda v, size: _rotate(v),
    "aniso": lambda v, size: _scale((-v).exp2(), v.exp2()),
    "rotate_after": lambda v, size: _rotate(v),
    "xfrac": lambda v, size: _translate(-v * size),
}


def warp(images: Tensor, inverse: Tensor, taps: Tensor) -> Tensor:
    """Resample images `[N, C, H, W]` through `inverse` `[N, 3, 3]` at twice their resolution.

    Reflected at the border by at most the image's size and zero beyond. Up- and downsampling with
    the orthogonal low-pass `taps` `[12]` are products with banded matrices, so a shift by whole
    pixels is exact.
    """
    height, width = images.shape[2:]
    (left, right), (top, bottom) = _reach(inverse, width, height)
    rows = _upsampler(taps, height, top, bottom).to(images.dtype)
    columns = _upsampler(taps, width, left, right).to(images.dtype)
    fine = 4 * rows @ images @ columns.T
    grid = _grid(inverse, (left, right, width), (top, bottom, height)).to(images)
    fine = _Lookup.apply(fine, grid)
    rows, columns = (
        _upsampler(taps, n + 2 * _MARGIN, 0, 0)[:, _MARGIN:-_MARGIN].to(images.dtype)
        for n in (height, width)
    )
    return rows.T @ fine @ columns


def _reach(inverse: Tensor, width: int, height: int) -> list[tuple[int, int]]:
    """Return by how many pixels the outputs reach over each border: (left, right), (top, bottom)."""
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
    low, high, size = torch.tensor([x, y], dtype=torch.float32).T
    outputs = 2 * (size + 2 * _MARGIN)
    linear = inverse[:, :2, :2] * (outputs / 4)
    centre = inverse[:, :2, :2].sum(dim=2) / 4 + inverse[:, :2, 2]
    theta = torch.cat([4 * linear, (4 * centre - 1 + 2 * (low - high))[:, :, None]], dim=2)
    theta = theta / (2 * (size + low + high))[:, None]
    shape = [len(inverse), 1, int(outputs[1]), int(outputs[0])]
    return F.affine_grid(theta, shape, align_corners=False)


def _upsampler(taps: Tensor, size: int, before: int, after: int) -> Tensor:
    """Return the matrix `[2 (before + size + after), size]` that reflects and upsamples an axis."""
    total = before + size + after
    fine = torch.arange(2 * total, device=taps.device)[:, None]
    pixel = fine // 2 + torch.arange(-3, 4, device=taps.device)
    weight = F.pad(taps, (1, 1))[6 + fine - 2 * pixel] * ((pixel >= 0) & (pixel < total))
    matrix = taps.new_zeros(2 * total, size)
    return matrix.scatter_add_(1, _reflect(pixel - before, size), weight)


def _reflect(index: Tensor, size: int) -> Tensor:
    period = max(2 * (size - 1), 1)
    index = index % period
    return torch.minimum(index, period - index)


class _Lookup(torch.autograd.Function):
    """Bilinear lookup, differentiable any number of times with respect to the images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _LookupTransposed.apply(grad, grid, ctx.shape), None


class _LookupTransposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        images = grad.new_empty(1).expand(shape)  # only its shape matters
        backward = torch.ops.aten.grid_sampler_2d_backward
        return backward(grad, images, grid, 0, 0, False, (True, False))[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Lookup.apply(grad, grid), None, None


_COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")


def recolor(images: Tensor, params: Params) -> Tensor:
    """Transform the colours of grey, RGB or RGBA images `[N, C, H, W]`.

    Every transform either acts along the grey axis or rotates and scales around it, so the chain
    of the five is one gain for luma and one rotation and gain for chroma.

    Raises:
        ValueError: The images have neither one, three nor four channels.
    """
    brightness, contrast, flip, hue, saturation = (
        params.get(name, torch.zeros(len(images), 1))[:, :, None] for name in _COLOR
    )
    luma = (1 - 2 * flip) * contrast.exp2()
    offset = (luma * brightness).to(images)
    if images.shape[1] == 1:
        return images * luma.to(images)[..., None] + offset[..., None]
    if images.shape[1] not in (3, 4):
        raise ValueError(f"colour transforms need 1, 3 or 4 channels, got {images.shape[1]}")
    grey = torch.full([3, 3], 1 / 3)
    turn = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    chroma = hue.cos() * (torch.eye(3) - grey) + hue.sin() * turn
    matrix = (luma * grey + (contrast + saturation).exp2() * chroma).to(images)
    rgb = images[:, :3]
    colored = torch.baddbmm(offset, matrix, rgb.flatten(2)).view_as(rgb)
    return torch.cat([colored, images[:, 3:]], dim=1) if images.shape[1] == 4 else colored


def _filter_bank(low_pass: tuple[float, ...]) -> np.ndarray:
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


def _stretch(taps: np.ndarray, step: int) -> np.ndarray:
    stretched = np.zeros(step * (len(taps) - 1) + 1)
    stretched[::step] = taps
    return stretched


def band_gains(octaves: Tensor) -> Tensor:
    """Return the gains of the bands `[N, 4]` for gains drawn in `octaves` `[N, 4]`.

    The bands take turns; after each, all are scaled so that the power of an average photograph
    stays what it was.
    """
    power = torch.tensor(_BAND_POWER)
    gains = torch.eye(4) * (octaves.exp2() - 1)[:, None] + 1
    return (gains / (power * gains.square()).sum(dim=2, keepdim=True).sqrt()).prod(dim=1)


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


def add_noise(images: Tensor, params: Params, generator: torch.Generator | None = None) -> Tensor:
    """Add normal noise to every pixel and channel."""
    device = None if generator is None else generator.device
    noise = torch.randn(images.shape, generator=generator, device=device)
    return images + (noise.to(images) * params["noise"].to(images)[:, :, None, None])


def cut_out(images: Tensor, params: Params) -> Tensor:
    """Set a rectangle to zero: its size and its centre's x and y as shares of the image."""
    size, x, y = params["cutout"].to(images.device)[:, :, None, None].unbind(dim=1)
    height, width = images.shape[2:]
    keep_x = (_centres(width, images) - x).abs() >= size / 2
    keep_y = (_centres(height, images)[:, None] - y).abs() >= size / 2
    return images * (keep_x | keep_y)[:, None]


def _centres(size: int, images: Tensor) -> Tensor:
    return (torch.arange(size, device=images.device) + 0.5) / size
