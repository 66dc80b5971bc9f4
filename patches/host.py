"""A checkout of the original or of a relative: found, imported, and told apart."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import runtime

_FILES = ("train.py", "training/training_loop.py", "torch_utils/misc.py", "dnnlib/util.py")


@dataclass(frozen=True)
class Host:
    """An imported checkout.

    Attributes:
        path: Its folder.
        train: Its `train` module.
        loop: Its `training.training_loop` module.
    """

    path: Path
    train: Any
    loop: Any

    def module(self, name: str) -> Any:
        """Import one of the checkout's modules."""
        return importlib.import_module(name)

    @property
    def name(self) -> str:
        """stylegan2-ada-pytorch, DeceiveD or stylegan3: what differs between them matters here."""
        if (self.path / "training" / "networks_stylegan2.py").is_file():
            return "stylegan3"
        known = inspect.signature(self.loop.training_loop).parameters
        return "DeceiveD" if "with_dataaug" in known else "stylegan2-ada-pytorch"


def open_checkout(path: Path) -> Host:
    """Put a checkout first on the import path, so that `training` and `train` are its own.

    Raises:
        ValueError: It is not such a checkout, or another `training` has been imported already.
    """
    path = path.resolve()
    if missing := [name for name in _FILES if not (path / name).is_file()]:
        raise ValueError(
            f"{path}: no checkout of stylegan2-ada-pytorch, it lacks {missing[0]}; "
            "give the folder that holds train.py"
        )
    if str(path) not in sys.path[:1]:
        sys.path.insert(0, str(path))
    # No __pycache__ in the checkout, also not from the processes that load images.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    runtime.provide_parse_version()
    try:
        train = importlib.import_module("train")
    except ImportError as error:
        raise ValueError(f"{path}: {error}; install what the checkout needs") from error
    if Path(train.__file__ or "").resolve() != path / "train.py":
        raise ValueError(f"{path}: another train.py, {train.__file__}, has been imported before")
    return Host(path, train, importlib.import_module("training.training_loop"))
