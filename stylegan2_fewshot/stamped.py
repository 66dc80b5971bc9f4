"""An .npz file of tensors and a JSON text: checksummed, complete or absent, and never executed."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .files import replacing

_NO_DICT = (AttributeError, KeyError, TypeError)  # in the place of `meta`
_DAMAGE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, *_NO_DICT)


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and `meta` with a checksum over both; the file is complete or absent."""
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    text = json.dumps({**meta, "checksum": _checksum(arrays, meta)})
    with replacing(path) as file:
        np.savez(file, **arrays, meta=np.array(text))


def read(path: Path, kind: str, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` has written; ValueError where anything is missing or differs.

    Args:
        path: The file.
        kind: What the error calls it.
        remedy: What the error tells the user to do.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such {kind}; {remedy}")
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        checksum = meta.pop("checksum")
    except _DAMAGE as error:
        raise ValueError(f"{path}: no {kind}, or truncated ({error}); {remedy}") from error
    if checksum != _checksum(arrays, meta):
        raise ValueError(f"{path}: its numbers were altered after it was written; {remedy}")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, meta


def _checksum(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
