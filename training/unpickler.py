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
from collections.abc import Callable, Mapping, Sequence
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
_WHOLE = (pickletools.pyint, pickletools.pyinteger_or_bool)


class PickleError(ValueError):
    """A file that is no network pickle that can be read: one line with the file and the reason."""


def unpickle(
    data: bytes,
    names: Mapping[tuple[str, str], object] | None = None,
    persistent: Callable[[Any], object] | None = None,
) -> object:
    """Return what a pickle holds: plain values, and records in place of the rest.

    Args:
        data: The bytes of one pickle.
        names: What each name that the file may ask for stands for; default `NAMES`, with
            `TensorView` and `Object` as records.
        persistent: Returns what a persistent identifier stands for; without it they are refused.
            With it, whole numbers may be keys of dicts.

    Raises:
        PickleError: The bytes are no whole pickle, or ask for what no network pickle needs.
    """
    if data[:1] != pickle.PROTO:
        raise PickleError("is no pickle")
    try:
        _rehearse(data, others=persistent is not None)
        return _Unpickler(io.BytesIO(data), names or NAMES, persistent).load()
    except PickleError:
        raise
    except Exception as error:  # foreign bytes make an unpickler raise anything
        raise PickleError(f"is damaged, or no network pickle ({one_line(error)})") from None


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        file: io.BytesIO,
        names: Mapping[tuple[str, str], object],
        persistent: Callable[[Any], object] | None,
    ) -> None:
        super().__init__(file)
        self._names, self._persistent = names, persistent

    def persistent_load(self, pid: Any) -> object:
        assert self._persistent is not None  # or else the rehearsal has refused the opcode
        return self._persistent(pid)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._names:
            return self._names[module, name]
        if module.startswith("dnnlib.tflib"):
            raise PickleError("holds a TensorFlow network among others; only whole files convert")
        raise PickleError(f"refused {module}.{name}, which no network pickle needs")


class Record:
    """Stands for an object of the file. No pickle can change it, or its class, once it is made."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise PickleError(f"refused to set the state of a {type(self).__name__.strip('_').lower()}")


class Function(Record):
    """A name that a file may call, and do nothing else with."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]):
        self._call = call

    def __call__(self, *args: object) -> object:
        return self._call(*args)


class Dict(dict[Any, Any], Record):
    """An EasyDict or OrderedDict, empty at first: to copy one costs a file nothing, and us much."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()


class Storage(Record):
    """The numbers behind tensors, one-dimensional."""

    __slots__ = ("values",)

    def __init__(self, values: Tensor):
        self.values = values


class TensorView(Record):
    """A view of a storage, no larger than it."""

    __slots__ = ("value",)

    def __init__(self, storage: Storage, offset: int, size: Any, stride: Any, *_: object):
        self.value = storage.values.as_strided(size, stride, offset)
        if self.value.numel() > storage.values.numel():
            raise PickleError(f"a tensor of shape {list(size)} is larger than its storage")


class DType(Record):
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


@Function
def _storage(data: bytes) -> Storage:
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
    return Storage(values)


def _listed_storage(dtype: torch.dtype) -> Function:
    return Function(lambda values: Storage(torch.tensor(values, dtype=dtype)))


NAMES: dict[tuple[str, str], object] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Function(Object),
    ("dnnlib.util", "EasyDict"): Dict,
    ("collections", "OrderedDict"): Dict,
    ("builtins", "set"): _set,
    ("numpy", "dtype"): Function(DType),
    ("numpy.core.multiarray", "scalar"): _number,
    ("numpy._core.multiarray", "scalar"): _number,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor"): Function(TensorView),
    ("torch._utils", "_rebuild_tensor_v2"): Function(TensorView),
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "HalfStorage"): _listed_storage(torch.float16),
    ("torch", "FloatStorage"): _listed_storage(torch.float32),
    ("torch", "DoubleStorage"): _listed_storage(torch.float64),
}


def _rehearse(data: bytes, others: bool) -> None:
    """Follow the opcodes by the kinds of the values on the stack, before any value is made.

    Dict keys must be text: to hash a nest of tuples can take forever, or overrun the C stack.
    `others` allows persistent identifiers, and whole numbers as keys.
    """
    opcodes = _ALLOWED | {"BINPERSID"} if others else _ALLOWED
    keys = {pickletools.pyunicode, *(_WHOLE if others else ())}
    stack: list[object] = []
    marks: list[int] = []
    memo: dict[object, object] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name not in opcodes:
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
            if opcode.name.startswith("SETITEM") and set(taken[1::2]) - keys:
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
