"""Which implementation of the operations runs, and at which precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_KERNELS: Any = None  # the built extension, once one is loaded
_PRECISION = "auto"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def kernels(x: Tensor) -> Any:
    """Return the compiled kernels that serve `x`, or None for the plain path."""
    return _KERNELS if x.is_cuda else None


def set_precision(precision: str) -> None:
    """Choose what blocks of reduced precision compute in: auto, fp32, fp16 or bf16."""
    global _PRECISION
    if precision != "auto" and precision not in _DTYPES:
        raise ValueError(f"precision must be auto, fp32, fp16 or bf16, got {precision!r}")
    _PRECISION = precision


def reduced_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of the blocks that run in reduced precision.

    With auto: float16 on CUDA, as in the original; on the CPU bfloat16 where the processor
    computes in it, else float32.
    """
    if _PRECISION != "auto":
        return _DTYPES[_PRECISION]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def _cpu_has_bfloat16() -> bool:
    return bool(
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
