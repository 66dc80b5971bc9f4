"""The file that holds a Fisher information: stamped, checked, and never executed."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMAT = 1
LIKELIHOOD = "log sigmoid D(G(z))"
_REMEDY = "make it anew with python -m stylegan2_fewshot.fisher"
_DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


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
            if not (value.isfinite().all() and (value >= 0).all()):
                raise ValueError(f"Fisher information of {name} is negative or not finite")

    def refuse_other_source(self, path: Path, sha256: str) -> None:
        """Raise ValueError, with what differs, unless this is of the pickle with that hash."""
        if (theirs := self.meta["source_sha256"]) != sha256:
            raise ValueError(
                f"{path}: of another network: its source pickle has SHA-256 {theirs[:12]}..., "
                f"yours has {sha256[:12]}...; {_REMEDY}"
            )


def save(path: Path, fisher: Fisher) -> None:
    """Write a Fisher file: `.npz`, one array per parameter, and `meta`, a JSON text.

    The file is complete or absent.
    """
    write(path, fisher.values, fisher.meta)


def load(path: Path) -> Fisher:
    """Read a Fisher file; nothing in it is executed.

    Raises:
        ValueError: It is no Fisher file, truncated, or its numbers were altered.
    """
    values, meta = read(path)
    if meta.get("likelihood") != LIKELIHOOD or "standard_error" not in meta:
        raise ValueError(f"{path}: an unfinished estimate, or of another kind; {_REMEDY}")
    return Fisher(values, meta)


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and `meta` with a checksum over both; the file is complete or absent."""
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    text = json.dumps({**meta, "checksum": _checksum(arrays, meta)})
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            np.savez(file, **arrays, meta=np.array(text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` has written; ValueError where anything is missing or differs."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such Fisher file; {_REMEDY}")
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        checksum = meta.pop("checksum")
    except _DAMAGE as error:
        raise ValueError(f"{path}: no Fisher file, or truncated ({error}); {_REMEDY}") from error
    if checksum != _checksum(arrays, meta):
        raise ValueError(f"{path}: its numbers were altered after it was written; {_REMEDY}")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, meta


def _checksum(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
