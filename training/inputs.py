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
    data = before.get("data") if isinstance(before, Mapping) else None
    if not isinstance(data, Mapping):
        raise ValueError("the checkpoint does not name its images; start anew with --fresh")
    path, known, source = options["dataset"]["path"], now["data"], before.get("source")
    differing = [key for key in data if data[key] != known.get(key)]
    if changes := [_change(key, data[key], known.get(key)) for key in differing]:
        raise ValueError(
            f"--data={path} has changed since the checkpoint of this run: {', '.join(changes)}; "
            "put back what it was, or start anew with --fresh"
        )
    if None not in (source, now["source"]) and source != now["source"]:
        raise ValueError(
            f"--resume={options['resume']} is another network than when this run began; put it "
            "back, or start anew with --fresh"
        )


def _change(key: str, before: Any, now: Any) -> str:
    if key in _WORDS:
        return f"{_WORDS[key].format(before)} then, {now} now"
    return {"labels": "other labels", "files": "other files"}.get(key, f"other {key}")
