"""The stochastic augmentations of ADA: 18 transforms, drawn per image, applied differentiably."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ahead import HostCopy
from .warp import SYM2, SYM6, Reach, farthest, filter_bank, filter_symmetric, warp

# The parameters of each transform, `[N, K]` by name; a row of zeros stands for one not applied.
Params = dict[str, Tensor]

_COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
_BANDS = ("imgfilter0", "imgfilter1", "imgfilter2", "imgfilter3")
_BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # 1/f power spectrum of photographs, per band


@dataclass(frozen=True)
class Settings:
    """Constructor arguments of `AugmentPipe`.

    A field named after a transform multiplies the pipe's p for that transform; 0 leaves it out.
    The others bound what is drawn: `xint_max`, `xfrac_std` and `cutout_size` in shares of the
    image's width and height, `rotate_max` and `hue_max` in half turns, `scale_std`, `aniso_std`,
    `contrast_std`, `saturation_std` and `imgfilter_std` in octaves, `brightness_std` and
    `noise_std` in units of the image, whose range is 2. `imgfilter_bands` multiplies p for each of
    the four frequency bands, the lowest first.
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

    like_gpu = False  # True: have the CPU do what a GPU does, for tests
    p: Tensor
    Hz_geom: Tensor
    Hz_fbank: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.init_kwargs = kwargs
        self.settings = Settings(**kwargs)
        drawn = sample(self.settings, Draw(1, 1.0, 0.5, None))
        self.parts = [part for part, names in _NAMES.items() if drawn.keys() & set(names)]
        self.p_on_cpu = HostCopy()
        self.register_buffer("p", torch.ones([]))
        self.register_buffer("Hz_geom", torch.tensor(SYM6) / sum(SYM6))
        self.register_buffer("Hz_fbank", torch.from_numpy(filter_bank(SYM2)).float())

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
        draw = Draw(len(images), self.p_on_cpu(self.p), debug_percentile, generator)
        device = torch.device("cpu") if generator is None else generator.device
        params, apply = sample(self.settings, draw), self._appliers(generator, device)
        for part in self.parts:
            images = _on_drawn(images, _own(part, params), part, apply[part])
        return images

    def numbers(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Return what `whole` needs for images of this shape, drawn anew: `[N, K]` on the CPU."""
        n, _, height, width = shape
        draw = Draw(n, self.p_on_cpu(self.p), None, generator)
        params, columns = sample(self.settings, draw), []
        for part in self.parts:
            own, (count, numbers) = _own(part, params), _NUMBERS[part]
            columns.append(_drew(own, n)[:, None].float())
            columns.append(numbers(own, n, width, height) if own else torch.zeros(n, count))
        return torch.cat(columns, dim=1)

    def whole(self, images: Tensor, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """Do as `forward` does, with every transform applied to every image, and chosen after.

        So nothing but values depends on what was drawn, and a GPU is not waited for.

        Args:
            images: As of `forward`.
            numbers: Those of `numbers`, on the images' device.
            generator: Source of noise, on the images' device.
        """
        reach = farthest(images.shape[3], images.shape[2])
        apply = self._appliers(generator, images.device, reach)
        counts = [1 + _NUMBERS[part][0] for part in self.parts]
        for part, own in zip(self.parts, numbers.split(counts, dim=1), strict=True):
            drew = own[:, :1, None, None] != 0
            images = torch.where(drew, apply[part](images, own[:, 1:]), images)
        return images

    def _appliers(
        self, generator: torch.Generator | None, device: torch.device, reach: Reach | None = None
    ) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """Return what transforms images by the numbers of each part; noise is drawn on `device`."""
        return {
            "warp": lambda img, k: warp(img, k.view(-1, 3, 3), self.Hz_geom, reach),
            "recolor": recolor,
            "filter": lambda img, k: filter_symmetric(img, k.to(self.Hz_fbank) @ self.Hz_fbank),
            "noise": partial(add_noise, generator=generator, device=device),
            "cutout": cut_out,
        }


def _on_drawn(
    images: Tensor, params: Params, part: str, apply: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Transform the images that drew any of a part; the others stay as they are."""
    height, width = images.shape[2:]
    drew = _drew(params, len(images))
    if not drew.any():
        return images
    rows = drew.nonzero()[:, 0]
    params = {name: value[rows] for name, value in params.items()}
    numbers = _NUMBERS[part][1](params, len(rows), width, height)
    if drew.all():
        return apply(images, numbers)
    index = rows.to(images.device)
    return images.index_copy(0, index, apply(images[index], numbers))


def _own(part: str, params: Params) -> Params:
    return {name: params[name] for name in _NAMES[part] if name in params}


def _drew(params: Params, n: int) -> Tensor:
    """Return which images drew any of the parameters, `[N]`."""
    return torch.cat([torch.zeros(n, 1), *params.values()], dim=1).any(dim=1)


def _given(params: Params, names: Iterable[str], n: int) -> list[Tensor]:
    return [params.get(name, torch.zeros(n, 1)) for name in names]


class Draw:
    """Random numbers `[N, K]` for N images, or their quantile; and the gate of each transform."""

    def __init__(
        self,
        n: int,
        p: float,
        percentile: float | None,
        generator: torch.Generator | None,
    ) -> None:
        self.n, self.percentile, self.generator = n, percentile, generator
        self.p = p if percentile is None else 1.0

    def _random(self, law: Callable[..., Tensor], columns: int) -> Tensor:
        # Moved to the CPU: small tensors are faster there, and the warp has to know its extent.
        device = self.generator.device if self.generator is not None else None
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
        # Without the factor sqrt(2) of a normal quantile, as in the original's recorded numbers.
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


def sample(s: Settings, draw: Draw) -> Params:
    """Draw the parameters of every transform whose probability is not 0, `[N, K]` each.

    A row of zeros stands for a transform that is not applied: scales are given in octaves,
    rotations in radians, translations in shares of the image.
    """
    # Two rotations, each with such a probability that either happens with p; appendix B.
    turn = 1 - math.sqrt(1 - min(draw.p * s.rotate, 1))
    angle, hue = math.pi * s.rotate_max, math.pi * s.hue_max
    shift, size = s.xint_max, s.cutout_size
    laws: dict[str, tuple[float, Callable[[], Tensor]]] = {
        "xflip": (draw.p * s.xflip, lambda: draw.integer(2)),
        "rotate90": (draw.p * s.rotate90, lambda: draw.integer(4)),
        "xint": (draw.p * s.xint, lambda: draw.uniform(-shift, shift, 2)),
        "scale": (draw.p * s.scale, lambda: draw.normal(s.scale_std)),
        "rotate_before": (turn, lambda: draw.uniform(-angle, angle)),
        "aniso": (draw.p * s.aniso, lambda: draw.normal(s.aniso_std)),
        # The recorded quantiles turn an image once.
        "rotate_after": (turn * (draw.percentile is None), lambda: draw.uniform(-angle, angle)),
        "xfrac": (draw.p * s.xfrac, lambda: draw.normal(s.xfrac_std, 2)),
        "brightness": (draw.p * s.brightness, lambda: draw.normal(s.brightness_std)),
        "contrast": (draw.p * s.contrast, lambda: draw.normal(s.contrast_std)),
        "lumaflip": (draw.p * s.lumaflip, lambda: draw.integer(2)),
        "hue": (draw.p * s.hue, lambda: draw.uniform(-hue, hue)),
        "saturation": (draw.p * s.saturation, lambda: draw.normal(s.saturation_std)),
        "noise": (draw.p * s.noise, lambda: draw.half_normal(s.noise_std)),
        # The size of the rectangle, and the x and y of its centre.
        "cutout": (draw.p * s.cutout, lambda: F.pad(draw.uniform(0, 1, 2), (1, 0), value=size)),
    }
    for band, share in zip(_BANDS, s.imgfilter_bands, strict=True):
        laws[band] = (draw.p * s.imgfilter * share, lambda: draw.normal(s.imgfilter_std))
    return {name: draw.gate(q, law()) for name, (q, law) in laws.items() if q > 0}


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


def color_maps(params: Params, n: int) -> Tensor:
    """Return what `recolor` needs for n images, `[N, 11]`: luma's gain and offset, and a matrix.

    Every transform either acts along the grey axis or rotates and scales around it, so the chain
    of the five is one gain for luma and one rotation and gain for chroma.
    """
    given = _given(params, _COLOR, n)
    brightness, contrast, flip, hue, saturation = (value[:, :, None] for value in given)
    luma = (1 - 2 * flip) * contrast.exp2()
    grey = torch.full([3, 3], 1 / 3)
    turn = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    chroma = hue.cos() * (torch.eye(3) - grey) + hue.sin() * turn
    matrix = luma * grey + (contrast + saturation).exp2() * chroma
    return torch.cat([luma.flatten(1), (luma * brightness).flatten(1), matrix.flatten(1)], dim=1)


def recolor(images: Tensor, maps: Tensor) -> Tensor:
    """Transform the colours of grey, RGB or RGBA images `[N, C, H, W]` by `color_maps`.

    Raises:
        ValueError: The images have neither one, three nor four channels.
    """
    luma, offset, matrix = torch.split(maps.to(images), [1, 1, 9], dim=1)
    if images.shape[1] == 1:
        return images * luma[..., None, None] + offset[..., None, None]
    if images.shape[1] not in (3, 4):
        raise ValueError(f"colour transforms need 1, 3 or 4 channels, got {images.shape[1]}")
    rgb = images[:, :3]
    colored: Tensor = torch.baddbmm(offset[..., None], matrix.view(-1, 3, 3), rgb.flatten(2))
    colored = colored.view_as(rgb)
    return torch.cat([colored, images[:, 3:]], dim=1) if images.shape[1] == 4 else colored


def band_gains(octaves: Tensor) -> Tensor:
    """Return the gains of the bands `[N, 4]` for gains drawn in `octaves` `[N, 4]`.

    The bands take turns; after each, all are scaled so that the power of an average photograph
    stays what it was.
    """
    power = torch.tensor(_BAND_POWER)
    gains = torch.eye(4) * (octaves.exp2() - 1)[:, None] + 1
    return (gains / (power * gains.square()).sum(dim=2, keepdim=True).sqrt()).prod(dim=1)


def add_noise(
    images: Tensor, sigma: Tensor, *, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Add normal noise of standard deviation `sigma` `[N, 1]` to every pixel and channel."""
    noise = torch.randn(images.shape, generator=generator, device=device)
    return images + (noise.to(images) * sigma.to(images)[:, :, None, None])


def cut_out(images: Tensor, cuts: Tensor) -> Tensor:
    """Set a rectangle to zero: `cuts` `[N, 3]` are its size and its centre's x and y as shares."""
    size, x, y = cuts.to(images.device)[:, :, None, None].unbind(dim=1)
    height, width = images.shape[2:]
    keep_x = (_centres(width, images) - x).abs() >= size / 2
    keep_y = (_centres(height, images)[:, None] - y).abs() >= size / 2
    return images * (keep_x | keep_y)[:, None]


def _centres(size: int, images: Tensor) -> Tensor:
    return (torch.arange(size, device=images.device) + 0.5) / size


# Transforms that are applied as one, in their order: what they are drawn as, and the numbers of an
# image that follow from it on the CPU: how many, and made by what from parameters, n, w and h.
_NAMES: dict[str, tuple[str, ...]] = {
    "warp": tuple(_GEOMETRY),
    "recolor": _COLOR,
    "filter": _BANDS,
    "noise": ("noise",),
    "cutout": ("cutout",),
}
_NUMBERS: dict[str, tuple[int, Callable[[Params, int, int, int], Tensor]]] = {
    "warp": (9, lambda params, n, w, h: inverse_geometry(params, w, h).flatten(1)),
    "recolor": (11, lambda params, n, w, h: color_maps(params, n)),
    "filter": (4, lambda params, n, w, h: band_gains(torch.cat(_given(params, _BANDS, n), dim=1))),
    "noise": (1, lambda params, n, w, h: params["noise"]),
    "cutout": (3, lambda params, n, w, h: params["cutout"]),
}
