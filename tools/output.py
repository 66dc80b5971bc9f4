"""How commands write files: each complete or absent, counted, and kept where one is stopped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import click

T = TypeVar("T")
STOPPED = 130  # exit status after Ctrl-C, as of a program that does not catch it


def say(text: str) -> None:
    """Print a remark, which is none of the command's results."""
    click.echo(text, err=True)


def progress(items: Iterable[T], *, total: int, desc: str, unit: str = "image") -> Iterable[T]:
    """Show on a terminal how far a loop has come."""
    from tqdm import tqdm

    shown: Iterable[T] = tqdm(items, total=total, desc=desc, unit=unit, disable=None, leave=False)
    return shown


class Output:
    """Counts the files that a command writes, and says how many they were at the end.

    Used with `with`: Ctrl-C ends the command with what is there so far, and says so.

    Args:
        place: A folder, or the file that the command is asked for; others lie beside it.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.count = place, 0

    def picture(self, name: str, picture: Any) -> None:
        """Write a Pillow image as PNG into the place."""
        from training import grids

        grids.save_png(self.place / name, picture)
        self.count += 1

    @contextmanager
    def file(self, path: Path) -> Iterator[Any]:
        """Open a file that is there once it is whole."""
        from stylegan2_fewshot.files import replacing

        with replacing(path) as stream:
            yield stream
        self.count += 1

    def network(self, path: Path, nets: Any, source: str) -> None:
        """Write networks as a pickle, and beside it what methods keep beside their source."""
        from training import pickles

        pickles.save(path, **vars(nets))
        self.count += 1
        self.companions(path, source)

    def companions(self, path: Path, source: str) -> None:
        """Copy what methods keep beside a network, its source, to beside a path."""
        from training import generation

        self.count += len(generation.copy_companions(source, path))

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        files = f"{self.count} {'file' if self.count == 1 else 'files'}"
        place = self.place if self.count == 1 or self.place.is_dir() else self.place.parent
        if isinstance(error, KeyboardInterrupt):
            click.echo(f"stopped: wrote {files} to {place}", err=True)
            raise SystemExit(STOPPED) from None
        if error is None:
            click.echo(f"wrote {files} to {place}")
