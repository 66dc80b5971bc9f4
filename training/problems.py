"""What keeps a folder of images from being a data set, all of it at once, and what to type."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from stylegan2_fewshot.files import printable

from .images import CHANNELS, Header

LEAST_SIDE, MOST_SIDE = 4, 4096
# What `tools.prepare` reads and training does not.
PREPARABLE = {".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".pgm", ".ppm", ".tif", ".tiff"}
_SHOWN = 3  # names per group
_SHOWN_KINDS = 5


@dataclass
class Group:
    """Files that are alike: how many, and the first few."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str, count: int = 1) -> None:
        self.count += count
        if len(self.names) < _SHOWN:
            self.names.append(printable(name))

    def __str__(self) -> str:
        more = f" and {self.count - len(self.names)} more" if self.count > len(self.names) else ""
        return ", ".join(self.names) + more


@dataclass
class Findings:
    """What a look at every image found, in memory that does not grow with their number.

    Attributes:
        kinds: Images by what their headers say.
        broken: Images that cannot be read, with the reason.
    """

    kinds: dict[Header, Group] = field(default_factory=dict)
    broken: Group = field(default_factory=Group)

    def add(self, name: str, header: Header) -> None:
        self.kinds.setdefault(header, Group()).add(name)

    def problems(self) -> list[str]:
        """Return one line per kind of problem; none if the images make a data set."""
        lines = [f"{self.broken.count} unreadable: {self.broken}"] if self.broken.count else []
        for mode in sorted({kind.mode for kind in self.kinds} - CHANNELS.keys()):
            group = self._merged(partial(_has_mode, mode))
            lines.append(f"{group.count} {mode}, not 8-bit grey, RGB or RGBA: {group}")
        if (group := self._merged(lambda kind: not _is_square(kind), sizes=True)).count:
            lines.append(f"{group.count} not square: {group}")
        odd = self._merged(lambda k: _is_square(k) and not _has_a_good_side(k), sizes=True)
        if odd.count:
            sides = f"{LEAST_SIDE}, 8, 16, ... {MOST_SIDE}"
            lines.append(f"{odd.count} with a side that is not one of {sides}: {odd}")
        return lines + self._mixtures()

    def _mixtures(self) -> list[str]:
        lines = []
        squares = [kind for kind in self.kinds if _is_square(kind)]
        sides = sorted({kind.width for kind in squares})
        sizes = {f"{side}x{side}": partial(_has_side, side) for side in sides}
        if len(sizes) > 1:
            lines.append(f"several sizes: {self._listed(sizes)}")
        modes = {
            mode: partial(_has_mode, mode)
            for mode in CHANNELS
            if any(kind.mode == mode for kind in self.kinds)
        }
        if len(modes) > 1:
            lines.append(f"several modes: {self._listed(modes)}")
        return lines

    def command(self, path: str) -> str:
        """Return the command that makes a data set of what is in `path`."""
        sides = sorted((min(kind.width, kind.height), g.count) for kind, g in self.kinds.items())
        half, median = sum(count for _, count in sides) / 2, 256
        for side, count in sides:
            half, median = half - count, side
            if half <= 0:
                break
        modes = {kind.mode for kind in self.kinds}
        keep = " --keep-mode" if modes in ({"L"}, {"RGBA"}) else ""
        return f"{prepare_command(path)} --size={_power_below(median)}{keep}"

    def _merged(self, belongs: Callable[[Header], bool], *, sizes: bool = False) -> Group:
        merged = Group()
        for kind, group in self.kinds.items():
            if belongs(kind):
                size = f" ({kind.width}x{kind.height})" if sizes else ""
                for name in group.names:
                    merged.add(name + size, 0)
                merged.count += group.count
        return merged

    def _listed(self, described: Mapping[str, Callable[[Header], bool]]) -> str:
        groups = {text: self._merged(belongs) for text, belongs in described.items()}
        common = sorted(groups, key=lambda text: -groups[text].count)
        shown = [f"{groups[text].count} {text} ({groups[text]})" for text in common[:_SHOWN_KINDS]]
        rest = len(common) - _SHOWN_KINDS
        return "; ".join(shown) + (f"; {rest} more" if rest > 0 else "")


def prepare_command(path: str) -> str:
    """Return the command that makes a ZIP of the images in `path`, but for its options."""
    stem = Path(path).resolve().stem
    out = f"{stem}-prepared.zip" if path.endswith(".zip") else f"{stem}.zip"
    return f"python -m tools.prepare {shlex.quote(path)} {shlex.quote(out)}"


def left_out(names: Iterable[str]) -> str:
    """Return a list of suffixes of files that are not used, with counts, and who reads them."""
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    listed = ", ".join(f"{printable(suffix)} {suffixes[suffix]}" for suffix in sorted(suffixes))
    readable = sorted(suffixes.keys() & PREPARABLE)
    advice = f"; python -m tools.prepare reads {', '.join(readable)}" if readable else ""
    return listed + advice


def _power_below(side: int) -> int:
    return 1 << (max(LEAST_SIDE, min(side, 1024)).bit_length() - 1)


def _has_mode(mode: str, kind: Header) -> bool:
    return kind.mode == mode


def _has_side(side: int, kind: Header) -> bool:
    return kind.width == kind.height == side


def _is_square(kind: Header) -> bool:
    return kind.width == kind.height


def _has_a_good_side(kind: Header) -> bool:
    return LEAST_SIDE <= kind.width <= MOST_SIDE and not kind.width & (kind.width - 1)
