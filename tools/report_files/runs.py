"""What a run directory tells, read without its networks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metrics
from stylegan2_fewshot.files import json_lines, json_object
from training.run_dir import OPTIONS_FILE, stored_options

Series = list[tuple[float, float]]  # kimg, value

ENVIRONMENT = "environment.json"
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
    if (options := stored_options(folder)) is None:
        raise ValueError(f"{folder}: not a run directory (no readable {OPTIONS_FILE}); name one")
    reals = folder / "reals.png"
    return Run(
        path=folder.resolve(),
        options=options,
        environment=json_object(folder / ENVIRONMENT) or {},
        stats=_stats(folder / "stats.jsonl"),
        metrics=_metrics(folder),
        grids=_grids(folder),
        reals=reals if reals.is_file() else None,
        finished=(folder / "finished.json").is_file(),
    )


def _stats(path: Path) -> dict[str, Series]:
    series: dict[str, Series] = {}
    for line in json_lines(path):
        if not isinstance(line.get("nimg"), (int, float)):
            continue
        for name, moments in line.items():
            if isinstance(moments, dict) and isinstance(moments.get("mean"), (int, float)):
                point = (line["nimg"] / 1000, float(moments["mean"]))
                series.setdefault(name, []).append(point)
    return series


def _metrics(folder: Path) -> dict[str, list[dict[str, Any]]]:
    known = {
        name: [result for result in found if result.get("kimg") is not None]
        for name, found in metrics.read(folder).items()
    }
    return {name: found for name, found in known.items() if found}


def _grids(folder: Path) -> dict[float, Path]:
    first = folder / "fakes_init.png"
    found = {0.0: first} if first.is_file() else {}
    for path in sorted(folder.glob("fakes*.png")):
        if match := re.fullmatch(r"fakes(\d+)(?:-(\d{3}))?\.png", path.name):
            found[float(match[1]) + int(match[2] or 0) / 1000] = path
    return found
