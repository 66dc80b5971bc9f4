"""Whom to believe about feature networks that are programs: the user alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

_HEX = re.compile(r"[0-9a-fA-F]{64}")
_FLAG = "--trust-backbone"
_PIN = "--backbone-sha256"


@dataclass(frozen=True)
class Trust:
    """What the user's own command line says about TorchScript files, which are programs.

    Attributes:
        everything: Run any that the user names.
        hashes: SHA-256, in hexadecimal, of those that may run.
    """

    everything: bool = False
    hashes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in self.hashes:
            if not _HEX.fullmatch(text):
                raise ValueError(f"{_PIN}={text}: must be 64 hexadecimal digits")

    def check(self, path: object, sha256: str) -> None:
        """Raise ValueError unless the file of this hash may run."""
        if self.hashes and sha256 not in map(str.lower, self.hashes):
            raise ValueError(f"{path}: SHA-256 is {sha256}, which is not that of {_PIN}")
        if not (self.everything or self.hashes):
            raise ValueError(
                f"{path}: a TorchScript file is a program, and would run with your rights; if you "
                f"trust it, add {_FLAG}, or {_PIN}={sha256}"
            )


NOBODY = Trust()


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the two options to a command, which gets `trust_backbone` and `backbone_sha256`."""
    flag = click.option(
        _FLAG,
        is_flag=True,
        help="Run the TorchScript files that this command line names. Such a file is a program: "
        "it can do whatever you can.",
    )
    pin = click.option(
        _PIN,
        metavar="HEX",
        multiple=True,
        help="Run TorchScript files of this SHA-256 only; checked before the file is looked into.",
    )
    return flag(pin(command))
