"""Unpickles network pickles without running them: bytes in, plain values and inert records out.

A pickle is a program, and the original's ones hold Python text besides, which the original runs.
Here each of the dozen names that such a file needs stands for a record or a function of ours, and
whatever else a file asks for is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MAX_OPCODES = 1_000_000  # a network of 1024x1024 takes 30,000
_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT"
    " SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BINBYTES8 EMPTY_LIST APPEND APPENDS"
    " EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS EMPTY_SET GLOBAL"
    " STACK_GLOBAL REDUCE NEWOBJ BUILD BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE"
)
_ALLOWED = frozenset(_OPCODES.split())


class PickleError(ValueError):
    """A file that is no network pickle that can be read: one line with the file and the reason."""


def unpickle(data: bytes) -> object:
    """Return what a pickle holds: plain values, `TensorView` and `Object` in place of the rest.

    Raises:
        PickleError: The bytes are no whole pickle, or ask for what no network pickle needs.
    """
    if data[:1] != pickle.PROTO:
        raise PickleError("is no pickle")
    try:
        _rehearse(data)
        return _Unpickler(io.BytesIO(data)).load()
    except PickleError:
        raise
    except Exception as error:  # foreign bytes make an unpickler raise anything
        raise PickleError(f"is damaged, or no network pickle ({one_line(error)})") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if module.startswith("dnnlib.tflib"):
            raise PickleError("is a TensorFlow pickle; convert it with the original's legacy.py")
        raise PickleError(f"refused {module}.{name}, which no network pickle needs")


class _Record:
    """Stands for an object of the file. No pickle can change it, or its class, once it is made."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise PickleError(f"refused to set the state of a {type(self).__name__.strip('_').lower()}")


class _Function(_Record):
    """A name that a file may call, and do nothing else with."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]):
        self._call = call

    def __call__(self, *args: object) -> object:
        return self._call(*args)


class _Dict(dict[Any, Any], _Record):
    """An EasyDict or OrderedDict, empty at first: to copy one costs a file nothing, and us much."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()


class _Storage(_Record):
    """The numbers behind tensors, one-dimensional."""

    __slots__ = ("values",)

    def __init__(self, values: Tensor):
        self.values = values


class TensorView(_Record):
    """A view of a storage, no larger than it."""

    __slots__ = ("value",)

    def __init__(self, storage: _Storage, offset: int, size: Any, stride: Any, *_: object):
        self.value = storage.values.as_strided(size, stride, offset)
        if self.value.numel() > storage.values.numel():
            raise PickleError(f"a tensor of shape {list(size)} is larger than its storage")


class _DType(_Record):
    """A NumPy number type; its state tells the byte order, of which nothing else is read."""

    __slots__ = ("code",)

    def __init__(self, code: str, *_: object):
        if code not in {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}:
            raise PickleError("refused a NumPy type that is not a plain number")
        self.code = code

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) else None
        if order not in ("<", ">", "|"):
            raise PickleError("refused the state of a NumPy type")
        self.code = order + self.code.lstrip("<>|")


class Object(_Record):
    """A network or layer: the name of its class and the attributes; its source text is dropped."""

    __slots__ = ("class_name", "state")

    def __init__(self, meta: dict[str, Any]):
        self.class_name, self.state = meta["class_name"], meta["state"]
        if not (isinstance(self.class_name, str) and isinstance(self.state, dict)):
            raise PickleError("a network is not described by a class name and attributes")


@_Function
def _parameter(tensor: object, *_: object) -> object:
    return tensor


@_Function
def _set(*_: object) -> None:
    """Sets only name a module's non-persistent buffers, of which these networks have none."""


@_Function
def _number(dtype: _DType, data: bytes) -> object:
    return np.frombuffer(data, dtype.code, count=1)[0].item()


@_Function
def _storage(data: bytes) -> _Storage:
    if data[:2] == b"PK":  # an archive may expand; what the original nests is never one
        raise PickleError("refused a storage in the form of a ZIP archive")
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL \S+|Unsupported operand \d+", str(error))
        found = culprit[0] if culprit else "what is no storage"
        raise PickleError(f"refused a storage that holds {found}") from None
    if not isinstance(loaded, torch.TypedStorage):
        raise PickleError(f"a storage holds a {type(loaded).__name__} instead of numbers")
    values = torch.tensor([], dtype=loaded.dtype).set_(loaded)
    if values.nbytes > len(data):
        raise PickleError("a storage claims to be larger than its data")
    return _Storage(values)


def _listed_storage(dtype: torch.dtype, values: list[float]) -> _Storage:
    return _Storage(torch.tensor(values, dtype=dtype))


_NAMES: dict[tuple[str, str], object] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Function(Object),
    ("dnnlib.util", "EasyDict"): _Dict,
    ("collections", "OrderedDict"): _Dict,
    ("builtins", "set"): _set,
    ("numpy", "dtype"): _Function(_DType),
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor"): _Function(TensorView),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(TensorView),
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "HalfStorage"): _Function(partial(_listed_storage, torch.float16)),
    ("torch", "FloatStorage"): _Function(partial(_listed_storage, torch.float32)),
    ("torch", "DoubleStorage"): _Function(partial(_listed_storage, torch.float64)),
}


def _rehearse(data: bytes) -> None:
    """Follow the opcodes by the kinds of the values on the stack, before any value is made.

    Dict keys must be text: to hash a nest of tuples can take forever, or overrun the C stack.
    """
    stack: list[object] = []
    marks: list[int] = []
    memo: dict[object, object] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name not in _ALLOWED:
            raise PickleError(f"refused opcode {opcode.name}, which no network pickle needs")
        if count > _MAX_OPCODES:
            raise PickleError(f"refused more than {_MAX_OPCODES} opcodes")
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(memo) if argument is None else argument
            if index > count:  # the unpickler's list would become that long
                raise PickleError("refused a memo with gaps")
            memo[index] = stack[-1]
        else:
            taken = _take(stack, marks, opcode.stack_before)
            if opcode.name.startswith("SETITEM") and set(taken[1::2]) - {pickletools.pyunicode}:
                raise PickleError("refused a dict with keys that are no text")
            stack += opcode.stack_after


def _take(stack: list[object], marks: list[int], kinds: Sequence[object]) -> list[object]:
    """Remove what an opcode consumes; a mark in `kinds` stands for all down to the last mark."""
    if pickletools.markobject in kinds:
        start = marks.pop() - kinds.index(pickletools.markobject)
    else:
        start = len(stack) - len(kinds)
    taken = stack[start:]
    del stack[start:]
    return taken


def one_line(error: Exception) -> str:
    """Put an exception of any length into one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}".rstrip(": ")
