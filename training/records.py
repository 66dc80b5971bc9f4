"""What stands for the names in network pickles, and in files of `torch.save`: inert records.

Storages are read without torch's own reader, which trusts the sizes that a file claims, and knows
more names than a tensor needs.
"""

from __future__ import annotations

import io
import itertools
import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .unpickler import MAX_OPCODES, Dict, Function, Names, PickleError, Record, unpickle

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)  # of files of torch.save before 1.6
MAX_DIMENSIONS = 8
_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Storage(Record):
    """The numbers behind tensors, one-dimensional."""

    __slots__ = ("values",)

    def __init__(self, values: Tensor):
        self.values = values


class TensorView(Record):
    """A view of a storage, no larger than it."""

    __slots__ = ("value",)

    def __init__(self, storage: Storage, offset: int, size: Any, stride: Any, *_: object):
        for numbers in (size, stride):
            if not (isinstance(numbers, tuple) and len(numbers) <= MAX_DIMENSIONS):
                raise PickleError("a tensor has a shape that is none")
        self.value = storage.values.as_strided(size, stride, offset)
        if self.value.numel() > storage.values.numel():
            raise PickleError(f"a tensor of shape {list(size)} is larger than its storage")


class DType(Record):
    """A NumPy number type; its state tells the byte order, of which nothing else is read."""

    __slots__ = ("code",)

    def __init__(self, code: str, *_: object):
        if not isinstance(code, str) or code not in {
            "f2",
            "f4",
            "f8",
            "i1",
            "i2",
            "i4",
            "i8",
            "u1",
            "u2",
            "u4",
            "u8",
            "b1",
        }:
            raise PickleError("refused a NumPy type that is not a plain number")
        self.code = code

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) else None
        if order not in ("<", ">", "|"):
            raise PickleError("refused the state of a NumPy type")
        self.code = order + self.code.lstrip("<>|")


class Object(Record):
    """A network or layer: the name of its class and the attributes; its source text is dropped."""

    __slots__ = ("class_name", "state")

    def __init__(self, meta: dict[str, Any]):
        self.class_name, self.state = meta["class_name"], meta["state"]
        if not (isinstance(self.class_name, str) and isinstance(self.state, dict)):
            raise PickleError("a network is not described by a class name and attributes")


@Function
def _parameter(tensor: object, *_: object) -> object:
    return tensor


@Function
def _set(*_: object) -> None:
    """Sets only name a module's non-persistent buffers, of which these networks have none."""


@Function
def _number(dtype: DType, data: bytes) -> object:
    return np.frombuffer(data, dtype.code, count=1)[0].item()


class Kind(Record):
    """The type of a storage, where a file names it."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


class _Storages:
    """Makes the storages of one file: each text of bytes once, and no more numbers than opcodes."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[bytes, Storage]] = {}
        self._left = MAX_OPCODES

    def from_bytes(self, data: object) -> Storage:
        if not isinstance(data, bytes):
            raise PickleError("refused a storage that is not given as bytes")
        if id(data) not in self._made:  # the bytes are kept, so that nothing else gets their id
            self._made[id(data)] = data, _nested(data)
        return self._made[id(data)][1]

    def listed(self, values: object, dtype: torch.dtype) -> Storage:
        if not isinstance(values, list) or len(values) > self._left:
            raise PickleError("refused a storage that is not a list of numbers, or is too long")
        self._left -= len(values)
        if not all(isinstance(value, (int, float)) for value in values):
            raise PickleError("refused a storage that is not a flat list of numbers")
        return Storage(torch.tensor(values, dtype=dtype))


def _nested(data: bytes) -> Storage:
    """Return the one storage in bytes of `torch.save`, which may name its type, and no more."""
    if data[:2] == b"PK":  # what the original nests is never an archive
        raise PickleError("refused a storage in the form of a ZIP archive")
    if not data.startswith(MAGIC):
        raise PickleError("refused a storage that is not in the format of torch.save")
    try:
        found = sequence(data, _KINDS)
    except (PickleError, MemoryError) as error:
        if isinstance(error, MemoryError):
            raise
        raise PickleError(f"refused a storage: {error}") from None
    if not isinstance(found, Storage):
        raise PickleError(f"a storage holds a {type(found).__name__} instead of numbers")
    return found


def names() -> dict[tuple[str, str], object]:
    """Return what the names of one network pickle stand for."""
    made = _Storages()

    def listed(dtype: torch.dtype) -> Function:
        return Function(lambda values: made.listed(values, dtype))

    return {
        **COMMON,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): Function(Object),
        ("dnnlib.util", "EasyDict"): Dict,
        ("collections", "OrderedDict"): Dict,
        ("builtins", "set"): _set,
        ("torch._utils", "_rebuild_tensor"): Function(TensorView),
        ("torch.storage", "_load_from_bytes"): Function(made.from_bytes),
        ("torch", "HalfStorage"): listed(torch.float16),
        ("torch", "FloatStorage"): listed(torch.float32),
        ("torch", "DoubleStorage"): listed(torch.float64),
    }


COMMON: dict[tuple[str, str], object] = {
    ("numpy", "dtype"): Function(DType),
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): Function(TensorView),
}
_KINDS: Names = {("torch", name): Kind(dtype) for name, dtype in DTYPES.items()}


def sequence(data: bytes, names: Names) -> object:
    """Read what torch wrote before 1.6: five pickles and the storages, one after the other.

    Raises:
        PickleError: It claims more than it holds, or asks for other names; other exceptions where
            it is damaged.
    """
    stream = io.BytesIO(data)
    starts = [0]
    fuel = iter(range(MAX_OPCODES))
    for _ in range(5):
        for _ in pickletools.genops(stream):
            if next(fuel, None) is None:
                raise PickleError(f"refused more than {MAX_OPCODES} opcodes")
        starts.append(stream.tell())
    _, _, system, main, keys = (data[a:b] for a, b in itertools.pairwise(starts))
    about: Any = unpickle(system, names)
    if about["little_endian"] is not True:
        raise PickleError("has its numbers in big-endian order")
    sizes: dict[str, int] = {}

    def measure(kind: Kind, key: str, number: int) -> Storage:
        sizes[key] = kind.dtype.itemsize
        return Storage(torch.empty(number, dtype=kind.dtype, device="meta"))

    unpickle(main, names, lambda pid: measure(*described(pid)))
    raw: dict[str, bytes] = {}
    order: Any = unpickle(keys, names)
    for key in order:
        (number,) = struct.unpack("<q", stream.read(8))
        if not 0 <= number <= len(data):
            raise PickleError("claims to hold more than it does")
        raw[key] = stream.read(number * sizes[key])
    return unpickle(main, names, storages(raw.__getitem__))


def storages(bytes_of: Callable[[str], bytes]) -> Callable[[Any], Storage]:
    """Return what makes storages of their persistent identifiers, each once."""
    made: dict[str, Storage] = {}

    def make(pid: Any) -> Storage:
        kind, key, number = described(pid)
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


def described(pid: Any) -> tuple[Kind, str, int]:
    """Return type, key and number of values of the storage that a persistent identifier names."""
    if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
        raise PickleError("refused a persistent identifier that is not a storage")
    kind, key, number = pid[1], pid[2], pid[4]
    if len(pid) == 6 and pid[5] is not None:
        raise PickleError("refused a storage that is a view of another")
    if not (isinstance(kind, Kind) and isinstance(key, str) and isinstance(number, int)):
        raise PickleError("refused a storage of an unknown kind")
    if number < 0:
        raise PickleError("a storage has a negative size")
    return kind, key, number
