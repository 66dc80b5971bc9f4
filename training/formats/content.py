"""What a reader of a format hands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

KEYS = ("G", "D", "G_ema", "augment_pipe")  # of networks in a file


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
