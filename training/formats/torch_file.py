"""Files of `torch.save`, old and new, read without torch's own reader.

That one trusts the sizes that a file claims, and knows more names than a state dict needs.
"""

from __future__ import annotations

import io
import itertools
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..unpickler import NAMES, Dict, Function, PickleError, Record, Storage, unpickle

_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _StateDict(Dict):
    """An OrderedDict without its attributes, the versions of modules.

    Or the command line that rosinality's training keeps, of which nothing is used.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Kind(Record):
    """The type of a storage."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


_REBUILT = [("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")]
_NAMES: dict[tuple[str, str], object] = {
    **{name: NAMES[name] for name in (*_REBUILT, ("numpy", "dtype"))},
    **{name: value for name, value in NAMES.items() if name[1] == "scalar"},
    **{("torch", name): _Kind(dtype) for name, dtype in _DTYPES.items()},
    ("collections", "OrderedDict"): _StateDict,
    ("argparse", "Namespace"): _StateDict,
    ("torch", "Size"): Function(tuple),
}


def is_one(data: bytes) -> bool:
    """Return whether `torch.save` wrote this, today's way or that before torch 1.6."""
    return data[:4] == b"PK\x03\x04" or data.startswith(_MAGIC)


def read(data: bytes) -> object:
    """Return what was saved; a `TensorView` stands for each tensor.

    Raises:
        PickleError: The file is damaged, claims more than it holds, or asks for a name that no
            state dict needs.
    """
    try:
        return _archive(data) if data[:2] == b"PK" else _sequence(data)
    except PickleError:
        raise
    except Exception as error:  # zipfile and pickletools raise a dozen kinds for foreign bytes
        raise PickleError(f"is a damaged file of torch.save ({type(error).__name__})") from None


def _archive(data: bytes) -> object:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        if sum(entry.file_size for entry in file.infolist()) > len(data):
            raise PickleError("refused a ZIP archive that expands to more than its own size")
        found = [name for name in file.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(found) != 1:
            raise PickleError("is a ZIP archive, but none of torch.save")
        folder = found[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in file.namelist() and file.read(f"{folder}byteorder") != b"little":
            raise PickleError("has its numbers in big-endian order")
        main = file.read(found[0])
        return unpickle(main, _NAMES, _storages(lambda key: file.read(f"{folder}data/{key}")))


def _sequence(data: bytes) -> object:
    """Read what torch wrote before 1.6: five pickles and the storages, one after the other."""
    stream = io.BytesIO(data)
    starts = [0]
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        starts.append(stream.tell())
    _, _, system, main, keys = (data[a:b] for a, b in itertools.pairwise(starts))
    if unpickle(system, _NAMES)["little_endian"] is not True:  # type: ignore[index]
        raise PickleError("has its numbers in big-endian order")
    sizes: dict[str, int] = {}

    def measure(kind: _Kind, key: str, number: int) -> Storage:
        sizes[key] = kind.dtype.itemsize
        return Storage(torch.empty(number, dtype=kind.dtype, device="meta"))

    unpickle(main, _NAMES, lambda pid: measure(*_described(pid)))
    raw: dict[str, bytes] = {}
    for key in unpickle(keys, _NAMES):  # type: ignore[attr-defined]
        (number,) = struct.unpack("<q", stream.read(8))
        if not 0 <= number <= len(data):
            raise PickleError("claims to hold more than it does")
        raw[key] = stream.read(number * sizes[key])
    return unpickle(main, _NAMES, _storages(raw.__getitem__))


def _storages(bytes_of: Callable[[str], bytes]) -> Callable[[Any], Storage]:
    made: dict[str, Storage] = {}

    def make(pid: Any) -> Storage:
        kind, key, number = _described(pid)
        if key not in made:
            raw = bytes_of(key)
            if len(raw) < number * kind.dtype.itemsize:
                raise PickleError("a storage claims to be larger than its data")
            made[key] = Storage(_numbers(raw, kind.dtype, number))
        return made[key]

    return make


def _numbers(raw: bytes, dtype: torch.dtype, number: int) -> Tensor:
    if number == 0:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype, count=number)


def _described(pid: Any) -> tuple[_Kind, str, int]:
    if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
        raise PickleError("refused a persistent identifier that is no storage")
    kind, key, number = pid[1], pid[2], pid[4]
    if len(pid) == 6 and pid[5] is not None:
        raise PickleError("refused a storage that is a view of another")
    if not (isinstance(kind, _Kind) and isinstance(key, str) and isinstance(number, int)):
        raise PickleError("refused a storage of an unknown kind")
    if number < 0:
        raise PickleError("a storage has a negative size")
    return kind, key, number
