"""Runs a function in a forked process, with its time limited and its peak of memory watched."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

CPU_SECONDS = 10
WALL_SECONDS = 600  # of a busy machine, where a reader waits for ever
_STARTED = 66  # status where a process was started
_WATCHED = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn"}


@dataclass(frozen=True)
class Outcome:
    """What became of a function in a process of its own.

    Attributes:
        kind: returned, raised, started (a process), or died.
        error: Name of the exception's class, or of the signal.
        message: What the exception says.
        peak: Bytes of memory above those of a process that does nothing.
    """

    kind: str
    error: str = ""
    message: str = ""
    peak: int = 0


def outcome(function: Callable[[], object]) -> Outcome:
    """Return what becomes of `function` in a fork of this process, which may have one thread."""
    told, peak = _forked(function)
    floor = _forked(lambda: None)[1] if _FLOOR[0] is None else _FLOOR[0]
    _FLOOR[0] = floor
    return Outcome(**told, peak=max(0, peak - floor))


_FLOOR: list[int | None] = [None]


def _forked(function: Callable[[], object]) -> tuple[dict[str, str], int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _answer(function, writing)
    os.close(writing)
    with open(reading, "rb") as stream:
        text = stream.read()
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        told = {"kind": "died", "error": signal.Signals(os.WTERMSIG(status)).name}
    elif os.WEXITSTATUS(status) == _STARTED:
        told = {"kind": "started"}
    else:
        told = json.loads(text)
    return told, usage.ru_maxrss * 1024


def _answer(function: Callable[[], object], writing: int) -> None:
    """Run the function and say through a pipe what it did; never returns."""
    for timer, number in ((signal.ITIMER_PROF, CPU_SECONDS), (signal.ITIMER_REAL, WALL_SECONDS)):
        signal.setitimer(timer, number)  # the signals end a process, inside of C code too
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.addaudithook(lambda event, _: os._exit(_STARTED) if event in _WATCHED else None)
    told = {"kind": "returned"}
    try:
        function()
    except BaseException as error:  # whatever it is, is what the test is about
        told = {"kind": "raised", "error": type(error).__name__, "message": str(error)}
    os.write(writing, json.dumps(told).encode()[:60_000])
    os._exit(0)
