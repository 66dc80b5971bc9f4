"""What a network with a data instance prior is conditioned on when it generates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...drawing import STRIP, DrawOptions, Scene
from ...plugin import seed_of
from .clusters import fitted
from .instances import Instances, load_beside, unit

POOL = 1000  # conditions drawn where a sampling has no number of its own
_SEED = 0


def pool(kept: Instances, sampling: str) -> Tensor:
    """Return conditions `[M, F]` of unit length to draw from, the same ones every time.

    Mangla et al., WACV 2022 (arXiv 2012.04256), section 3.

    Args:
        kept: Conditions `[N, F]` seen in training, and their clusters.
        sampling: `train`: those themselves; `mixup`: points between two of them; `kmeans`: the
            centres of clusters; `gmm`: draws from a mixture of Gaussians.
    """
    vectors, rng = kept.vectors, np.random.RandomState(_SEED)
    if sampling == "train":
        return vectors
    if sampling == "mixup":
        one, two = (vectors[rng.randint(len(vectors), size=POOL)] for _ in range(2))
        return unit(torch.lerp(one, two, torch.from_numpy(rng.rand(POOL, 1)).float()))
    found = kept.clusters or fitted(vectors)  # a file from before has none
    if sampling == "kmeans":
        return unit(found.centres)
    return unit(found.draws(POOL, torch.Generator().manual_seed(_SEED)))


def between(one: Tensor, two: Tensor, steps: int) -> Tensor:
    """Return conditions `[steps, F]` from `one` `[F]` to `two`, both included."""
    return unit(torch.lerp(one, two, torch.linspace(0, 1, steps)[:, None]))


def of_images(images: list[str], kept: Instances, scene: Scene) -> Tensor:
    """Return the conditions `[n, F]` of image files, of what the companion's backbone sees."""
    backbone, sha256 = kept.meta["backbone"], kept.meta["backbone_sha256"]
    return kept.condition_of(scene.see(images, backbone=backbone, sha256=sha256))


class PriorDrawing(DrawOptions):
    """Conditions of a network trained with --prior.

    Args:
        sample: Conditions of a network trained with --prior: those of training images, or near
            them.
        image: Condition on this image.
        mix: A strip of images, from one's condition to another's.
    """

    def __init__(
        self,
        *,
        sample: Literal["train", "mixup", "kmeans", "gmm"] | None = None,
        image: str | None = None,
        mix: str | None = None,
    ) -> None:
        if sum(map(bool, (sample, image, mix))) > 1:
            raise ValueError("give only one of --prior-sample, --prior-image and --prior-mix")
        self.sample, self.images = sample, [image] if image else []
        if mix:
            self.images = mix.split(",")
            if len(self.images) != 2:
                raise ValueError(f"--prior-mix={mix}: name two images, as a.png,b.png")

    def conditions(self, scene: Scene) -> Callable[[int], Tensor] | None:
        if not (self.sample or self.images):
            return None
        option = "sample" if self.sample else "mix" if len(self.images) > 1 else "image"
        try:
            if (kept := load_beside(scene.network)) is None:
                raise ValueError("the network has no file .prior.npz beside it")
            if self.sample:
                found = pool(kept, self.sample)
                return lambda seed: found[seed_of("prior", seed) % len(found)][None]
            c = of_images(self.images, kept, scene)
        except ValueError as error:
            raise ValueError(f"--prior-{option}: {error}") from error
        return lambda seed: c if len(c) == 1 else between(c[0], c[1], STRIP)

    def of_image(self, scene: Scene, image: str) -> Tensor | None:
        kept = load_beside(scene.network)
        return None if kept is None else of_images([image], kept, scene)
