"""Checkpoint formats beside the original's pickles: each a file that reads, or writes, one.

A reader turns bytes into constructor arguments and tensors under this project's names, and builds
no network; `training.pickles.load` does that, and checks that the two fit each other.
"""

from __future__ import annotations

from collections.abc import Callable

from . import rosinality, safetensors_file, tensorflow_pickle, torch_file
from .content import Content, Parts

__all__ = ["Content", "Parts", "reader_of"]


def reader_of(data: bytes) -> Callable[[bytes], Content] | None:
    """Return what reads a file with this content, or None where it can only be a pickle."""
    if torch_file.is_one(data):
        return rosinality.read
    if safetensors_file.is_one(data):
        return safetensors_file.read
    if tensorflow_pickle.is_one(data):
        return tensorflow_pickle.read
    return None
