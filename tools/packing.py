"""The files that `tools.prepare` leaves: ZIPs, contact sheet and record."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from stylegan2_fewshot.files import printable, replacing
from training import labels

from .journal import Entry, Journal
from .photos import in_mode

if TYPE_CHECKING:
    from .prepare import Plan

_TIME = (1980, 1, 1, 0, 0, 0)  # the same pictures give the same file
_CELL, _CAPTION, _GAP = 128, 14, 6  # pixels of a contact sheet
_MOST_SHOWN = 100
_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


class Targets:
    """Where things are written.

    Args:
        out: The data set.
        has_heldout: Whether there is a second one.
    """

    def __init__(self, out: Path, *, has_heldout: bool) -> None:
        self.out = out
        self.heldout = out.with_name(f"{out.stem}-heldout.zip") if has_heldout else None
        self.sheet = out.with_suffix(".contact.png")
        self.record = out.with_suffix(".json")
        self.journal = out.with_name(f".{out.name}.unfinished")

    def refuse_existing(self) -> None:
        """Raise ValueError where a file would be replaced."""
        for path in filter(None, (self.out, self.heldout, self.sheet, self.record)):
            if path.exists():
                raise ValueError(f"{path} exists; give another name, or --overwrite")


def write(
    targets: Targets,
    plan: Plan,
    journal: Journal,
    record: dict[str, Any],
    left: Sequence[str],
) -> None:
    """Write everything, the data set last; each file is complete or absent.

    Args:
        targets: Where.
        plan: Which pictures go where.
        journal: Has the pictures.
        record: What the record begins with.
        left: Names of files that are not photos.
    """
    training, heldout = plan.part(aside=False), plan.part(aside=True)
    with replacing(targets.sheet) as stream:
        contact_sheet(_spread(training), journal).save(stream, "png")
    with replacing(targets.record) as stream:
        for line in _record(targets, plan, journal, record, left):
            stream.write(line.encode(errors="backslashreplace"))
    if targets.heldout:
        _write_zip(targets.heldout, heldout, plan, journal)
    _write_zip(targets.out, training, plan, journal)


def class_of(name: str, top: str) -> str:
    """Return the first folder that a photo lies in below `top`, or an empty text."""
    return name.removeprefix(top).rpartition("/")[0].partition("/")[0]


def name_of(number: int) -> str:
    """Return the name of a picture in the ZIP, as the original's tool gives it."""
    return f"{number // 1000:05d}/img{number:08d}.png"


def contact_sheet(entries: Sequence[Entry], journal: Journal) -> Image.Image:
    """Draw pictures in rows, with the names of their photos."""
    columns = min(len(entries), max(4, round(len(entries) ** 0.5)))
    rows = -(-len(entries) // columns)
    width, height = _CELL + _GAP, _CELL + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "#eeeeee")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(_FONT, 10)
    for i, entry in enumerate(entries):
        left, top = _GAP + i % columns * width, _GAP + i // columns * height
        with Image.open(io.BytesIO(journal.png(entry.name)[0]), formats=["PNG"]) as picture:
            shown = picture.convert("RGBA").resize((_CELL, _CELL))
        sheet.paste(shown, (left, top), shown)
        text = printable(entry.name.rpartition("/")[2])[:_CELL]  # a ZIP's names may be endless
        while font.getlength(text) > _CELL:
            text = text.removesuffix("...")[:-1] + "..."
        draw.text((left, top + _CELL + 1), text, fill="black", font=font)
    return sheet


def _spread(entries: Sequence[Entry]) -> list[Entry]:
    step = max(len(entries) / _MOST_SHOWN, 1)
    return [entries[int(i * step)] for i in range(min(len(entries), _MOST_SHOWN))]


def _write_zip(path: Path, entries: Sequence[Entry], plan: Plan, journal: Journal) -> None:
    with replacing(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for number, entry in enumerate(entries):
            png, mode = journal.png(entry.name)
            data = png if mode == plan.mode else in_mode(png, plan.mode)
            archive.writestr(zipfile.ZipInfo(name_of(number), _TIME), data)
        if plan.classes:
            top = labels.common_folder(entry.name for entry in plan.entries)
            numbers = {name: i for i, name in enumerate(plan.classes)}
            rows = [
                [name_of(number), numbers[class_of(entry.name, top)]]
                for number, entry in enumerate(entries)
            ]
            table = json.dumps({"labels": rows})
            archive.writestr(zipfile.ZipInfo(labels.FILE, _TIME), table)


def _record(
    targets: Targets,
    plan: Plan,
    journal: Journal,
    record: dict[str, Any],
    left: Sequence[str],
) -> Iterator[str]:
    """Yield the text of the record: JSON, written one picture at a time."""
    yield json.dumps(record, ensure_ascii=False)[:-1]
    yield from _listed("images", _images(targets, plan))
    names = [entry.name for entry in plan.entries]
    gone = (
        {"from": names[i], "why": f"near duplicate of {names[j]}", "distance": distance}
        for i, (j, distance) in plan.gone.items()
    )
    broken = ({"from": name, "why": trouble} for name, trouble in journal.troubles())
    yield from _listed("dropped", [*gone, *broken])
    yield from _listed("other_files", left)
    yield "}\n"


def _images(targets: Targets, plan: Plan) -> Iterator[dict[str, Any]]:
    for path, aside in ((targets.out, False), (targets.heldout, True)):
        for number, entry in enumerate(plan.part(aside=aside)):
            yield {
                "archive": path.name if path else None,
                "file": name_of(number),
                "from": entry.name,
                "size": [entry.width, entry.height],
                "done": entry.notes,
            }


def _listed(key: str, items: Iterable[Any]) -> Iterator[str]:
    yield f',\n"{key}": ['
    for i, item in enumerate(items):
        yield (",\n  " if i else "\n  ") + json.dumps(item, ensure_ascii=False)
    yield "]"
