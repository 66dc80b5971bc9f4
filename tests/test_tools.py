"""The list of commands, and what is true of every one of them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import click
import pytest

import tools
from stylegan2_fewshot import options
from tools import command
from tools.__main__ import title

ROOM = Path(tools.__file__).parent
NAMES = [path.stem for path in sorted(ROOM.glob("[!_]*.py")) if title(path) is not None]


def test_the_list_has_a_line_for_every_command():
    run = [sys.executable, "-m", "tools"]
    lines = subprocess.run(run, cwd=ROOM.parent, capture_output=True, text=True, check=True).stdout
    named = [line.split()[2].removeprefix("tools.") for line in lines.splitlines()]
    assert named == NAMES
    assert all(len(line) <= 125 for line in lines.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_a_command_says_what_it_does_and_ends_mistakes_in_one_line(name):
    main = importlib.import_module(f"tools.{name}").main
    assert isinstance(main, (command.Command, options.Command))
    assert main.get_short_help_str(120)
    assert all(param.help for param in main.params if isinstance(param, click.Option))
