"""ADA's augmentations with a probability that stays as given."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..plugin import Plugin, Step, register
from .ada import AugPipe, augmented, create_pipe


@register("fixed")
class Fixed(Plugin):
    """Augment all images that D sees with ADA's transforms at a fixed probability.

    Karras et al., NeurIPS 2020 (arXiv 2006.06676), section 3.1.

    Args:
        p: Probability of each transform, in [0, 1]; must be given.
        augpipe: Transforms: one group, or several by initials (blit, geom, color, filter, noise,
            cutout).
    """

    augmentation = True
    option_names: ClassVar = {"p": "p", "augpipe": "augpipe"}
    neutral: ClassVar = {"p": 0.0}

    def __init__(self, *, p: float | None = None, augpipe: AugPipe = "bgc") -> None:
        super().__init__()
        if p is None:
            raise ValueError("--p is missing: --aug=fixed needs a probability, such as --p=0.2")
        if not 0 <= p <= 1:
            raise ValueError(f"--p must be in [0, 1], got {p}")
        self.pipe = create_pipe(augpipe, p)

    def augment(self, img: Tensor, step: Step) -> Tensor:
        return augmented(self, self.pipe, img, step)

    def augment_pipe(self) -> torch.nn.Module:
        return self.pipe
