"""How the commands of this room, and generate.py, are made: mistakes end in one line.

Nothing here needs PyTorch, so that `--help` is quick.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

_OF_PLUGINS = f"{__name__}.plugins"


class UserPath(click.Path):
    """A path in which `~` is the home directory; a shell expands it at the start of words only."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(os.path.expanduser(value), param, ctx)


FILE = UserPath(dir_okay=False, path_type=Path)
FOLDER = UserPath(file_okay=False, path_type=Path)


class Command(click.Command):
    """A command whose user's mistakes, and the disk's, end in one line and exit status 2.

    One that draws images and has `--plugin` has the options for drawing of the methods named, too.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _one_line():
            # Those that only read networks have it too, with a callback that loads the methods.
            draws = any("--plugin" in p.opts and p.callback is None for p in self.params)
            if draws and "--plugin" in str(args):
                from stylegan2_fewshot.options import drawing_of_external

                ctx.meta[_OF_PLUGINS] = drawing_of_external(args)
            return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *ctx.meta.get(_OF_PLUGINS, ())]

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line():
            return super().invoke(ctx)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except (click.UsageError, ValueError, OSError) as error:
        from stylegan2_fewshot.files import legible
        from stylegan2_fewshot.options import Mistake

        text = error.format_message() if isinstance(error, click.UsageError) else legible(error)
        raise Mistake(text) from error


command = functools.partial(click.command, cls=Command, context_settings={"max_content_width": 100})
