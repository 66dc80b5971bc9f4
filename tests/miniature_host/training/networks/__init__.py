"""The project's own networks, under the name that the host has for its own."""

from pathlib import Path

_path = Path(__file__).parents[4] / "training" / "networks"
__path__ = [str(_path)]
exec(compile((_path / "__init__.py").read_text(), _path / "__init__.py", "exec"))
