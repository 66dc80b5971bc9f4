"""What a run was made from, and whether that is still the same: the images and the source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stylegan2_fewshot.files import sha256_of

from .dataset import ImageDataset

_WORDS = {
    "images": "{} images",
    "resolution": "{} pixels a side",
    "channels": "{} channels",
    "label_dim": "labels of {} numbers",
}


def describe(dataset: ImageDataset, source: str | None) -> dict[str, Any]:
    """Return what tells whether images and source network are still the same, for a checkpoint."""
    path = Path(source) if source else None
    known = path is not None and path.is_file()
    return {"data": dataset.identity(), "source": sha256_of(path) if known and path else None}


def refuse_changes(
    options: Mapping[str, Any], before: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> None:
    """Raise unless images and source network are those of the checkpoint.

    A source network that is gone is not missed: the checkpoint holds all that came of it.

    Args:
        options: Options of the run.
        before: What `describe` returned when the checkpoint was made; None of older ones.
        now: What it returns now.

    Raises:
        ValueError: They are others; the message says in what.
    """
    if before is None:
        return
    data, path = before["data"], options["dataset"]["path"]
    if changes := [_change(key, data[key], now["data"][key]) for key in data if _differs(
        key, data, now["data"])]:  # fmt: skip
        raise ValueError(
            f"--data={path} has changed since the checkpoint of this run: {', '.join(changes)}; "
            "put back what it was, or start anew with --fresh"
        )
    if None not in (before["source"], now["source"]) and before["source"] != now["source"]:
        raise ValueError(
            f"--resume={options['resume']} is another network than when this run began; put it "
            "back, or start anew with --fresh"
        )


def _differs(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return bool(before[key] != now.get(key))


def _change(key: str, before: Any, now: Any) -> str:
    if key in _WORDS:
        return f"{_WORDS[key].format(before)} then, {now} now"
    return {"labels": "other labels", "files": "other files"}.get(key, f"other {key}")
