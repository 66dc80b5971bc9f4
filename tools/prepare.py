"""A folder of photos becomes a data set, a contact sheet, and a record of where each comes from."""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import shlex
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path, PurePosixPath
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from stylegan2_fewshot.files import printable
from training import labels, problems
from training.archive import Source, open_source
from training.dataset import SUFFIXES
from training.problems import PREPARABLE

from . import duplicates, packing, photos
from .command import FILE, UserPath, command
from .journal import Entry, Journal
from .photos import Picture, Wanted

_SLICE = 64  # photos between two commits
_LINE_EVERY_SEC = 15
_ALIKE = 24  # of 255: colours of near duplicates, shrunk to 16 x 16 pixels, differ by less


@dataclass
class Plan:
    """Which pictures go where.

    Attributes:
        entries: What became pictures, by name of the photo.
        mode: Of all pictures in the end.
        classes: Names of the classes, in order; empty without labels.
        gone: Positions of near duplicates that are dropped: which they are like, and the distance.
        near: How many near duplicates there are, dropped or not.
        aside: Whether each entry belongs to the held-out pictures, bool `[N]`.
    """

    entries: list[Entry]
    mode: str
    classes: list[str]
    gone: dict[int, tuple[int, int]] = field(default_factory=dict)
    near: dict[int, tuple[int, int]] = field(default_factory=dict)
    aside: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def part(self, *, aside: bool) -> list[Entry]:
        """Return the entries of the data set, or of the held-out one."""
        return [
            entry
            for i, entry in enumerate(self.entries)
            if i not in self.gone and bool(self.aside[i]) == aside
        ]


@command()
@click.argument("source", metavar="PHOTOS", type=UserPath(exists=True, path_type=Path))
@click.argument("out", metavar="OUT.zip", type=FILE)
@click.option("--size", type=int, default=256, show_default=True, help="Side in pixels: 2^n.")
@click.option(
    "--fit",
    type=click.Choice(photos.FITS),
    default="cover",
    show_default=True,
    help="Cut the longer side off, put white around, or distort.",
)
@click.option(
    "--labels",
    "labelling",
    type=click.Choice(["none", "folders"]),
    default="none",
    show_default=True,
    help="folders: each folder is a class.",
)
@click.option("--dedupe/--no-dedupe", help="Drop near duplicates.  [default: keep, and say so]")
@click.option(
    "--distance",
    type=click.IntRange(0, duplicates.MOST_DISTANCE),
    default=4,
    show_default=True,
    help="Bits of 64 in which the hashes of near duplicates may differ.",
)
@click.option("--heldout", type=click.IntRange(min=1), help="Set N pictures aside, to measure.")
@click.option(
    "--rgb/--keep-mode", default=True, help="All RGB, or grey and alpha kept.  [default: rgb]"
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@click.option("--overwrite", is_flag=True, help="Replace OUT.zip where it exists.")
def main(source: Path, out: Path, size: int, fit: str, rgb: bool, **rest: Any) -> None:
    """Turn a folder (or ZIP) of photos into a data set: OUT.zip, OUT.contact.png, OUT.json.

    JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, and HEIC where pi-heif is installed. Photos are turned
    upright, fitted to a square and converted to sRGB; what cannot be read, and everything else
    that is left out, is named. The same command resumes after an interruption.
    """
    if out.suffix != ".zip":
        raise ValueError(f"OUT.zip={out}: its name must end with .zip")
    if not problems.LEAST_SIDE <= size <= problems.MOST_SIDE or size & (size - 1):
        raise ValueError(f"--size={size}: must be a power of two from 4 to {problems.MOST_SIDE}")
    targets = packing.Targets(out, has_heldout=rest["heldout"] is not None)
    if not rest["overwrite"]:
        targets.refuse_existing()
    files, wanted = open_source(source), Wanted(size, fit, keep_mode=not rgb)
    numbers = [i for i, name in enumerate(files.names) if _is_photo(name)]
    if not numbers:
        others = problems.left_out(files.names)
        found = f"no photos in it, but {others}" if others else "there is nothing in it"
        raise ValueError(f"{source}: {found}; name a folder or ZIP of photos")
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"source": str(source.resolve()), **asdict(wanted), "formats": photos.formats()}
    with contextlib.closing(Journal(targets.journal, settings)) as journal:
        _make_pictures(files, numbers, wanted, journal, rest["workers"] or os.cpu_count() or 1)
        plan = _plan(journal, source, rest)
        left = [n for n in files.names if not _is_photo(n)]
        said = list(_summary(source, plan, journal.troubles(), left, rest["dedupe"]))
        options = {**asdict(wanted), **{k: rest[k] for k in ("labelling", "dedupe", "heldout")}}
        record = {"source": str(source), "options": options, "classes": plan.classes}
        packing.write(targets, plan, journal, record, left)
    targets.journal.unlink()
    click.echo("\n".join([*said, *_conclusion(targets, plan, wanted, rest["heldout"])]))


