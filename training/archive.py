"""The files of a folder or a ZIP, by number, and never more of them than they declare."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from stylegan2_fewshot.files import printable, refusing

MOST_BYTES = 2**28  # of one file
CHECKED_BYTES = 2**28  # of all files together: up to here, every byte is looked at beforehand
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENTRY = np.dtype([("place", "i8"), ("packed", "i8"), ("size", "i8"), ("crc", "u4"), ("how", "u2")])
_ENCRYPTED = 0xFFFF  # in place of a method
_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, lengths of name and extra field


class Folder:
    """Files below a directory, named by their path relative to it; hidden ones are passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names = sorted(self._walk())

    def _walk(self) -> Iterator[str]:
        for place, folders, files in os.walk(self._path):
            folders[:] = [name for name in folders if not is_hidden(name)]
            base = Path(place).relative_to(self._path).as_posix()
            prefix = "" if base == "." else f"{base}/"
            visible = (name for name in files if not is_hidden(name))
            yield from (prefix + name for name in visible if os.path.isfile(f"{place}/{name}"))

    def size(self, number: int) -> int:
        return os.stat(self._path / self.names[number]).st_size

    def part(self, number: int, start: int, stop: int) -> bytes:
        """Return the bytes `[start, stop)` of a file."""
        with open(self._path / self.names[number], "rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)

    def read(self, number: int) -> bytes:
        """Return a file.

        Raises:
            ValueError: It is larger than `MOST_BYTES`.
        """
        name, size = self.names[number], self.size(number)
        _refuse_size(name, size)
        return self.part(number, 0, size)

    def stamps(self, numbers: Sequence[int]) -> Iterator[str]:
        """Yield what tells whether each file changed: size and CRC, of much data size and time."""
        sizes = [self.size(number) for number in numbers]
        small = sum(sizes) <= CHECKED_BYTES
        for number, size in zip(numbers, sizes, strict=True):
            if small:
                yield f"{size} {zlib.crc32(self.read(number)):08x}"
            else:
                yield self.stamp(number)

    def stamp(self, number: int) -> str:
        """Return size and time of a file."""
        found = os.stat(self._path / self.names[number])
        return f"{found.st_size} {found.st_mtime_ns}"


class Zip:
    """Stored and deflated files of a ZIP; every process reads through a handle of its own.

    What is kept of the directory takes a tenth of what `zipfile` keeps.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: IO[bytes] | None = None
        self._pid = 0
        with (
            refusing(path, "not a complete ZIP", "pack it anew"),
            zipfile.ZipFile(path) as archive,
        ):
            infos = [info for info in archive.infolist() if not info.is_dir()]
            infos = [info for info in infos if not any(map(is_hidden, info.filename.split("/")))]
            infos.sort(key=lambda info: info.filename)
            self.names = [info.filename for info in infos]
            self._entries = np.array([_entry(info) for info in infos], _ENTRY)
        if sum(info.compress_size for info in infos) > path.stat().st_size:
            raise ValueError(f"{path}: its files share bytes, to expand to any size; pack it anew")
        for one, other in zip(self.names, self.names[1:], strict=False):
            if one == other:
                raise ValueError(f"{path}: holds {printable(one)} twice; pack it anew")

    def size(self, number: int) -> int:
        return int(self._entries[number]["size"])

    def part(self, number: int, start: int, stop: int) -> bytes:
        """Return the bytes `[start, stop)` of a file; of a stored one, only these are read."""
        entry = self._entries[number]
        if entry["how"] != zipfile.ZIP_STORED:
            return self.read(number)[start:stop]
        stop = min(stop, int(entry["size"]))
        return self._at(self._start(number) + start, max(stop - start, 0))

    def read(self, number: int) -> bytes:
        """Return a file.

        Raises:
            ValueError: It is damaged, packed in another way, or larger than `MOST_BYTES`.
        """
        name, entry = self.names[number], self._entries[number]
        _refuse_size(name, max(int(entry["size"]), int(entry["packed"])))
        if entry["how"] not in _METHODS:
            how = "encrypted" if entry["how"] == _ENCRYPTED else "compressed in a rare way"
            raise ValueError(f"{printable(name)}: {how} in {self._path}; pack it anew")
        with refusing(name, f"damaged in {self._path}", "pack it anew"):
            data = self._at(self._start(number), int(entry["packed"]))
            if entry["how"] == zipfile.ZIP_DEFLATED:
                # One byte more than is declared shows that there is more.
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, int(entry["size"]) + 1)
            if len(data) != entry["size"]:
                raise ValueError(f"its size is not the {entry['size']} bytes of the directory")
            if zlib.crc32(data) != entry["crc"]:
                raise ValueError("its checksum is not that of the directory")
        return data

    def stamps(self, numbers: Sequence[int]) -> Iterator[str]:
        """Return what tells whether each file changed, without reading it."""
        return map(self.stamp, numbers)

    def stamp(self, number: int) -> str:
        """Return size and CRC of a file."""
        entry = self._entries[number]
        return f"{entry['size']} {entry['crc']:08x}"

    def _start(self, number: int) -> int:
        place = int(self._entries[number]["place"])
        signature, name, extra = _HEADER.unpack(self._at(place, _HEADER.size))
        if signature != b"PK\3\4":
            raise ValueError("no file where the directory says")
        return place + _HEADER.size + int(name) + int(extra)

    def _at(self, place: int, length: int) -> bytes:
        # A handle that crossed a fork shares its position in the file with the parent's.
        if self._handle is None or self._pid != os.getpid():
            self._handle = open(self._path, "rb", buffering=0)  # noqa: SIM115
            self._pid = os.getpid()
        self._handle.seek(place)
        return self._handle.read(length)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_pid": 0}


Source = Folder | Zip


def open_source(path: Path) -> Source:
    """Return the files of a folder or a ZIP.

    Raises:
        ValueError: It is neither, or damaged.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise ValueError(f"{path}: no such folder or ZIP")
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: neither a folder nor a complete ZIP; name one of images, or pack it anew"
        )
    return Zip(path)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is one that people do not see, as `.DS_Store`."""
    return name.startswith((".", "__MACOSX"))


def _entry(info: zipfile.ZipInfo) -> tuple[int, int, int, int, int]:
    how = _ENCRYPTED if info.flag_bits & 1 else info.compress_type
    return info.header_offset, info.compress_size, info.file_size, info.CRC, how


def _refuse_size(name: str, size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(
            f"{printable(name)}: {size >> 20} MiB, more than the {MOST_BYTES >> 20} MiB that are "
            "read of a file; resize it"
        )
