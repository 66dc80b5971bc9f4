"""Who may import whom: arrows point one way, and there are no circles."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "stylegan2_fewshot"
ROOMS = {  # room -> what of ours it may import, besides itself
    "stylegan2_fewshot": set(),
    "metrics": {"stylegan2_fewshot"},
    "training": {"stylegan2_fewshot", "metrics"},
    "tools": {"stylegan2_fewshot", "metrics", "training"},
    "patches": {"stylegan2_fewshot"},
}
THE_COMMAND = ROOT / "metrics" / "__main__.py"  # reads networks and data sets, so training too
ALLOWED = {"stylegan2_fewshot", "torch", "numpy", "click", "tqdm", *sys.stdlib_module_names}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def name_of(path):
    """Return a file's module name, relative to the repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path):
    """Yield the dotted names that a file imports, anywhere in it, type checking apart."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{stem}.{alias.name}"
                yield full if full in MODULES else stem


def edges():
    """Return for each of our modules those that it imports."""
    return {
        name: {found for found in imports(path) if found in MODULES and found != name}
        for name, path in MODULES.items()
    }


def circle(graph):
    """Return the nodes of a circle in a graph, or an empty list."""
    state, trail = {}, []

    def visit(node):
        state[node] = 1
        trail.append(node)
        for other in sorted(graph[node]):
            if state.get(other) == 1:
                return [*trail[trail.index(other) :], other]
            if other not in state and (found := visit(other)):
                return found
        trail.pop()
        state[node] = 2
        return []

    for node in sorted(graph):
        if node not in state and (found := visit(node)):
            return found
    return []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(ROOT).parts[0]
    found = {name.partition(".")[0] for name in imports(path)}
    ours = found & {*ROOMS, "train", "generate", "benchmarks", "examples", "tests"}
    allowed = ROOMS[room] | {room} | ({"training"} if path == THE_COMMAND else set())
    assert ours <= allowed
    if room == "stylegan2_fewshot":
        assert found <= ALLOWED


def test_no_circle_between_files():
    assert circle(edges()) == []


def test_no_circle_between_folders():
    graph = {}
    for name, targets in edges().items():
        if MODULES[name] == THE_COMMAND:
            continue
        folder = name_of(MODULES[name].parent / "__init__.py")
        others = {name_of(MODULES[t].parent / "__init__.py") for t in targets}
        graph.setdefault(folder, set()).update(others - {folder})
    # A package's __init__ may gather what lies in its folders.
    for folder, others in graph.items():
        others -= {other for other in others if other.startswith(f"{folder}.")}
    assert circle({key: {o for o in value if o in graph} for key, value in graph.items()}) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_library_works_beside_a_foreign_training_package(tmp_path):
    for name in ("training", "metrics", "train"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('theirs')")
    names = [name for name in MODULES if name.startswith("stylegan2_fewshot")]
    code = f"import sys, importlib; sys.path[:0] = {[str(tmp_path), str(ROOT)]}\nfor n in {names}:"
    code += " importlib.import_module(n)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_every_method_is_in_the_one_import_list():
    tree = ast.parse((LIBRARY / "methods" / "__init__.py").read_text())
    listed = next(
        [alias.name for alias in node.names]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.module
    )
    registering = [
        (p.parent if p.stem == "__init__" else p).stem
        for p in FILES
        if p.is_relative_to(LIBRARY / "methods") and "\n@register(" in p.read_text()
    ]
    assert listed == sorted(listed) and listed == registering