def _make_pictures(
    files: Source, numbers: Sequence[int], wanted: Wanted, journal: Journal, workers: int
) -> None:
    """Make the pictures that the journal lacks.

    Raises:
        SystemExit: Interrupted; status 130.
    """
    journal.forget_others(files.names[i] for i in numbers)
    bar = tqdm(total=len(numbers), unit="photo", disable=None, leave=False)
    told, done = time.monotonic(), 0
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with bar, _workers(min(workers, -(-len(numbers) // _SLICE)), files, wanted) as work:
            for start in range(0, len(numbers), _SLICE):
                part = numbers[start : start + _SLICE]
                new = [i for i in part if journal.lacks(files.names[i], files.stamp(i))]
                outcomes = list(work(new))
                names, stamps = [files.names[i] for i in new], map(files.stamp, new)
                journal.add(zip(names, stamps, outcomes, strict=True))
                bar.update(len(part))
                done += len(part)
                if bar.disable and time.monotonic() - told > _LINE_EVERY_SEC:
                    told = time.monotonic()
                    click.echo(f"{done} of {len(numbers)} photos", err=True)
    except KeyboardInterrupt:
        click.echo(f"Interrupted after {done} of {len(numbers)} photos; the same command resumes")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _workers(
    number: int, files: Source, wanted: Wanted
) -> Iterator[Callable[[list[int]], Iterable[Picture | str]]]:
    """Give a function that makes the pictures of photos, by number, in several processes."""
    if number == 1:
        yield lambda numbers: (_outcome(files, wanted, i) for i in numbers)
        return
    pool = ProcessPoolExecutor(number, initializer=_begin, initargs=(files, wanted))
    try:
        yield lambda numbers: pool.map(_work, numbers, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(files: Source, wanted: Wanted) -> None:
    """Set a worker up; it ends with the process that started it."""
    global _job
    _job = (files, wanted)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


_job: tuple[Source, Wanted]


def _work(number: int) -> Picture | str:
    return _outcome(*_job, number)


def _outcome(files: Source, wanted: Wanted, number: int) -> Picture | str:
    name = files.names[number]
    try:
        return photos.picture(files.read(number), name, wanted)
    except ValueError as error:
        if _suffix(name) in photos.HEIC and "HEIF" not in photos.formats():
            return "needs pi-heif: pip install pi-heif"
        return str(error).removeprefix(f"{printable(name)}: ").rpartition("; ")[0]


def _plan(journal: Journal, source: Path, options: dict[str, Any]) -> Plan:
    entries = list(journal.entries())
    if not entries:
        name, trouble = journal.troubles()[0]
        raise ValueError(f"{source}: no photo can be read; {printable(name)}: {trouble}")
    modes = journal.modes()
    mode = next(mode for mode in ("RGBA", "RGB", "L") if mode in modes)
    classes = _classes(entries) if options["labelling"] == "folders" else []
    hashes, quality = journal.hashes()
    are_alike = _closer_look(entries, journal)
    pairs = [p for p in duplicates.pairs(hashes, options["distance"]) if are_alike(p[0], p[1])]
    near = duplicates.dropped(pairs, quality)
    plan = Plan(entries, mode, classes, near if options["dedupe"] else {}, near)
    plan.aside = np.zeros(len(entries), bool)
    if number := options["heldout"]:
        stay = [i for i in range(len(entries)) if i not in plan.gone]
        if number >= len(stay):
            raise ValueError(
                f"--heldout={number}: must be less than the number of pictures, {len(stay)}"
            )
        group = duplicates.groups(pairs, len(entries))
        plan.aside[stay] = duplicates.split(group[stay], number)
    return plan


def _closer_look(entries: Sequence[Entry], journal: Journal) -> Callable[[int, int], bool]:
    """Return whether two pictures are about equal in colour, too: drawings often share a shape."""

    @functools.lru_cache(4096)
    def small(i: int) -> np.ndarray:
        return photos.thumbnail(journal.png(entries[i].name)[0])

    return lambda i, j: bool(np.abs(small(i) - small(j)).max() < _ALIKE)


def _classes(entries: Sequence[Entry]) -> list[str]:
    """Return the names of the folders that photos lie in, below those that all lie in."""
    names = {packing.class_of(entry.name, top) for top in [_top(entries)] for entry in entries}
    if "" in names:
        stray = next(e.name for e in entries if not packing.class_of(e.name, _top(entries)))
        raise ValueError(
            f"--labels=folders: {printable(stray)} and others are in no folder of their own; "
            "put each class into one"
        )
    return sorted(names)


def _top(entries: Sequence[Entry]) -> str:
    return labels.common_folder(entry.name for entry in entries)


def _summary(
    source: Path,
    plan: Plan,
    troubles: Sequence[tuple[str, str]],
    left: Sequence[str],
    dedupe: bool,
) -> Iterator[str]:
    """Yield what was done, one line per kind with the names of a few."""
    others = f"; other files left out: {_suffixes(left)}" if left else ""
    yield f"{source}: {len(plan.entries)} of {len(plan.entries) + len(troubles)} photos{others}"
    noted: dict[str, problems.Group] = {}
    for entry in plan.entries:
        for note in entry.notes:
            noted.setdefault(note, problems.Group()).add(entry.name)
    for note in sorted(noted):
        yield f"  {note}: {noted[note].count} ({noted[note]})"
    if troubles:
        broken = problems.Group()
        for name, trouble in troubles:
            broken.add(f"{name}: {trouble}")
        yield f"  unreadable, left out: {broken.count} ({broken})"
    if plan.near:
        alike = problems.Group()
        for i, (j, distance) in plan.near.items():
            alike.add(
                f"{plan.entries[i].name} is like {plan.entries[j].name} (distance {distance})"
            )
        fate = "dropped" if dedupe else "kept; --dedupe drops them"
        yield f"  near duplicates, {fate}: {alike.count} ({alike})"
    if plan.classes:
        counts = Counter(packing.class_of(e.name, _top(plan.entries)) for e in plan.entries)
        listed = itertools.islice(enumerate(plan.classes), 20)
        yield "  classes: " + ", ".join(f"{i} {printable(c)} ({counts[c]})" for i, c in listed)


def _suffixes(names: Sequence[str]) -> str:
    group = problems.Group()
    for name in names:
        group.add(name)
    return f"{problems.left_out(names)} ({group})"


def _conclusion(
    targets: packing.Targets, plan: Plan, wanted: Wanted, heldout: int | None
) -> list[str]:
    size, number = wanted.size, len(plan.part(aside=False))
    pictures = "1 picture" if number == 1 else f"{number} pictures"
    lines = [f"{targets.out}: {pictures} of {size}x{size}, {plan.mode}"]
    data = f"--data={shlex.quote(str(targets.out))}" + (" --cond=1" if plan.classes else "")
    if targets.heldout:
        aside = len(plan.part(aside=True))
        why = "" if aside == heldout else f", not {heldout}: near duplicates stay together"
        lines.append(f"{targets.heldout}: {aside} pictures set aside{why}")
        data += f" --metricdata={shlex.quote(str(targets.heldout))}"
    lines.append(f"{targets.sheet}: look at it; {targets.record}: where each picture comes from")
    return [*lines, f"train on it: python train.py --cfg=fewshot --outdir=runs {data}"]


def _is_photo(name: str) -> bool:
    return _suffix(name) in SUFFIXES | PREPARABLE


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


if __name__ == "__main__":
    main()
