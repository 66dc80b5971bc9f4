"""What a run tells: the status line, log.txt, stats.jsonl, TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stylegan2_fewshot import distributed, stats
from stylegan2_fewshot.files import append_json, naming, write_text


class RunLog:
    """Writes to a run directory, on rank 0 alone; other ranks' calls do nothing.

    Args:
        run_dir: The run directory.
        cur_nimg: Images shown so far: what a run that died wrote after them is dropped.
        measured: Whether the metrics at that moment are complete; otherwise they are dropped, too.
        say: Prints a line.
    """

    def __init__(
        self,
        run_dir: Path,
        cur_nimg: int = 0,
        *,
        measured: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        self._dir, self._active, self._say = run_dir, distributed.rank() == 0, say
        self._board: Any = None
        if self._active:
            metrics = [*run_dir.glob("metric-*.jsonl")]
            for path in (run_dir / "log.txt", run_dir / "stats.jsonl", *metrics):
                _refuse_link(path)
            _forget_after(run_dir / "stats.jsonl", cur_nimg)
            for path in metrics:
                _forget_after(path, cur_nimg if measured else cur_nimg - 1)
            self._board = _tensorboard(run_dir, cur_nimg)

    def say(self, text: str) -> None:
        """Print a line and append it to log.txt."""
        if self._active:
            self._say(text)
            path = self._dir / "log.txt"
            with naming(path), path.open("a") as stream:
                stream.write(text + "\n")

    def options(self, options: Mapping[str, Any]) -> None:
        """Show the options of the run in TensorBoard."""
        if self._board is not None:
            text = "\n".join(f"    {line}" for line in json.dumps(options, indent=2).splitlines())
            self._board.add_text("options", text)

    def picture(self, name: str, picture: Image.Image, cur_nimg: int) -> None:
        """Show a picture in TensorBoard."""
        if self._board is not None:
            pixels = np.asarray(picture.convert("RGB"))
            self._board.add_image(name, pixels, global_step=cur_nimg, dataformats="HWC")

    def record(self, moments: Mapping[str, stats.Moments], cur_nimg: int) -> None:
        """Append a tick's statistics to stats.jsonl and TensorBoard."""
        if not self._active:
            return
        entry = {name: vars(value) for name, value in moments.items()}
        append_json(
            self._dir / "stats.jsonl", {**entry, "nimg": cur_nimg, "timestamp": time.time()}
        )
        self._plot({name: value.mean for name, value in moments.items()}, cur_nimg)

    def metric(self, result: Mapping[str, Any], cur_nimg: int) -> None:
        """Append a metric's result to metric-NAME.jsonl and TensorBoard."""
        if not self._active:
            return
        append_json(self._dir / f"metric-{result['metric']}.jsonl", {**result, "nimg": cur_nimg})
        values = {f"Metrics/{name}": value for name, value in result["results"].items()}
        self._plot(values, cur_nimg)

    def _plot(self, values: Mapping[str, float], cur_nimg: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, global_step=cur_nimg)
            self._board.flush()


def not_finite(moments: Mapping[str, stats.Moments]) -> str | None:
    """Return what is wrong with the first loss or score that is not a number, or infinite."""
    for name, found in moments.items():
        if name.startswith("Loss/") and not math.isfinite(found.mean):
            return f"{name} is {found.mean}"
    return None


def status_line(
    moments: Mapping[str, stats.Moments],
    *,
    tick: int,
    cur_nimg: int,
    left_sec: float,
    shown: Mapping[str, str] | None = None,
) -> str:
    """Return one line on the state of training; times and memory come from the statistics.

    Args:
        moments: Statistics of the tick by name.
        tick: Number of the tick.
        cur_nimg: Images shown so far.
        left_sec: Seconds until the end.
        shown: Further statistics to show, by label.
    """
    spent = {name: moments[name].mean for name in moments if name.startswith(("Timing", "Res"))}
    parts = [
        times(
            tick,
            cur_nimg,
            spent["Timing/total_sec"],
            left_sec,
            spent["Timing/sec_per_kimg"],
            spent["Resources/peak_gb"],
        ),
        f"maintenance {spent['Timing/maintenance_sec']:<5.1f}",
    ]
    labels = {
        "real": "Loss/scores/real",
        "fake": "Loss/scores/fake",
        "sign": "Loss/signs/real",
        **(shown or {}),
    }
    parts += [f"{label} {moments[key].mean:.3f}" for label, key in labels.items() if key in moments]
    return "  ".join(parts)


def times(
    tick: int, cur_nimg: int, sec: float, left_sec: float, sec_per_kimg: float, peak_gb: float
) -> str:
    """Return the beginning of a status line: how far training is, and how long it takes."""
    parts = [
        f"tick {tick:<4d} kimg {cur_nimg / 1000:<7.1f}",
        f"time {duration(sec):<11s}",
        f"left {duration(left_sec):<11s}",
        f"sec/kimg {sec_per_kimg:<7.2f}",
        f"mem {peak_gb:.2f} GiB",
    ]
    return "  ".join(parts)


def about_metrics(each: float, once: float, left_sec: float) -> str:
    """Return what metrics take, and the time that is left with them."""
    first = f", and {duration(once)} once" if once >= 1 else ""
    return f"Metrics   {duration(each)} at each snapshot{first}: left {duration(left_sec)}"


def duration(seconds: float) -> str:
    """Return a time span as `1d 02h 03m`, `2h 03m 04s`, `3m 04s` or `4s`."""
    total = round(seconds)
    days, hours, minutes, rest = total // 86400, total // 3600 % 24, total // 60 % 60, total % 60
    if days:
        return f"{days}d {hours:02d}h {minutes:02d}m"
    if hours:
        return f"{hours}h {minutes:02d}m {rest:02d}s"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def _refuse_link(path: Path) -> None:
    """Refuse to add lines to what only points to a file; a run directory may be a stranger's."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(f"{path}: not a plain file, so nothing is written to it; remove it")


def _forget_after(path: Path, cur_nimg: int) -> None:
    """Drop the lines that a run wrote after the checkpoint that it resumes from."""
    if not path.exists():
        return
    lines = path.read_text(errors="replace").splitlines()
    kept = [line for line in lines if _nimg_of(line) <= cur_nimg]
    write_text(path, "".join(line + "\n" for line in kept))


def _nimg_of(line: str) -> float:
    try:
        return float(json.loads(line)["nimg"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # half a line
        return float("inf")


def _tensorboard(run_dir: Path, cur_nimg: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(run_dir, purge_step=cur_nimg + 1 if cur_nimg else None)
