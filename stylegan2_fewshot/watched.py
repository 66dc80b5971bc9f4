"""A number that Python may decide by while a CUDA graph is captured, and what it was asked."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any


class NotCapturable(RuntimeError):
    """A CUDA graph cannot hold what was about to happen, or would not replay it."""


class Watched:
    """The number of images shown so far, in place of the int: it can be compared, and no more.

    A graph repeats what Python once decided. So it keeps which comparisons were made, and serves
    as long as their answers are the same.

    Args:
        value: The number.
    """

    def __init__(self, value: int) -> None:
        self.value = value
        self._asked: list[tuple[Callable[[Any, Any], Any], Any, bool]] = []

    def agrees(self, value: int) -> bool:
        """Return whether another number would have given the same answers."""
        return all(bool(compare(value, other)) is said for compare, other, said in self._asked)


def plain(value: int | Watched) -> int:
    """Return the number itself, for what is settled anew in every iteration."""
    return value.value if isinstance(value, Watched) else value


def _asking(compare: Callable[[Any, Any], Any]) -> Callable[[Watched, Any], bool]:
    def ask(self: Watched, other: Any) -> bool:
        answer = bool(compare(self.value, other))
        self._asked.append((compare, other, answer))
        return answer

    return ask


def _refuse(self: Watched, *args: Any) -> Any:
    raise NotCapturable("step.cur_nimg is computed with, where it can only be compared")


for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Watched, f"__{_name}__", _asking(getattr(operator, _name)))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow"):
    setattr(Watched, f"__{_name}__", _refuse)
    setattr(Watched, f"__r{_name}__", _refuse)
for _name in ("neg", "int", "float", "index", "bool", "hash", "str", "format", "round"):
    setattr(Watched, f"__{_name}__", _refuse)
