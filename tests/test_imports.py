"""The one import rule: everything may import stylegan2_fewshot, it imports nothing of ours."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stylegan2_fewshot

LIBRARY = Path(stylegan2_fewshot.__file__).parent
FILES = sorted(LIBRARY.rglob("*.py"))
ALLOWED = {"stylegan2_fewshot", "torch", "numpy", "click", "tqdm", *sys.stdlib_module_names}
LAZILY = {"training", "metrics", "matplotlib"}  # inside the function of a command


def imported(node):
    """Return the top-level names that a node imports; a relative import is the library's own."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {"stylegan2_fewshot"} if node.level else {(node.module or "").partition(".")[0]}
    return set()


def is_command(node):
    return isinstance(node, ast.FunctionDef) and any(
        "command" in ast.unparse(decorator).partition("(")[0] for decorator in node.decorator_list
    )


def violations(source):
    """Return what a source file of the library imports and must not."""
    tree = ast.parse(source)
    lazily = {id(inner) for node in ast.walk(tree) if is_command(node) for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        found |= imported(node) - ALLOWED - (LAZILY if id(node) in lazily else set())
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_imports_nothing_of_ours(path):
    assert violations(path.read_text()) == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import training", {"training"}),
        ("from training.networks import Generator", {"training"}),
        ("def f():\n    from metrics import x", {"metrics"}),
        ("def f():\n    import training", {"training"}),
        ("@click.command()\ndef f():\n    from training import pickles", set()),
        ("@click.command()\ndef f():\n    import patches", {"patches"}),
        ("from . import training", set()),
        ("import torch.nn, os, scipy", {"scipy"}),
    ],
)
def test_the_walk_finds_what_it_should(source, expected):
    assert violations(source) == expected


def test_the_library_works_beside_a_foreign_training_package(tmp_path):
    for name in ("training", "metrics", "train"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('theirs')")
    modules = [".".join(p.relative_to(LIBRARY.parent).with_suffix("").parts) for p in FILES]
    names = [name.removesuffix(".__init__") for name in modules if "__main__" not in name]
    path = [str(tmp_path), str(LIBRARY.parent)]
    code = f"import sys, importlib; sys.path[:0] = {path}\nfor n in {names}:"
    code += " importlib.import_module(n)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_every_plugin_file_is_in_the_one_import_list():
    lines = (LIBRARY / "methods" / "__init__.py").read_text()
    listed = next(
        [alias.name for alias in node.names]
        for node in ast.walk(ast.parse(lines))
        if isinstance(node, ast.ImportFrom) and not node.module
    )
    registering = [
        (p.parent if p.stem == "__init__" else p).stem
        for p in FILES
        if "\n@register(" in p.read_text()
    ]
    assert listed == sorted(listed) and listed == registering
