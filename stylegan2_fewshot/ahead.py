"""What hooks make on the CPU for a pass, in such a way that a CUDA graph can replay the pass.

A replay repeats the device's work alone. So what is made on the CPU is made before it, in the order
in which Python asked for it, and goes into the very memory that the graph reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .watched import NotCapturable

Make = Callable[[int], Tensor]  # from the number of images shown so far

_recorder: Ahead | None = None
_is_making = False


class Ahead:
    """What one pass asks for, while `recording`: the same memory each time, in the same order."""

    def __init__(self) -> None:
        self._made: list[tuple[Make, Tensor]] = []
        self._asked, self._is_complete = 0, False

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Keep what is asked for inside; the second time, nothing is made or allocated."""
        global _recorder
        before, _recorder, self._asked = _recorder, self, 0
        try:
            yield
        finally:
            _recorder = before
        if self._is_complete and self._asked != len(self._made):
            raise NotCapturable("a pass asks for less to be made ahead of it than it did before")
        self._is_complete = True

    def renew(self, cur_nimg: int) -> None:
        """Make everything anew, into the memory that the pass reads.

        Args:
            cur_nimg: Real images shown to D before this iteration.

        Raises:
            ValueError: Something now has another shape.
        """
        for make, tensor in self._made:
            value = make(cur_nimg)
            if value.shape != tensor.shape:
                raise ValueError(
                    f"what is made ahead of a pass must keep its shape {list(tensor.shape)}, "
                    f"got {list(value.shape)}"
                )
            tensor.copy_(_pinned(value, tensor.device), non_blocking=True)

    def ask(self, make: Make, cur_nimg: int, device: torch.device) -> Tensor:
        """Return the tensor that is next in order; see `on_device`."""
        if not self._is_complete:
            self._made.append((make, _moved(make, cur_nimg, device)))
        elif self._asked == len(self._made):
            raise NotCapturable("a pass asks for more to be made ahead of it than it did before")
        self._asked += 1
        return self._made[self._asked - 1][1]


class HostCopy:
    """The value of a scalar on the CPU: the device is waited for only after a write to the scalar.

    No part of what a plugin remembers, as that follows from the scalar: to be looked at in what is
    made ahead alone.
    """

    __slots__ = ("_of",)  # attributes in a dict would be compared before every replay

    def __init__(self) -> None:
        self._of: tuple[Tensor | None, int, float] = None, 0, 0.0

    def __reduce__(self) -> tuple[type[HostCopy], tuple[()]]:
        return HostCopy, ()  # a copy of its owner has another scalar

    def __call__(self, scalar: Tensor) -> float:
        """Return the value; 1 on the meta device, where there is none."""
        tensor, version, value = self._of
        if tensor is not scalar or version != scalar._version:
            value = 1.0 if scalar.is_meta else float(scalar)
            self._of = scalar, scalar._version, value
        return value


def on_device(make: Make, cur_nimg: int, device: torch.device) -> Tensor:
    """Return what `make` makes on the CPU, on the device, which is not waited for."""
    if _recorder is not None:
        return _recorder.ask(make, cur_nimg, device)
    return _moved(make, cur_nimg, device)


def is_recorded() -> bool:
    """Return whether a pass is being recorded, which will be replayed with other values."""
    return _recorder is not None


def is_making() -> bool:
    """Return whether the CPU is at work ahead of a pass, which no graph sees."""
    return _is_making


def _moved(make: Make, cur_nimg: int, device: torch.device) -> Tensor:
    global _is_making
    before, _is_making = _is_making, True
    try:
        return _pinned(make(cur_nimg), device).to(device, non_blocking=True)
    finally:
        _is_making = before


def _pinned(value: Tensor, device: torch.device) -> Tensor:
    return value.pin_memory() if device.type == "cuda" else value
