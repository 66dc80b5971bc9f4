"""What plugins remember in Python between hooks: compared, kept, and put back."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_fewshot import Plugins
from stylegan2_fewshot.watched import NotCapturable

# A module's own business, and generators, which are seeded in every iteration; buffers are compared
# too, since a plugin may bind them anew.
_LEFT_OUT = frozenset(vars(nn.Module())) - {"_buffers"} | {"_generators"}
_SIMPLE = (type(None), bool, int, float, complex, str, bytes)
_MOST = 20_000  # values that are compared before every pass


def attributes(plugins: Plugins) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a label, the dict that holds it, and the key of all that plugins remember."""
    for path, module in plugins.named_modules():
        for name in vars(module).keys() - _LEFT_OUT:
            yield f"{path}.{name}", vars(module), name


def fingerprint(
    plugins: Plugins, of_tensor: Callable[[Tensor], Hashable]
) -> frozenset[tuple[str, Hashable]]:
    """Return what is equal where plugins remember the same, by label.

    Args:
        plugins: The plugins.
        of_tensor: What is to be equal of tensors.
    """
    reader = _Reader(of_tensor)
    return frozenset((label, reader(holder[name])) for label, holder, name in attributes(plugins))


class Same:
    """Equal to another of the very same object, which it keeps from being replaced by a new one."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Reader:
    """Turns values into what can be compared: containers by content, the rest by identity."""

    def __init__(self, of_tensor: Callable[[Tensor], Hashable]) -> None:
        self._of_tensor = of_tensor
        self._number: dict[int, int] = {}  # of containers that were met, which may hold themselves

    def __call__(self, value: Any) -> Hashable:
        if isinstance(value, _SIMPLE):
            return type(value), value
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        if (parts := _parts(value)) is None:
            return Same(value)
        if id(value) in self._number:
            return "again", self._number[id(value)]
        self._number[id(value)] = len(self._number)
        if len(self._number) + len(parts) > _MOST:
            raise NotCapturable("plugins remember too much to compare it before every pass")
        read = map(self, parts)
        return type(value), frozenset(read) if isinstance(value, (set, frozenset)) else tuple(read)


def _parts(value: Any) -> list[Any] | None:
    """Return what a container holds, or an object that is no more than its attributes."""
    if isinstance(value, dict):
        return [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        return list(value)
    return [vars(value)] if _is_plain(value) else None


def _is_plain(value: Any) -> bool:
    known = (Tensor, nn.Module, torch.optim.Optimizer)
    is_known = isinstance(value, known) or callable(value)
    return not is_known and type(getattr(value, "__dict__", None)) is dict


class Remembered:
    """What plugins remember now: containers are copied, what they hold is not.

    Args:
        plugins: The plugins.
        instead: Tensors to hold in place of others, by the others' `id`.
    """

    def __init__(self, plugins: Plugins, instead: dict[int, Any] | None = None) -> None:
        self._plugins, memo = plugins, dict(instead or {})
        self._values = {
            label: (holder, name, _copied(holder[name], memo))
            for label, holder, name in attributes(plugins)
        }

    def restore(self, labels: frozenset[str] | None = None) -> None:
        """Let the plugins remember it again.

        Args:
            labels: Of what alone; None for everything.
        """
        memo: dict[int, Any] = {}
        for label, holder, name in list(attributes(self._plugins)):
            if label not in self._values and (labels is None or label in labels):
                del holder[name]
        for label, (holder, name, value) in self._values.items():
            if labels is None or label in labels:
                holder[name] = _copied(value, memo)

    def tensors(self) -> list[Tensor]:
        """Return the tensors among it, each once, in an order of their places."""
        found: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Hashable:
            return found.setdefault(id(tensor), tensor).shape

        reader = _Reader(keep)
        for _, (_, _, value) in sorted(self._values.items(), key=lambda item: item[0]):
            reader(value)
        return list(found.values())


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of containers all the way down, in which the rest is shared."""
    if id(value) in memo:
        return memo[id(value)]
    if _parts(value) is None or isinstance(value, _SIMPLE):
        return value
    if isinstance(value, tuple):
        items = [_copied(part, memo) for part in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    new = memo[id(value)] = copy.copy(value)
    if isinstance(value, dict):
        for key, part in value.items():
            new[key] = _copied(part, memo)
    elif isinstance(value, (list, collections.deque)):
        new.clear()
        new.extend(_copied(part, memo) for part in value)
    elif not isinstance(value, (set, frozenset)):
        vars(new).update({key: _copied(part, memo) for key, part in vars(value).items()})
    return new
