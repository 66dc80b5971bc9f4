"""What networks compute in where they run in reduced precision."""

from __future__ import annotations

import torch

from . import torch_internals

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = ("auto", *_DTYPES)


def reduced_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of blocks in reduced precision.

    Args:
        precision: fp32, fp16 or bf16; auto is float16 on CUDA, as in the original, and on the CPU
            bfloat16 where the processor computes in it, else float32.
        device: Where the blocks are.

    Raises:
        ValueError: `precision` is none of these.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if torch_internals.cpu_computes_bfloat16() else torch.float32
