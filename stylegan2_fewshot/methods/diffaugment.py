"""DiffAugment: fixed, differentiable augmentation of reals and fakes alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from ..plugin import Plugin, Step, register

MAX_SHIFT = 1 / 8  # of the image's width and height
CUTOUT = 1 / 2  # likewise


def color(img: Tensor, draw: Tensor) -> Tensor:
    """Change brightness, then saturation, then contrast.

    Args:
        img: Images `[N, C, H, W]` in [-1, 1].
        draw: Uniform numbers `[N, 3]` in [0, 1): brightness is shifted by -0.5 to 0.5, saturation
            multiplied by 0 to 2, contrast by 0.5 to 1.5. At 0.5 all three leave the image as it is.
    """
    brightness, saturation, contrast = draw.to(img)[:, :, None, None, None].unbind(dim=1)
    img = img + (brightness - 0.5)
    img = _spread(img, saturation * 2, dims=[1])
    return _spread(img, contrast + 0.5, dims=[1, 2, 3])


def translation(img: Tensor, draw: Tensor) -> Tensor:
    """Shift by whole pixels, up to 1/8 of the size along each axis; zeros move in.

    Args:
        img: Images `[N, C, H, W]`.
        draw: Uniform numbers `[N, 2]` in [0, 1) for y and x; 0.5 is no shift.
    """
    for dim, column in ((2, draw[:, 0]), (3, draw[:, 1])):
        size = img.shape[dim]
        reach = int(size * MAX_SHIFT + 0.5)
        img = _shift(img, dim, (column * (2 * reach + 1)).floor().long() - reach)
    return img


def cutout(img: Tensor, draw: Tensor) -> Tensor:
    """Set a rectangle of half the height and width to zero; part of it may lie outside.

    Args:
        img: Images `[N, C, H, W]`.
        draw: Uniform numbers `[N, 2]` in [0, 1): y and x of the centre.
    """
    height, width = img.shape[2:]
    inside_y = _near(draw[:, 0], height)[:, :, None]
    inside_x = _near(draw[:, 1], width)[:, None]
    return img * ~(inside_y & inside_x)[:, None]


# Transform and number of uniform draws per image, in the order of application.
POLICIES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "color": (color, 3),
    "translation": (translation, 2),
    "cutout": (cutout, 2),
}


@register("diffaugment")
class DiffAugment(Plugin):
    """Augment all images that D sees, real and fake, always, with few differentiable transforms.

    Zhao et al., NeurIPS 2020 (arXiv 2006.10738). Gradients reach G through the augmentation.

    Args:
        policy: Transforms, in this order: any of color, translation, cutout, with commas between.
    """

    augmentation = True
    neutral: ClassVar = {"policy": ""}

    def __init__(self, *, policy: str = "color,translation,cutout") -> None:
        super().__init__()
        self.policies = [name.strip() for name in policy.split(",") if name.strip()]
        for name in self.policies:
            if name not in POLICIES:
                known = ", ".join(POLICIES)
                raise ValueError(f"--diffaugment-policy: {name!r} is unknown; choose from {known}")

    def augment(self, img: Tensor, step: Step) -> Tensor:
        n, chosen = len(img), [POLICIES[name] for name in self.policies]
        draws = self.ahead(
            step,
            img.device,
            lambda rng: torch.cat(
                [torch.zeros(n, 0), *(torch.rand(n, k, generator=rng) for _, k in chosen)], dim=1
            ),
        )
        parts = draws.split([columns for _, columns in chosen], dim=1)
        for (transform, _), draw in zip(chosen, parts, strict=True):
            img = transform(img, draw)
        return img


def _spread(img: Tensor, factor: Tensor, dims: list[int]) -> Tensor:
    mean = img.mean(dim=dims, keepdim=True)
    return mean + (img - mean) * factor


def _shift(img: Tensor, dim: int, by: Tensor) -> Tensor:
    """Move each image of the batch by its own number of pixels along `dim`."""
    size = img.shape[dim]
    source = torch.arange(size, device=img.device) - by[:, None]
    shape = [len(img), 1, 1, 1]
    shape[dim] = size
    index = source.clamp(0, size - 1).view(shape).expand_as(img)
    inside = ((source >= 0) & (source < size)).view(shape)
    return img.gather(dim, index) * inside


def _near(centre: Tensor, size: int) -> Tensor:
    """Return the pixels `[N, size]` within half the cut's length of `centre`, a share of size."""
    length = int(size * CUTOUT + 0.5)
    first = (centre * (size + 1 - length % 2)).floor() - length // 2
    offset = torch.arange(size, device=centre.device) - first[:, None]
    return (offset >= 0) & (offset < length)
