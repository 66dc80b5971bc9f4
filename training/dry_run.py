"""What a run would refuse, found without training and before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from stylegan2_fewshot.files import without_secrets

from . import construction, sources
from .dataset import ImageDataset
from .state import construct


def check(options: Mapping[str, Any], dataset: ImageDataset) -> str:
    """Return what a run is about, after everything that a run refuses has been looked for.

    Networks that start from scratch are built without memory. What takes long to estimate is left
    out, and so is a source that is not on this machine.

    Args:
        options: Options of the run.
        dataset: The training images, checked.

    Raises:
        ValueError: The options do not fit the images, the source network or one another.
    """
    resume = options["resume"]
    if resume is not None and not sources.is_here(resume):
        name = without_secrets(resume)
        return f"--resume={name} is not on this machine yet, so that it is not checked"
    device = torch.device("cpu" if resume else "meta")
    state, path = construct(options, dataset, device, estimates=False)
    return construction.summary(options, state.dataset, state.G, state.D, path, 0)
