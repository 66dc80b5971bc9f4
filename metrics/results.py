"""Results as lines of JSON, `metric-NAME.jsonl` in a run directory."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import NoneType
from typing import Any

from stylegan2_fewshot.files import json_line, json_lines, write_text


def value(result: dict[str, Any]) -> float:
    """Return the value to judge a result by."""
    first = next(iter(result["results"].values()))
    return math.nan if first is None else float(first)


def is_better(result: dict[str, Any], other: dict[str, Any] | None) -> bool:
    """Return whether a result is better than another of the same metric, or than none."""
    if math.isnan(value(result)):
        return False
    if other is None or math.isnan(value(other)):
        return True
    sign = 1 if result.get("better") == "higher" else -1
    return sign * value(result) > sign * value(other)


def append(folder: str | os.PathLike[str], result: dict[str, Any]) -> Path:
    """Add a result to the file of its metric, and return the path; the file is always complete."""
    path = Path(folder) / f"metric-{result['metric']}.jsonl"
    write_text(path, "".join(json_line(line) + "\n" for line in [*_lines(path), result]))
    return path


def read(folder: str | os.PathLike[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the results in a run directory by metric, in order of kimg.

    Where a resumed run has computed a snapshot once more, the later result counts.
    """
    found = {}
    for path in sorted(Path(folder).glob("metric-*.jsonl")):
        latest = {line.get("snapshot_pkl") or line.get("kimg"): line for line in _lines(path)}
        name = path.name.removeprefix("metric-").removesuffix(".jsonl")
        found[name] = sorted(latest.values(), key=lambda line: line.get("kimg") or 0)
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [line for line in json_lines(path) if is_result(line)]


def is_result(line: Any) -> bool:
    """Return whether this is a result: what others rely on in it is there, and of its type."""
    try:
        _check(line)
    except (ValueError, AttributeError, KeyError, TypeError, StopIteration):
        return False
    return True


def _check(line: dict[str, Any]) -> None:
    """Raise unless the values that others rely on are of their types."""
    if not all(isinstance(n, (int, float, NoneType)) for n in line["results"].values()):
        raise ValueError("a result is not a number")
    if not (value(line) is not None and isinstance(line.get("kimg") or 0, (int, float))):
        raise ValueError("kimg is not a number")
    if not isinstance(line.get("snapshot_pkl") or "", str):
        raise ValueError("snapshot_pkl is not a text")
