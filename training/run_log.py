"""What a run tells: the status line, log.txt, stats.jsonl, TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stylegan2_fewshot import distributed, stats
from stylegan2_fewshot.files import write_text


class RunLog:
    """Writes to a run directory, on rank 0 alone; other ranks' calls do nothing.

    Args:
        run_dir: The run directory.
        cur_nimg: Images shown so far: what a run that died wrote after them is dropped.
    """

    def __init__(self, run_dir: Path, cur_nimg: int = 0) -> None:
        self._dir, self._active = run_dir, distributed.rank() == 0
        self._board: Any = None
        if self._active:
            for path in [run_dir / "stats.jsonl", *run_dir.glob("metric-*.jsonl")]:
                _forget_after(path, cur_nimg)
            self._board = _tensorboard(run_dir, cur_nimg)

    def say(self, text: str) -> None:
        """Print a line and append it to log.txt."""
        if self._active:
            print(text, flush=True)
            with open(self._dir / "log.txt", "a") as stream:
                stream.write(text + "\n")

    def record(self, moments: Mapping[str, stats.Moments], cur_nimg: int) -> None:
        """Append a tick's statistics to stats.jsonl and TensorBoard."""
        if not self._active:
            return
        entry = {name: vars(value) for name, value in moments.items()}
        _append(self._dir / "stats.jsonl", {**entry, "nimg": cur_nimg, "timestamp": time.time()})
        self._plot({name: value.mean for name, value in moments.items()}, cur_nimg)

    def metric(self, result: Mapping[str, Any], cur_nimg: int) -> None:
        """Append a metric's result to metric-NAME.jsonl and TensorBoard."""
        if not self._active:
            return
        _append(self._dir / f"metric-{result['metric']}.jsonl", {**result, "nimg": cur_nimg})
        values = {f"Metrics/{name}": value for name, value in result["results"].items()}
        self._plot(values, cur_nimg)

    def _plot(self, values: Mapping[str, float], cur_nimg: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, global_step=cur_nimg // 1000)
            self._board.flush()


def status_line(
    moments: Mapping[str, stats.Moments],
    *,
    tick: int,
    kimg: float,
    total_kimg: float,
    shown: Mapping[str, str] | None = None,
) -> str:
    """Return one line on the state of training; times and memory come from the statistics.

    Args:
        moments: Statistics of the tick by name.
        tick: Number of the tick.
        kimg: Thousands of images shown so far.
        total_kimg: How many there will have been.
        shown: Further statistics to show, by label.
    """
    sec_per_kimg = moments["Timing/sec_per_kimg"].mean
    left = max(total_kimg - kimg, 0) * sec_per_kimg
    parts = [
        f"tick {tick:<4d} kimg {kimg:<7.1f}",
        f"time {duration(moments['Timing/total_sec'].mean):<11s}",
        f"left {duration(left):<11s}",
        f"sec/kimg {sec_per_kimg:<7.2f}",
        f"maintenance {moments['Timing/maintenance_sec'].mean:<5.1f}",
        f"mem {moments['Resources/peak_gb'].mean:.2f} GiB",
    ]
    labels = {
        "real": "Loss/scores/real",
        "fake": "Loss/scores/fake",
        "sign": "Loss/signs/real",
        **(shown or {}),
    }
    parts += [f"{label} {moments[key].mean:.3f}" for label, key in labels.items() if key in moments]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Return a time span as `1d 02h 03m`, `2h 03m 04s`, `3m 04s` or `4s`."""
    total = round(seconds)
    days, hours, minutes, rest = total // 86400, total // 3600 % 24, total // 60 % 60, total % 60
    if days:
        return f"{days}d {hours:02d}h {minutes:02d}m"
    if hours:
        return f"{hours}h {minutes:02d}m {rest:02d}s"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    with open(path, "a") as stream:
        stream.write(json.dumps(entry) + "\n")


def _forget_after(path: Path, cur_nimg: int) -> None:
    """Drop the lines that a run wrote after the checkpoint it goes on from."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _nimg_of(line) <= cur_nimg]
    write_text(path, "".join(line + "\n" for line in kept))


def _nimg_of(line: str) -> float:
    try:
        return float(json.loads(line)["nimg"])
    except (ValueError, KeyError, TypeError):  # a line that was being written when the run died
        return float("inf")


def _tensorboard(run_dir: Path, cur_nimg: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(run_dir, purge_step=cur_nimg // 1000 + 1 if cur_nimg else None)
