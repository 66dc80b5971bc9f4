"""The file that holds a Fisher information: checksummed, checked, and never executed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import cache, tensor_file
from ..files import refusing, sha256_of

FORMAT = 1
LIKELIHOOD = "log sigmoid D(G(z))"
_REMEDY = "make it anew with python -m tools.fisher"


@dataclass(frozen=True)
class Fisher:
    """Fisher information by name of parameter (`G.` or `D.` in front), and where it comes from.

    Attributes:
        values: Float32 tensors >= 0, of the parameter's shape, or scalars for whole layers.
        meta: The settings, the source's SHA-256, and `standard_error`: of each layer's mean.
    """

    values: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if not value.is_floating_point():
                raise ValueError(f"Fisher information of {name} is of type {value.dtype}")
            if not (value.isfinite().all() and (value >= 0).all()):
                raise ValueError(f"Fisher information of {name} is negative or not finite")


def kind_of(parameter: str) -> str:
    """Return what a parameter is by its name: weights, biases or noise (a noise strength).

    Biases and noise strengths are few and carry nearly all of the information of a StyleGAN2.
    """
    last = parameter.rpartition(".")[2]
    return {"bias": "biases", "noise_strength": "noise"}.get(last, "weights")


def save(path: Path, fisher: Fisher) -> None:
    """Write a Fisher file: `.npz`, one array per parameter, and `meta`, a JSON text.

    The file is complete or absent.
    """
    tensor_file.write(path, fisher.values, fisher.meta)


def load(path: Path, source: Path | None = None, network: str | None = None) -> Fisher:
    """Read a Fisher file; nothing in it is executed.

    Args:
        path: The file.
        source: The network pickle that it has to be of, if that is known.
        network: The generator of that pickle that it has to be of, G or G_ema, if that matters.

    Raises:
        ValueError: It is not a Fisher file, is truncated, was altered, or is of another network.
    """
    values, meta = tensor_file.read(path, "Fisher file", _REMEDY)
    if meta.get("likelihood") != LIKELIHOOD or "standard_error" not in meta:
        raise ValueError(f"{path}: an unfinished estimate, or of another kind; {_REMEDY}")
    with refusing(path, "not a Fisher file", _REMEDY):
        of_source, of_network = str(meta["source_sha256"]), meta.get("network")
        fisher = Fisher(values, meta)
    if source and of_source != (yours := sha256_of(source)):
        raise ValueError(
            f"{path}: of another network: its source pickle has SHA-256 {of_source[:12]}..., "
            f"yours has {yours[:12]}...; {_REMEDY}"
        )
    if network and of_network not in ("G", "G_ema"):
        raise ValueError(
            f"{path}: does not say whether it is of the source's G or G_ema; {_REMEDY} "
            f"--network={network}"
        )
    if network and of_network != network:
        raise ValueError(
            f"{path}: of the source's {of_network}, but G starts as its {network}; {_REMEDY} "
            f"--network={network}, or give --resume-from={str(of_network).lower()}"
        )
    return fisher


def writable_folder(source: Path) -> Path:
    """Return the source's folder, or else the user's cache, for what is worth keeping."""
    if os.access(source.parent, os.W_OK):
        return source.parent
    return cache.folder()
