"""What a run directory tells, read without its networks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Series = list[tuple[float, float]]  # kimg, value

OPTIONS, ENVIRONMENT = "training_options.json", "environment.json"
OWN = ("Loss", "Timing", "Resources")  # the loop's statistics; all others are plugins'


@dataclass(frozen=True)
class Run:
    """A run, as its directory has it.

    Attributes:
        path: The directory.
        options: What training_options.json says.
        environment: Command, versions and machine of the last start; empty if not recorded.
        stats: Means of a tick by name, over kimg.
        metrics: Results by name of the metric, in order of kimg.
        grids: Pictures of samples by kimg; 0 is before training.
        reals: The picture of training images, or None.
        finished: Whether training came to its end.
    """

    path: Path
    options: dict[str, Any]
    environment: dict[str, Any]
    stats: dict[str, Series]
    metrics: dict[str, list[dict[str, Any]]]
    grids: dict[float, Path]
    reals: Path | None
    finished: bool

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def kimg(self) -> float:
        """Training time so far, by the last tick or the last picture."""
        ends = [points[-1][0] for points in self.stats.values() if points]
        return max([*ends, *self.grids, 0.0])

    @property
    def signals(self) -> dict[str, Series]:
        """The statistics that plugins report."""
        return {k: v for k, v in self.stats.items() if k.partition("/")[0] not in OWN}


def read(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        ValueError: It is none.
    """
    options = _json(folder / OPTIONS)
    if not isinstance(options, dict):
        raise ValueError(f"{folder}: not a run directory (no readable {OPTIONS}); name one")
    reals = folder / "reals.png"
    return Run(
        path=folder.resolve(),
        options=options,
        environment=_json(folder / ENVIRONMENT) or {},
        stats=_stats(folder / "stats.jsonl"),
        metrics={
            path.stem.removeprefix("metric-"): found
            for path in sorted(folder.glob("metric-*.jsonl"))
            if (found := _results(path))
        },
        grids=_grids(folder),
        reals=reals if reals.is_file() else None,
        finished=(folder / "finished.json").is_file(),
    )


def _stats(path: Path) -> dict[str, Series]:
    series: dict[str, Series] = {}
    for line in _lines(path):
        for name, moments in line.items():
            if isinstance(moments, dict) and isinstance(moments.get("mean"), (int, float)):
                point = (line["nimg"] / 1000, float(moments["mean"]))
                series.setdefault(name, []).append(point)
    return series


def _results(path: Path) -> list[dict[str, Any]]:
    """Return results by kimg; of a snapshot that was measured twice the later one."""
    usable = (x for x in _lines(path) if x.get("results") and x.get("kimg") is not None)
    return [x for _, x in sorted({x["kimg"]: x for x in usable}.items())]


def _grids(folder: Path) -> dict[float, Path]:
    first = folder / "fakes_init.png"
    found = {0.0: first} if first.is_file() else {}
    for path in sorted(folder.glob("fakes*.png")):
        if match := re.fullmatch(r"fakes(\d+)(?:-(\d{3}))?\.png", path.name):
            found[float(match[1]) + int(match[2] or 0) / 1000] = path
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file that a training may be writing: half a line is none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return [x for x in found if "nimg" in x or "kimg" in x]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
