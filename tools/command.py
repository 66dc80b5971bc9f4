"""What all commands of this room share: how one is made, and paths on its command line."""

from __future__ import annotations

import functools
import os
from typing import Any

import click

from stylegan2_fewshot.options import Command

# Decorates `main`: a ValueError or OSError ends in one line and exit status 2.
command = functools.partial(click.command, cls=Command, context_settings={"max_content_width": 100})


class UserPath(click.Path):
    """A path in which `~` is the home directory; a shell expands it at the start of words only."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(os.path.expanduser(value), param, ctx)
