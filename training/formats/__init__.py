"""Checkpoint formats beside the original's pickles: each a file that reads, or writes, one.

A reader turns bytes into constructor arguments and tensors under this project's names, and builds
no network; `training.pickles.load` does that, and checks that the two fit each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """A network before it is built.

    Attributes:
        kwargs: Arguments of its class in `training.networks`.
        tensors: Parameters and buffers by name; resampling filters may be left out.
        lacks_mean: The file has no mean of w, which then has to be measured.
    """

    kwargs: dict[str, Any]
    tensors: dict[str, Tensor]
    lacks_mean: bool = False


@dataclass(frozen=True)
class Content:
    """What a file holds: networks by their key in a network pickle, and the data set's options."""

    networks: dict[str, Parts]
    training_set_kwargs: dict[str, Any] | None = None


def reader_of(data: bytes) -> Callable[[bytes], Content] | None:
    """Return what reads a file with this content, or None where it can only be a pickle."""
    from . import rosinality, safetensors_file, tensorflow_pickle, torch_file

    if torch_file.is_one(data):
        return rosinality.read
    if safetensors_file.is_one(data):
        return safetensors_file.read
    if tensorflow_pickle.is_one(data):
        return tensorflow_pickle.read
    return None
