"""What networks are conditioned on when they generate: what training saw, or what images show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metrics import detectors
from stylegan2_fewshot.networks import conditioner
from stylegan2_fewshot.plugin import Plugin
from stylegan2_fewshot.trust import NOBODY, Trust

from . import images, sources


def beside(
    network: str | os.PathLike[str], c_dim: int | None = None, sampling: str = "train"
) -> tuple[type[Plugin], Tensor] | None:
    """Return the method that keeps conditions beside a network pickle, and these `[M, c_dim]`.

    Args:
        network: The network: a path, URL, short name or run.
        c_dim: How many numbers a condition of that network has, where that is known.
        sampling: How they are made of those seen in training, in the method's own words.

    Raises:
        ValueError: They are damaged, or of another network.
    """
    found = conditioner(sources.fetch(network), sampling)
    if found and c_dim not in (None, width := found[1].shape[-1]):
        raise ValueError(
            f"{network}: the conditions beside it have {width} numbers, the network's {c_dim}; "
            "get the file that belongs to it"
        )
    return found


def see(
    paths: Sequence[str],
    named: str,
    sha256: str,
    G: Any,
    *,
    backbone: str | None = None,
    trust: Trust = NOBODY,
) -> Tensor:
    """Return what a backbone sees in images `[n, F]`, brought to the size of the network's.

    Args:
        paths: The images.
        named: The backbone, as a network's companion has it. It may come from a stranger with the
            network, so the only backbones that its word alone loads are built in.
        sha256: The backbone's hash, as the companion has it.
        G: The network.
        backbone: The user's own name or path of the backbone; default: `named`.
        trust: What the user says about backbones that are programs.

    Raises:
        ValueError: A file is not an image, the backbone has another hash, or it is a program that
            the user does not say to trust.
    """
    if backbone is None and not detectors.is_built_in(named):
        raise ValueError(
            f"the network's companion asks for the backbone {named[:200]!r}, which is not built "
            "in; if you have that file and trust it, add --backbone=FILE.pt --trust-backbone"
        )
    detector = detectors.load(backbone or named, trust=trust, sha256=sha256)
    shape = G.img_resolution, G.img_channels
    pixels = np.stack([images.pixels(images.rgba(path), *shape) for path in paths])
    return detector(torch.from_numpy(pixels))
