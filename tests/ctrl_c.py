"""A method that presses Ctrl-C, for tests of what is left then."""

from __future__ import annotations

import os
import signal
from typing import ClassVar

from stylegan2_fewshot import Plugin


class Stop(Plugin):
    """Press Ctrl-C.

    Args:
        during: The hook in which that happens, once.
    """

    neutral: ClassVar = {"during": ""}

    def __init__(self, *, during: str = "") -> None:
        super().__init__()
        self.during = during

    def _press(self, hook):
        if self.during == hook:
            self.during = ""
            os.kill(os.getpid(), signal.SIGINT)

    def setup(self, run):
        self._press("setup")

    def observe(self, step):
        self._press("observe")

    def snapshot(self, path):
        self._press("snapshot")
