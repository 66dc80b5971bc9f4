"""What all commands of this room share: how one is made, and paths on its command line."""

from __future__ import annotations

import functools

import click

from stylegan2_fewshot.options import Command, UserPath

__all__ = ["UserPath", "command"]

# Decorates `main`: a ValueError or OSError ends in one line and exit status 2.
command = functools.partial(click.command, cls=Command, context_settings={"max_content_width": 100})
