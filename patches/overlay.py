"""A module as one of the host's files sees it: a few names replaced, the rest as it is."""

from __future__ import annotations

from typing import Any


class Overlay:
    """Stands in front of a module, or of any object; nobody else sees what it replaces."""

    def __init__(self, base: Any, **replaced: Any) -> None:
        self._base = base
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


def replace(module: Any, path: str, value: Any) -> None:
    """Replace what `module` knows as `path`, such as `torch.cuda.Event`, for that module alone."""
    name, _, rest = path.partition(".")
    if not rest:
        setattr(module, name, value)
        return
    part = getattr(module, name)
    if not isinstance(part, Overlay):
        part = Overlay(part)
        setattr(module, name, part)
    replace(part, rest, value)
