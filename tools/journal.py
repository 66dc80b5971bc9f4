"""What `tools.prepare` has done so far, in a file that survives an interruption."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .photos import Picture

_TABLES = """
CREATE TABLE settings (text TEXT);
CREATE TABLE photos (name BLOB PRIMARY KEY, stamp TEXT, trouble TEXT, mode TEXT,
                     width INTEGER, height INTEGER, hash INTEGER, notes TEXT, png BLOB);
"""


class Entry(NamedTuple):
    """A photo that became a picture, without the picture.

    Attributes:
        name: The photo's.
        width: Of the photo, in pixels.
        height: Of the photo, in pixels.
        notes: What was done to it.
    """

    name: str
    width: int
    height: int
    notes: list[str]


class Journal:
    """Pictures made so far, by the name of their photo; a few at a time are in memory.

    Args:
        path: The file; one of other settings is begun anew.
        settings: What the pictures depend on, besides the photos.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        text = json.dumps(settings, sort_keys=True)
        self._base = sqlite3.connect(path)
        try:
            same = self._base.execute("SELECT text FROM settings").fetchone() == (text,)
        except sqlite3.DatabaseError:  # new, or of something else
            same = False
        if not same:
            self.close()
            path.unlink(missing_ok=True)
            self._base = sqlite3.connect(path)
            self._base.executescript(_TABLES)
            self._base.execute("INSERT INTO settings VALUES (?)", (text,))
            self._base.commit()

    def close(self) -> None:
        self._base.close()

    def lacks(self, name: str, stamp: str) -> bool:
        """Return whether a photo has not been looked at since it is as it is."""
        query = "SELECT stamp FROM photos WHERE name = ?"
        row = self._base.execute(query, (_key(name),)).fetchone()
        return bool(row != (stamp,))

    def add(self, outcomes: Iterable[tuple[str, str, Picture | str]]) -> None:
        """Keep names and stamps of photos with their pictures, or with why there is none."""
        for name, stamp, outcome in outcomes:
            if isinstance(outcome, str):
                row: tuple[Any, ...] = (outcome, None, None, None, None, None, None)
            else:
                png, mode, width, height, bits, notes = outcome
                signed = bits - (1 << 64) if bits >> 63 else bits  # SQLite has no uint64
                row = (None, mode, width, height, signed, "\n".join(notes), png)
            self._base.execute(
                "INSERT OR REPLACE INTO photos VALUES (?,?,?,?,?,?,?,?,?)",
                (_key(name), stamp, *row),
            )
        self._base.commit()

    def forget_others(self, names: Iterable[str]) -> None:
        """Drop photos that are not there any more."""
        self._base.execute("CREATE TEMP TABLE present (name BLOB PRIMARY KEY)")
        self._base.executemany("INSERT INTO present VALUES (?)", ((_key(name),) for name in names))
        self._base.execute("DELETE FROM photos WHERE name NOT IN (SELECT name FROM present)")
        self._base.execute("DROP TABLE present")
        self._base.commit()

    def troubles(self) -> list[tuple[str, str]]:
        """Return the photos without a picture, by name, and why."""
        query = "SELECT name, trouble FROM photos WHERE trouble IS NOT NULL ORDER BY name"
        return [(_name(key), trouble) for key, trouble in self._base.execute(query)]

    def modes(self) -> set[str]:
        """Return the modes of the pictures."""
        query = "SELECT DISTINCT mode FROM photos WHERE trouble IS NULL"
        return {mode for (mode,) in self._base.execute(query)}

    def entries(self) -> Iterator[Entry]:
        """Yield what became pictures, by name."""
        query = "SELECT name, width, height, notes FROM photos WHERE trouble IS NULL ORDER BY name"
        for key, width, height, notes in self._base.execute(query):
            yield Entry(_name(key), width, height, notes.split("\n") if notes else [])

    def hashes(self) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Return the hashes of the pictures, uint64 `[N]`, and what says which is better."""
        query = (
            "SELECT hash, width * height, CAST(stamp AS INTEGER) FROM photos "
            "WHERE trouble IS NULL ORDER BY name"
        )
        rows = self._base.execute(query).fetchall()  # a stamp begins with the bytes of the file
        hashes = np.array([bits for bits, _, _ in rows], np.int64).view(np.uint64)
        return hashes, [(pixels, size) for _, pixels, size in rows]

    def png(self, name: str) -> tuple[bytes, str]:
        """Return a picture and its mode."""
        query = "SELECT png, mode FROM photos WHERE name = ?"
        picture: tuple[bytes, str] = self._base.execute(query, (_key(name),)).fetchone()
        return picture


def _key(name: str) -> bytes:
    return name.encode(errors="surrogateescape")  # not every name of a file is text


def _name(key: bytes) -> str:
    return key.decode(errors="surrogateescape")
