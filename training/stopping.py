"""Why training stops before its end: somebody asks, or numbers are not finite."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from stylegan2_fewshot.files import legible

Handler = Callable[[int, FrameType | None], Any] | int | None  # what a signal does


class Interrupted(BaseException):
    """Training was asked to stop, and all that it needs to resume is saved.

    Attributes:
        together: Whether all ranks leave at the same moment and can wait for one another.
    """

    def __init__(self, reason: str, *, together: bool = True) -> None:
        super().__init__(reason)
        self.together = together


class Diverged(Exception):
    """A loss or a weight is not finite; what was saved before stays, and nothing is added."""


class Requests:
    """Requests to stop: SIGINT and SIGTERM while it is entered, and a closed standard output.

    The second signal takes its usual course at once.

    Attributes:
        asked: Whether there is a request.
    """

    def __init__(self) -> None:
        self.asked = False
        self._reason: str | None = None  # to stop at once, rather than where the loop looks
        self._previous: dict[signal.Signals, Handler] = {}
        self._owner = os.getpid()

    def __enter__(self) -> Requests:
        with contextlib.suppress(ValueError):  # signals reach the main thread alone
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._previous[kind] = signal.signal(kind, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self, reason: str) -> Iterator[None]:
        """Raise `Interrupted` the moment that a request comes: there is nothing to save here.

        Args:
            reason: What the exception says.
        """
        self._reason = reason
        try:
            if self.asked:
                raise Interrupted(reason, together=False)
            yield
        finally:
            self._reason = None

    def say(self, text: str) -> None:
        """Print a line; a reader that has gone away, as `| head`, asks to stop."""
        try:
            print(legible(text), flush=True)
        except BrokenPipeError:
            silence_output()
            self.asked = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a process that loads images, and ends with the loop
            return
        for kind in self._previous:
            signal.signal(kind, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # print could be what was interrupted
            os.write(1, b"\nSaving, then leaving; once more to leave at once.\n")
        self.asked = True
        if self._reason is not None:
            raise Interrupted(self._reason, together=False)


def silence_output() -> None:
    """Let standard output lead nowhere, so that flushing it at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
