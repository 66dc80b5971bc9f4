"""The list of commands, and what is true of every one of them."""

from __future__ import annotations

import importlib
import inspect
import os
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


class _Watch:
    """Says what is set when PyTorch is about to be loaded, and ends the process."""

    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)


@pytest.mark.parametrize("module", ["train", "generate", "tools.fisher"])
@pytest.mark.parametrize(
    ("given", "policy"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, "None")],
)
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(module, given, policy):
    code = "import os, sys\n" + inspect.getsource(_Watch)
    code += f"sys.meta_path.insert(0, _Watch())\nimport {module}, torch"
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOM.parent,
        env=environment | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [policy]
