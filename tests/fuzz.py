"""Mutates a valid file of every kind and reads it: `python -m tests.fuzz --seconds=N --files=N`.

Ends with status 1 where a file was executed, died, took much memory, or ended in an exception that
is not ours; such files are kept in --keep.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch

from tests import forking, readers

BATCH = 50  # files in one process
_INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]


class Case(NamedTuple):
    name: str
    reader: str
    data: bytes


def mutated(data: bytes, rng: np.random.RandomState) -> bytes:
    """Return bytes with a few of them changed, moved, left out, or repeated."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        if not out:
            break
        place = int(rng.randint(len(out)))
        length = int(min(len(out) - place, rng.choice([1, 1, 2, 4, 8, 64])))
        how = rng.randint(6)
        if how == 0:
            out[place] ^= 1 << rng.randint(8)
        elif how == 1:
            out[place : place + length] = bytes([rng.choice(_INTERESTING)]) * length
        elif how == 2:
            out[place : place + length] = rng.bytes(length)
        elif how == 3:
            del out[place : place + length]
        elif how == 4:
            out[place:place] = out[place : place + length]
        else:
            source = int(rng.randint(len(out)))
            out[place : place + length] = out[source : source + length]
    return bytes(out[: rng.randint(len(out) + 1)] if rng.rand() < 0.05 else out)


def is_fine(found: forking.Outcome, reader: str, data: bytes) -> bool:
    if found.peak > readers.most_bytes(reader, data):
        return False
    return found.kind == "returned" or (found.kind == "raised" and found.error in readers.OURS)


def write(folder: Path, number: int, case: Case) -> Path:
    (place := folder / str(number)).mkdir()
    return readers.path_for(place / "of-its-own", case.reader, case.data)


def read_all(folder: Path, cases: list[Case]) -> None:
    """Read files one after the other; what is not ours is raised."""
    for number, case in enumerate(cases):
        try:
            readers.READERS[case.reader](write(folder, number, case))
        except Exception as error:
            if type(error).__name__ not in readers.OURS:
                raise


def troubles(folder: Path, cases: list[Case]) -> Iterator[tuple[Case, forking.Outcome]]:
    """Yield what is not fine: all files in one process, and only then each in its own."""
    least = min(readers.most_bytes(case.reader, b"") for case in cases)
    together = forking.outcome(lambda: read_all(folder / "together", cases))
    if together.kind == "returned" and together.peak <= least:
        return
    for number, case in enumerate(cases):
        path = write(folder / "alone", number, case)
        found = forking.outcome(lambda p=path, c=case: readers.READERS[c.reader](p))
        if not is_fine(found, case.reader, case.data):
            yield case, found


@click.command()
@click.option("--seconds", type=float, default=600, show_default=True, help="Stop after so long.")
@click.option("--files", type=int, default=10_000, show_default=True, help="Stop after so many.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--reader", help="One of them.  [default: all in turn]")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for files that fail.")
def main(seconds: float, files: int, seed: int, reader: str | None, keep: Path | None) -> None:
    """Read mutated files, in processes of their own."""
    torch.set_num_threads(1)
    rng, done, bad = np.random.RandomState(seed), 0, 0
    with tempfile.TemporaryDirectory() as place:
        (first := Path(place) / "valid").mkdir()
        valid = [v for v in readers.valid(first).items() if reader in (None, v[1][0])]
        end = time.monotonic() + seconds
        while done < files and time.monotonic() < end:
            numbers = range(done, min(files, done + BATCH))
            chosen = [valid[number % len(valid)] for number in numbers]
            cases = [Case(name, kind, mutated(data, rng)) for name, (kind, data) in chosen]
            for part in ("together", "alone"):
                (Path(place) / str(done) / part).mkdir(parents=True)
            for case, found in troubles(Path(place) / str(done), cases):
                bad += 1
                click.echo(f"{case.name}: {found}")
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{bad}-{case.name.replace(' ', '-')}").write_bytes(case.data)
            shutil.rmtree(Path(place) / str(done))
            done += len(cases)
    click.echo(f"{done} files, {bad} other exceptions")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
