"""Pickles of plain values and tensors whose bytes depend on the values alone.

pickle itself writes an object that occurs twice once, so that its bytes tell which of equal objects
are one; and torch numbers storages by their addresses. Equal runs then write unequal files.
"""

from __future__ import annotations

import collections
import copyreg
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .records import MAGIC

PROTOCOL = 3
_KINDS = {
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
    torch.int64: torch.LongStorage,
    torch.bool: torch.BoolStorage,
}
_KEY = "0"  # of the only storage in a file
_SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def body(value: object) -> bytes:
    """Return the opcodes that make `value`, of protocol 3, to be joined with those of others."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, PROTOCOL)
    pickler.fast = True  # no memo
    pickler.dispatch_table = copyreg.dispatch_table | {
        Tensor: _reduced,
        torch.nn.Parameter: _reduced,
    }
    pickler.dump(value)
    return stream.getvalue()[2:-1]


def _reduced(tensor: Tensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the call that rebuilds a tensor, as torch does it since version 1.0."""
    hooks: collections.OrderedDict[str, Any] = collections.OrderedDict()
    arguments = (_Storage(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
    return torch._utils._rebuild_tensor_v2, (*arguments, False, hooks)


class _Storage:
    """Stands for the storage of a tensor while it is written."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes]]:
        return torch.storage._load_from_bytes, (_saved(self.tensor),)


def _saved(tensor: Tensor) -> bytes:
    """Return a tensor's storage as torch wrote it before version 1.6, and still reads it."""
    numbers = tensor.untyped_storage()
    count = numbers.nbytes() // tensor.itemsize
    raw = torch.empty(0, dtype=torch.uint8).set_(numbers).numpy().tobytes()
    parts = [pickle.dumps(1001, 2), pickle.dumps(_SYSTEM, 2)]
    parts += [_reference(_KINDS[tensor.dtype], count), pickle.dumps([_KEY], 2)]
    return MAGIC + b"".join(parts) + count.to_bytes(8, "little") + raw


def _reference(kind: type[Any], count: int) -> bytes:
    stream = io.BytesIO()
    pickler = _Referring(stream, 2)
    pickler.pid = ("storage", kind, _KEY, "cpu", count, None)
    pickler.dump(pickler)
    return stream.getvalue()


class _Referring(pickle.Pickler):
    """Writes a persistent identifier in the place of itself."""

    pid: tuple[Any, ...]

    def persistent_id(self, obj: object) -> tuple[Any, ...] | None:
        return self.pid if obj is self else None
