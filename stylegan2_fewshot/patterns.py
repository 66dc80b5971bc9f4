"""Patterns that name parameters or layers of the networks, as `mapping.*` or `D.b4.*`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch


def split(text: str) -> list[str]:
    """Return the patterns of a text that separates them by commas."""
    return [pattern for pattern in text.split(",") if pattern]


def matches(pattern: str, net: str, name: str) -> bool:
    """Return whether a pattern fits the parameter `name` of `net` ("G" or "D"), with the network
    in front or without."""
    return fnmatchcase(name, pattern) or fnmatchcase(f"{net}.{name}", pattern)


def refuse_unknown(option: str, patterns: Iterable[str], **nets: torch.nn.Module) -> None:
    """Raise where a pattern names no parameter of networks.

    Args:
        option: What the message starts with.
        patterns: Patterns of names.
        nets: Networks by name, `G` and `D`.
    """
    names = [(net, name) for net, module in nets.items() for name, _ in module.named_parameters()]
    for pattern in patterns:
        if not any(matches(pattern, net, name) for net, name in names):
            raise ValueError(
                f"{option}: {pattern!r} is the name of no parameter of {' or '.join(nets)}; "
                f"there are {'.'.join(names[0])}, {'.'.join(names[-1])} and others"
            )


def chosen(option: str, text: str, layers: Sequence[str]) -> list[str]:
    """Return the layers that a text's patterns fit, in the order of the layers.

    Args:
        option: What the message starts with.
        text: Patterns with commas between.
        layers: Names of all layers.

    Raises:
        ValueError: A pattern fits none.
    """
    wanted = text.split(",")
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in layers):
            known = ", ".join(layers)
            raise ValueError(f"{option}={text}: no layer {pattern!r}; there are {known}")
    return [name for name in layers if any(fnmatchcase(name, pattern) for pattern in wanted)]
