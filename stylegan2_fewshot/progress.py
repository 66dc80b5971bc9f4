"""How far a long part is: a bar on a terminal, and plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

FIRST_SEC, EVERY_SEC = 3.0, 30.0


def progress(
    items: Iterable[Any] | None = None,
    desc: str = "",
    *,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
    show: bool = True,
) -> Any:
    """Return what shows how far `items` are, used as tqdm: iterated over, or `update(n)`.

    Args:
        items: What is iterated over, if anything.
        desc: What the long part does.
        total: How many there are; by default the length of `items`.
        initial: How many are done already.
        unit: What is counted; B for bytes.
        show: Whether to show anything.
    """
    if not show or sys.stderr.isatty():
        return tqdm(
            items,
            desc,
            total=total,
            initial=initial,
            unit=unit,
            unit_scale=unit == "B",
            leave=False,
            disable=not show,
        )
    return Lines(items, desc, total=total, initial=initial)


class Lines:
    """Prints a line after three seconds, and another every half minute."""

    def __init__(
        self, items: Iterable[Any] | None, desc: str, *, total: int | None, initial: int
    ) -> None:
        self._items, self._desc = items, desc
        self._total = len(items) if total is None and hasattr(items, "__len__") else total  # type: ignore[arg-type]
        self._initial = self.n = initial
        self._start = time.monotonic()
        self._due = self._start + FIRST_SEC

    def __iter__(self) -> Iterator[Any]:
        for item in self._items or ():
            yield item
            self.update()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Count `n` more."""
        self.n += n
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + EVERY_SEC
        text = f"{self._desc}: {self.n}"
        if self._total:
            left = (now - self._start) / max(self.n - self._initial, 1) * (self._total - self.n)
            text += f" of {self._total}, about {max(left, 0):.0f} s left"
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End; nothing is left behind that would have to be wiped."""
