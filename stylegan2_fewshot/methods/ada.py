"""ADA: stochastic augmentation of all that D sees, with a probability that follows its logits."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .. import stats
from ..adaptive import AdaptiveProbability, default_kimg
from ..ahead import is_recorded
from ..augment import AugmentPipe
from ..plugin import Plugin, Run, Step, register

__all__ = ["ADA", "AugPipe", "AugmentPipe", "create_pipe"]

AugPipe = Literal[
    "blit", "geom", "color", "filter", "noise", "cutout", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"
]
_GROUPS = {
    "blit": ("xflip", "rotate90", "xint"),
    "geom": ("scale", "rotate", "aniso", "xfrac"),
    "color": ("brightness", "contrast", "lumaflip", "hue", "saturation"),
    "filter": ("imgfilter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
}


def create_pipe(augpipe: str, p: float) -> AugmentPipe:
    """Return the pipe of one group of transforms, or of several named by their initials."""
    groups = [augpipe] if augpipe in _GROUPS else list(_GROUPS)[: len(augpipe)]
    pipe = AugmentPipe(**{name: 1 for group in groups for name in _GROUPS[group]})
    pipe.p.fill_(p)
    return pipe


def augmented(plugin: Plugin, pipe: AugmentPipe, img: Tensor, step: Step) -> Tensor:
    """Return images through the pipe, with draws of the plugin: on a GPU, nothing waits for it."""
    if img.device.type == "cpu" and not pipe.like_gpu:
        result: Tensor = pipe(img, generator=plugin.rng(step, img.device))
        return result
    if not (is_recorded() or pipe.p_on_cpu(pipe.p)):
        return img
    numbers = plugin.ahead(step, img.device, partial(pipe.numbers, img.shape))
    return pipe.whole(img, numbers, plugin.rng(step, img.device))


@register("ada")
class ADA(Plugin):
    """Augment all images that D sees, the more the surer it is of the real ones.

    Karras et al., NeurIPS 2020 (arXiv 2006.06676). Overfitting shows as real images' logits that
    are nearly all positive: every 4 iterations p moves by a fixed step, up where the mean sign of
    D's logits for real images is above the target, down where it is below.

    Args:
        target: Mean sign of the real logits to hold, in [-1, 1].
        augpipe: Transforms: one group, or several by initials (blit, geom, color, filter, noise,
            cutout).
        max_: Upper bound of p, in [0, 1].
        kimg: Thousands of images in which p can rise from 0 to 1; 500, or 100 with --resume, where
            --cfg=fewshot takes 5 % of the run if that is less.
    """

    augmentation = True
    option_names: ClassVar = {"target": "target", "augpipe": "augpipe"}
    neutral: ClassVar = {"max_": 0.0}
    status: ClassVar = {"ada_p": "Augment/ada_p"}

    def __init__(
        self,
        *,
        target: float = 0.6,
        augpipe: AugPipe = "bgc",
        max_: float = 1.0,
        kimg: float | None = None,
    ) -> None:
        super().__init__()
        flags = ("--target", "--ada-kimg", "--ada-max")
        self.probability = AdaptiveProbability(target, kimg, max_, flags=flags)
        self.pipe = create_pipe(augpipe, p=0)

    @classmethod
    def derived(cls, *, kimg: float, resumed: bool, few_shot: bool) -> dict[str, Any]:
        return {"kimg": default_kimg(kimg=kimg, resumed=resumed, few_shot=few_shot)}

    def setup(self, run: Run) -> None:
        self.probability.setup(run)

    def augment(self, img: Tensor, step: Step) -> Tensor:
        return augmented(self, self.pipe, img, step)

    def observe(self, step: Step) -> None:
        if step.is_real and step.logits is not None:
            self.probability.observe(step.logits.sign())

    def after_step(self, cur_nimg: int) -> None:
        self.probability.update(cur_nimg)
        if self.probability.moves_after(cur_nimg):  # only then does the pipe have to look at it
            self.pipe.p.copy_(self.probability.p)
        stats.report("Augment/ada_p", self.pipe.p)

    def augment_pipe(self) -> torch.nn.Module:
        return self.pipe
