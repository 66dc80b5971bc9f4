"""Methods of third parties, which live outside of this repository."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .plugin import Plugin, register, registry


def load_external(place: str) -> type[Plugin]:
    """Import and register a third party's plugin.

    Args:
        place: `package.module:Class`, or `path/to/file.py:Class`.

    Raises:
        ValueError: There is no such module or class, or it is not a plugin.
    """
    module, _, attribute = place.rpartition(":")
    try:
        if not (module and attribute):
            raise ValueError("names no class")
        cls = getattr(_import(module), attribute, None)
        if cls is None:
            raise ValueError(f"there is no {attribute} in it")
    except (ImportError, AttributeError, ValueError, OSError) as error:
        raise ValueError(
            f"--plugin={place}: {error}; write package.module:Class or path/to/file.py:Class"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Plugin)):
        raise ValueError(f"--plugin={place}: not a subclass of stylegan2_fewshot.Plugin")
    if cls in registry().values():
        return cls
    # An inherited name is that of another plugin.
    return register(vars(cls).get("name") or cls.__name__.lower())(cls)


def _import(place: str) -> ModuleType:
    """Import a module by name, or a file by path, each once in a process."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).expanduser().resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ImportError("no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
