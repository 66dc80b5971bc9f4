"""Checkpoints: all that a run needs to resume as if it had never stopped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from stylegan2_fewshot.files import replacing

from .formats import torch_file
from .run_dir import moment

NAME = re.compile(r"checkpoint-(\d+)(?:-(\d{3}))?\.pt")
KEEP = 2  # a newer one may turn out unreadable after a power failure


def path_at(run_dir: Path, cur_nimg: int) -> Path:
    """Return where the checkpoint taken after `cur_nimg` images lies."""
    return run_dir / f"checkpoint-{moment(cur_nimg)}.pt"


def all_of(run_dir: Path) -> list[Path]:
    """Return a run's checkpoints, the oldest first."""
    names = ((NAME.fullmatch(path.name), path) for path in run_dir.glob("checkpoint-*.pt"))
    named = ((name, path) for name, path in names if name and path.is_file())
    found = [((int(name[1]), int(name[2] or 0)), path) for name, path in named]
    return [path for _, path in sorted(found)]


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers and containers of them) complete or not at all."""
    with replacing(path) as stream:
        torch.save(state, stream)
    for old in all_of(path.parent)[:-KEEP]:
        old.unlink()


def load_newest(run_dir: Path) -> dict[str, Any] | None:
    """Return the newest readable checkpoint's content, or None where there is none.

    Nothing but tensors and plain containers is ever constructed, and all on the CPU: beside the
    networks, a GPU may have no room for them, and Adam counts its steps faster there.
    """
    for path in reversed(all_of(run_dir)):
        try:
            torch_file.check(path)  # weights_only still trusts the sizes that a file claims
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # torch raises a dozen kinds for a damaged file
            print(f"{path} cannot be read ({type(error).__name__}); trying the one before it")
        else:
            return state
    return None
