"""Files of `torch.save`, old and new, read without torch's own reader.

That one trusts the sizes that a file claims, and knows more names than a state dict needs.
"""

from __future__ import annotations

import io
import os
import zipfile
from typing import Any

import torch

from ..records import (
    COMMON,
    DTYPES,
    MAGIC,
    MAX_DIMENSIONS,
    Kind,
    Storage,
    described,
    sequence,
    storages,
)
from ..unpickler import Dict, Function, Names, PickleError, unpickle


class _StateDict(Dict):
    """An OrderedDict without its attributes, the versions of modules.

    Or the command line that rosinality's training keeps, of which nothing is used.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


def _size(numbers: object) -> object:
    if not (isinstance(numbers, (list, tuple)) and len(numbers) <= MAX_DIMENSIONS):
        raise PickleError("a tensor has a shape that is none")
    return tuple(numbers)


_NAMES: Names = {
    **COMMON,
    **{("torch", name): Kind(dtype) for name, dtype in DTYPES.items()},
    ("collections", "OrderedDict"): _StateDict,
    ("argparse", "Namespace"): _StateDict,
    ("torch", "Size"): Function(_size),
}


def is_one(data: bytes) -> bool:
    """Return whether `torch.save` wrote this, today's way or that before torch 1.6."""
    return data[:4] == b"PK\x03\x04" or data.startswith(MAGIC)


def read(data: bytes) -> object:
    """Return what was saved; a `TensorView` stands for each tensor.

    Raises:
        PickleError: The file is damaged, claims more than it holds, or asks for a name that no
            state dict needs.
    """
    try:
        if data[:2] != b"PK":
            return sequence(data, _NAMES)
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            main, folder = _index(file, len(data))
            return unpickle(main, _NAMES, storages(lambda key: file.read(f"{folder}data/{key}")))
    except (PickleError, MemoryError):
        raise
    except Exception as error:  # zipfile and pickletools raise a dozen kinds for foreign bytes
        raise PickleError(f"is a damaged file of torch.save ({type(error).__name__})") from None


def check(path: str | os.PathLike[str]) -> None:
    """Raise unless an archive holds tensors and plain values, of honest sizes, and nothing else.

    For files that torch's own reader loads afterwards: with `weights_only` it still makes what a
    file names as large as the file wants (bytearray), and expands what is compressed.

    Raises:
        PickleError: The message says what is wrong; other exceptions where it is damaged.
    """
    with zipfile.ZipFile(path) as file:
        main, folder = _index(file, os.stat(path).st_size)

        def measured(pid: Any) -> Storage:
            kind, key, number = described(pid)
            if number * kind.dtype.itemsize > file.getinfo(f"{folder}data/{key}").file_size:
                raise PickleError("a storage claims to be larger than its data")
            return Storage(torch.empty(number, dtype=kind.dtype, device="meta"))

        unpickle(main, _NAMES, measured)


def _index(file: zipfile.ZipFile, size: int) -> tuple[bytes, str]:
    """Return the pickle in an archive that names the storages, and the folder that it is in."""
    for entry in file.infolist():
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise PickleError("refused a ZIP archive that is compressed, which torch's are not")
    if sum(entry.file_size for entry in file.infolist()) > size:
        raise PickleError("refused a ZIP archive that expands to more than its own size")
    found = [name for name in file.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(found) != 1:
        raise PickleError("is a ZIP archive, but not one of networks")
    folder = found[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in file.namelist() and file.read(f"{folder}byteorder") != b"little":
        raise PickleError("has its numbers in big-endian order")
    return file.read(found[0]), folder
