"""What a run has taken and will take: ticks, seconds per kimg, the time that is left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from stylegan2_fewshot import stats


def tick(options: Mapping[str, Any], cur_nimg: int) -> int:
    """Return the tick that an image belongs to: a function of the images alone, so that an
    interrupted run saves where the uninterrupted one would have."""
    return int(cur_nimg // (options["kimg_per_tick"] * 1000))


def snapshots_left(options: Mapping[str, Any], cur_nimg: int) -> int:
    """Return how many snapshots follow until the end of training, the last one included."""
    every: int = options["snapshot_ticks"]
    total = int(options["total_kimg"] * 1000)
    if cur_nimg >= total:
        return 0
    regular = tick(options, total - 1) // every - tick(options, cur_nimg) // every
    return max(regular, 0) + 1


class Clock:
    """Measures training and the maintenance between, and says how long the rest will take.

    Args:
        options: Options of the run.
        cur_nimg: Images shown so far.
    """

    def __init__(self, options: Mapping[str, Any], cur_nimg: int) -> None:
        self._options = options
        self._began = self._resumed = self._paused = time.time()
        self._nimg, self._maintenance, self._snapshot_sec = cur_nimg, 0.0, 0.0
        self.sec_per_kimg = 0.0

    def pause(self, cur_nimg: int) -> None:
        """Stop measuring training; maintenance begins."""
        self._paused = time.time()
        trained = self._paused - self._resumed
        self.sec_per_kimg = trained / max(cur_nimg - self._nimg, 1) * 1000

    def resume(self, cur_nimg: int, *, saved: bool = False) -> None:
        """Resume measuring training.

        Args:
            cur_nimg: Images shown so far.
            saved: Whether a snapshot was part of the maintenance.
        """
        self._resumed, self._nimg = time.time(), cur_nimg
        self._maintenance = self._resumed - self._paused
        if saved:
            self._snapshot_sec = self._maintenance

    def expect(self, sec: float) -> None:
        """Add to what a snapshot takes, before one has been timed."""
        self._snapshot_sec += sec

    def report(self, peak_gb: float) -> None:
        """Add times and memory to the statistics."""
        stats.report("Timing/sec_per_kimg", self.sec_per_kimg)
        stats.report("Timing/total_sec", self.elapsed())
        stats.report("Timing/maintenance_sec", self._maintenance)
        stats.report("Resources/peak_gb", peak_gb)

    def elapsed(self) -> float:
        """Return the seconds since this process began to train."""
        return max(self._paused, self._resumed) - self._began

    def left(self, cur_nimg: int, sec_per_kimg: float | None = None) -> float:
        """Return the seconds until the end, snapshots and their metrics included.

        Args:
            cur_nimg: Images shown so far.
            sec_per_kimg: What training takes, where no tick has been measured.
        """
        total_kimg: float = self._options["total_kimg"]
        kimg = max(total_kimg - cur_nimg / 1000, 0)
        per_kimg = self.sec_per_kimg if sec_per_kimg is None else sec_per_kimg
        return kimg * per_kimg + self._snapshot_sec * snapshots_left(self._options, cur_nimg)
