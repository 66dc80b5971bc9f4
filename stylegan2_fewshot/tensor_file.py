"""An .npz file of tensors and a JSON text: checksummed, complete or absent, and never executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import npz
from .files import refusing, replacing


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and `meta` with a checksum over both; the file is complete or absent."""
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    text = json.dumps({**meta, "checksum": _checksum(arrays, meta)})
    with replacing(path) as file:
        np.savez(file, **arrays, meta=np.array(text))


def read(path: Path, kind: str, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` has written: tensors of numbers, and a dict.

    What they mean is for the caller to check, within `files.refusing`.

    Args:
        path: The file.
        kind: What the error calls it.
        remedy: What the error tells the user to do.

    Raises:
        ValueError: Anything is missing or differs.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such {kind}; {remedy}")
    with refusing(path, f"not a {kind}, or damaged", remedy):
        arrays = npz.read(path, most_compressed=0)  # `write` compresses nothing
        meta = json.loads(arrays.pop("meta").item())
        checksum = meta.pop("checksum")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        found = _checksum(arrays, meta)
    if checksum != found:
        raise ValueError(f"{path}: its numbers were altered after it was written; {remedy}")
    return tensors, meta


def _checksum(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
