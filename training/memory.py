"""What to say where memory does not suffice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from stylegan2_fewshot import distributed


def is_exhausted(error: BaseException) -> bool:
    """Return whether memory, of the GPU or the CPU, did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def advice(options: Mapping[str, Any]) -> str:
    """Return one line: that memory does not suffice, and with which option it may.

    Args:
        options: Options of the run.
    """
    size, group = options["batch_gpu"], options["D"]["epilogue_kwargs"].get("mbstd_group_size")
    share = options["batch_size"] // distributed.world_size()
    smaller = [n for n in range(1, size) if share % n == 0 and n % (group or 1) == 0]
    start = f"out of memory with --batch-gpu={size}"
    if smaller:
        return f"{start}; try --batch-gpu={smaller[-1]}, which takes less and more steps per batch"
    return (
        f"{start}, which is the least; try --mbstd-group=1, --precision=fp16 or a smaller --cbase"
    )
