"""Unpickles network pickles without running them: bytes in, plain values and inert records out.

A pickle is a program, and the original's ones hold Python text besides, which the original runs.
Here each of the dozen names that such a file needs stands for a record or a function of ours, and
whatever else a file asks for is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stylegan2_fewshot.files import printable

Names = Mapping[tuple[str, str], object]
MAX_OPCODES = 1_000_000  # a network of 1024x1024 takes 30,000
_MAX_TUPLE = 1000  # a file may call with the same arguments again and again, each time copied
_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT"
    " SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BINBYTES8 EMPTY_LIST APPEND APPENDS"
    " EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS EMPTY_SET GLOBAL"
    " STACK_GLOBAL REDUCE NEWOBJ BUILD BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE"
)
_ALLOWED = frozenset(_OPCODES.split())
_WHOLE = (pickletools.pyint, pickletools.pyinteger_or_bool)


class PickleError(ValueError):
    """A file that is not a readable network pickle: one line with the file and the reason."""


def unpickle(
    data: bytes,
    names: Names,
    persistent: Callable[[Any], object] | None = None,
) -> object:
    """Return what a pickle holds: plain values, and records in place of the rest.

    Args:
        data: The bytes of one pickle.
        names: What each name that the file may ask for stands for.
        persistent: Returns what a persistent identifier stands for; without it they are refused.
            With it, whole numbers may be keys of dicts.

    Raises:
        PickleError: The bytes are no whole pickle, or ask for what no network pickle needs.
    """
    if data[:1] != pickle.PROTO:
        raise PickleError("is not a network file")
    try:
        _rehearse(data, others=persistent is not None)
        return _Unpickler(io.BytesIO(data), names, persistent).load()
    except (PickleError, MemoryError):
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
        asked = printable(f"{module[:100]}.{name[:100]}")
        raise PickleError(f"refused {asked}, which no network pickle needs")


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
        if count > MAX_OPCODES:
            raise PickleError(f"refused more than {MAX_OPCODES} opcodes")
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
            if opcode.name == "TUPLE" and len(taken) > _MAX_TUPLE:
                raise PickleError(f"refused a tuple of more than {_MAX_TUPLE} values")
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
    words = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {words[:200]}".rstrip(": ")
