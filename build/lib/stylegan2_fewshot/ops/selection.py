"""What a command does before anything else: compile, load and choose the kernels of a device."""

from __future__ import annotations

import torch

from .cpu import loader as cpu_loader
from .cuda import loader as cuda_loader
from .dispatch import SELECTED

MODES = ("auto", "cuda", "torch")


def select(mode: str, device: torch.device) -> str:
    """Choose for the whole process what the operations run on, and return a line that says it.

    Nothing else loads kernels, or starts a compiler.

    Args:
        mode: `torch` for PyTorch's own operations; `cuda` for our kernels on a GPU, compiled at
            their first use; `auto` for those of a GPU or a CPU, where they can be built and agree
            with PyTorch.
        device: Where the networks are.

    Raises:
        ValueError: `mode` is none of these, or it is `cuda` and the device has no CUDA, or the
            kernels cannot be built or do not agree with PyTorch.
    """
    if mode not in MODES:
        raise ValueError(f"--ops must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "cuda" and device.type != "cuda":
        raise ValueError(f"--ops=cuda needs a CUDA device, got {device}; use --ops=auto")
    SELECTED.kernels = {}
    if mode == "torch" or device.type not in ("cpu", "cuda"):
        return f"Operations: PyTorch on {device.type}."
    if device.type == "cpu":
        return _select_cpu()
    return _select_cuda(device, is_required=mode == "cuda")


def _select_cpu() -> str:
    try:
        SELECTED.kernels = {"cpu": cpu_loader.load()}
    except Exception as error:  # compilers and loaders fail in every way
        reason = " ".join(str(error).split())
        return f"Operations: PyTorch on cpu, slower than with our kernels, which failed: {reason}."
    return "Operations: PyTorch and C++ kernels on cpu."


def _select_cuda(device: torch.device, is_required: bool) -> str:
    try:
        SELECTED.kernels = {"cuda": cuda_loader.load(device)}
    except Exception as error:  # as above
        reason = cuda_loader.explain(error)
        if is_required:
            raise ValueError(f"--ops=cuda: no CUDA kernels: {reason}") from error
        return f"Operations: PyTorch on cuda, slower than our kernels, which failed: {reason}."
    return f"Operations: CUDA kernels for {torch.cuda.get_device_name(device)}."
