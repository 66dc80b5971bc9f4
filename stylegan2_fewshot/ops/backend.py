"""Which implementation of the operations runs: compiled CUDA kernels, or plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_KERNELS: Any = None  # the built extension, once one is loaded


def kernels(x: Tensor) -> Any:
    """Return the compiled kernels that serve `x`, or None for the plain path."""
    return _KERNELS if x.is_cuda else None


def reduced_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of the blocks that run in reduced precision.

    float16 on CUDA, as in the original; bfloat16 elsewhere, where it is what is fast.
    """
    return torch.float16 if device.type == "cuda" else torch.bfloat16
