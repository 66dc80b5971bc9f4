"""What a network with a data instance prior is conditioned on when it generates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from metrics import detectors
from stylegan2_fewshot.methods.prior import clusters, instances
from stylegan2_fewshot.methods.prior.instances import Instances, unit
from stylegan2_fewshot.trust import NOBODY, Trust

from . import images, sources

SAMPLINGS = ("train", "mixup", "kmeans", "gmm")
POOL = 1000  # conditions drawn where a sampling has no number of its own
_SEED = 0


def beside(network: str | os.PathLike[str], c_dim: int | None = None) -> Instances | None:
    """Return the conditions that lie beside a network pickle, or None if it has none.

    Args:
        network: The network's file: a path, URL or short name.
        c_dim: How many numbers a condition of that network has, where that is known.

    Raises:
        ValueError: They are damaged, or of another network.
    """
    path = sources.fetch(network)
    found = instances.beside(path)
    if found and c_dim not in (None, width := found.vectors.shape[-1]):
        raise ValueError(
            f"{instances.companion(path)}: its conditions have {width} numbers, the network's "
            f"{c_dim}; get the file that belongs to it"
        )
    return found


def pool(kept: Instances, sampling: str) -> Tensor:
    """Return conditions `[M, F]` of unit length to draw from, the same ones every time.

    Mangla et al., WACV 2022 (arXiv 2012.04256), section 3.

    Args:
        kept: The network's companion, with conditions seen in training.
        sampling: `train`: those themselves; `mixup`: points between two of them; `kmeans`: the
            centres of clusters; `gmm`: draws from a mixture of Gaussians, both of all conditions
            of the training.
    """
    vectors, rng = kept.vectors, np.random.RandomState(_SEED)
    if sampling == "train":
        return vectors
    if sampling == "mixup":
        one, two = (vectors[rng.randint(len(vectors), size=POOL)] for _ in range(2))
        return unit(torch.lerp(one, two, torch.from_numpy(rng.rand(POOL, 1)).float()))
    found = kept.clusters or clusters.fitted(vectors)  # a file from before has none
    if sampling == "kmeans":
        return unit(found.centres)
    return unit(found.draws(POOL, torch.Generator().manual_seed(_SEED)))


def between(one: Tensor, two: Tensor, steps: int) -> Tensor:
    """Return conditions `[steps, F]` from `one` `[F]` to `two`, both included."""
    return unit(torch.lerp(one, two, torch.linspace(0, 1, steps)[:, None]))


def of_images(
    paths: Sequence[str],
    kept: Instances,
    G: Any,
    *,
    backbone: str | None = None,
    trust: Trust = NOBODY,
) -> Tensor:
    """Return the conditions `[n, F]` that images give, brought to the size of the network's.

    Args:
        paths: The images.
        kept: The network's companion. It may come from a stranger with the network, so the only
            backbones that its word alone loads are built in.
        G: The network.
        backbone: The user's own name or path of the backbone; default: what `kept` names.
        trust: What the user says about backbones that are programs.

    Raises:
        ValueError: A file is no image, the backbone has another hash than in training, or it is a
            program that the user does not say to trust.
    """
    named = kept.meta["backbone"]
    if backbone is None and not detectors.is_built_in(named):
        raise ValueError(
            f"the network's companion asks for the backbone {named[:200]!r}, which is not built "
            "in; if you have that file and trust it, add --backbone=FILE.pt --trust-backbone"
        )
    detector = detectors.load(backbone or named, trust=trust, sha256=kept.meta["backbone_sha256"])
    pixels = np.stack([_pixels(Path(path), G.img_resolution, G.img_channels) for path in paths])
    return kept.condition_of(detector(torch.from_numpy(pixels)))


def _pixels(path: Path, resolution: int, channels: int) -> np.ndarray:
    """Return uint8 `[C, R, R]`: the middle square of an image, as a training image would be."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    with images.opened(path, path) as image:
        image = images.upright(image).convert("RGBA")
    if mode != "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    square = ImageOps.fit(image.convert(mode), (resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(square).reshape(resolution, resolution, -1).transpose(2, 0, 1).copy()
