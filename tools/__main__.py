"""Entry of `python -m tools`: what commands there are."""

from __future__ import annotations

import ast
from pathlib import Path

import click

from .command import command


@command()
def main() -> None:
    """List the commands of this room, one line each."""
    titles = {path.stem: title(path) for path in sorted(Path(__file__).parent.glob("[!_]*.py"))}
    rows = [(f"python -m tools.{name}", text) for name, text in titles.items() if text]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"{name:{width}}  {text}")


def title(path: Path) -> str | None:
    """Return the first line of the docstring of a file's `main`, or None: it is not a command.

    The file is not imported: what one command needs may not be installed.
    """
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return None


if __name__ == "__main__":
    main()
