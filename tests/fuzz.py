"""Mutates a valid file of every kind and reads it: `python -m tests.fuzz --seconds=N --files=N`.

Ends with status 1 where a file was executed, died, took much memory, or ended in an exception that
is not ours; such files are kept in --keep.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import numpy as np
import torch

from tests import forking, readers

_INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]


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


def is_fine(found: forking.Outcome, reader: str, size: int) -> bool:
    if found.peak > readers.most_bytes(reader, size):
        return False
    if found.kind == "returned":
        return True
    return found.kind == "raised" and found.error in readers.OURS


@click.command()
@click.option("--seconds", type=float, default=60, show_default=True, help="Stop after so long.")
@click.option("--files", type=int, default=10_000, show_default=True, help="Stop after so many.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--reader", help="One of them.  [default: all in turn]")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for files that fail.")
def main(seconds: float, files: int, seed: int, reader: str | None, keep: Path | None) -> None:
    """Read mutated files, each in a process of its own."""
    torch.set_num_threads(1)
    rng, counts, bad = np.random.RandomState(seed), Counter(), 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "valid").mkdir()
        valid = readers.valid(folder / "valid")
        chosen = {n: v for n, v in valid.items() if reader in (None, v[0])}
        end, names = time.monotonic() + seconds, list(chosen)
        for number in range(files):
            if time.monotonic() > end:
                break
            name = names[number % len(names)]
            kind, data = chosen[name]
            data = mutated(data, rng)
            path = readers.path_for(folder / "one", kind, data)
            found = forking.outcome(lambda p=path, k=kind: readers.READERS[k](p))
            counts[found.kind] += 1
            if not is_fine(found, kind, len(data)):
                bad += 1
                click.echo(f"{number} {name}: {found}")
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{number}-{name.replace(' ', '-')}").write_bytes(data)
            shutil.rmtree(folder / "one")
    click.echo(f"{sum(counts.values())} files: {dict(counts)}, {bad} other exceptions")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
