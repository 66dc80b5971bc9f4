"""Patterns that name parameters of the networks, as `mapping.*` or `D.b4.*`."""

from __future__ import annotations

from collections.abc import Iterable
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
