"""Reading .npz files of plain arrays, which anybody may have written.

Nothing is executed, and memory is bounded: by three times the file's size, and what is compressed
may claim to be `MOST_COMPRESSED` at most.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_COMPRESSED = 1 << 26  # bytes of all compressed arrays together
_MOST_DIMENSIONS = 8
_ENCRYPTED = 1


def read(
    path: str | os.PathLike[str], *, most_compressed: int = MOST_COMPRESSED
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name: numbers in the machine's byte order, or text.

    Args:
        path: The file.
        most_compressed: To how many bytes what is compressed may expand.

    Raises:
        ValueError: It claims more than it holds, or holds something else; other exceptions where
            it is damaged: call this within `files.refusing`.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        _refuse_sizes(entries, Path(path).stat().st_size, most_compressed)
        found = {}
        for entry in entries:
            with archive.open(entry) as stream:  # an explicit size, or else it may expand to any
                found[entry.filename.removesuffix(".npy")] = _array(stream.read(entry.file_size))
        return found


def read_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Return the array of an .npy file, as `read` does."""
    return _array(Path(path).read_bytes())


def _refuse_sizes(entries: list[zipfile.ZipInfo], size: int, most_compressed: int) -> None:
    """Raise unless the members are stored, each within its own bytes, or compressed and small."""
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("two arrays have the same name")
    for entry in entries:
        if entry.flag_bits & _ENCRYPTED:
            raise ValueError("it is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("its arrays are compressed in another way than NumPy does it")
    stored = [entry for entry in entries if entry.compress_type == zipfile.ZIP_STORED]
    if any(entry.file_size != entry.compress_size for entry in stored):
        raise ValueError("an array claims another size than it has")
    if sum(entry.file_size for entry in stored) > size:
        raise ValueError("its arrays claim to be larger than the file")
    if sum(e.file_size for e in entries) - sum(e.file_size for e in stored) > most_compressed:
        raise ValueError(
            f"its compressed arrays expand to more than {most_compressed >> 20} MiB; "
            "store them uncompressed, with numpy.savez"
        )


def _array(data: bytes) -> NDArray[Any]:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        parse = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = parse(stream)
    except Exception:  # numpy's advice is to have the file executed
        raise ValueError("an array has a damaged header") from None
    if dtype.kind not in "biufU" or dtype.itemsize == 0:
        raise ValueError("an array holds something else than numbers or text")
    count = 1
    for size in shape[: _MOST_DIMENSIONS + 1]:
        count *= size
    start = stream.tell()
    if len(shape) > _MOST_DIMENSIONS or count * dtype.itemsize != len(data) - start:
        raise ValueError("an array claims another size than it has")
    array = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))  # a copy that can be written to
