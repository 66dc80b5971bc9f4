"""Which implementation of the operations runs, and at which precision."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

MODES = ("auto", "cuda", "torch")
_KERNELS: Any = None  # the built extension, once one is loaded
_NATIVE: Any = None  # the CPU's library, once it is loaded
_NATIVE_DTYPES = (torch.float32, torch.bfloat16)
_NATIVE_IS_WANTED = True  # until it has been loaded, failed, or is not to be used
_PRECISION = "auto"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def select(mode: str, device: torch.device) -> str:
    """Choose for the whole process what the operations run on, and return a line that says it.

    Args:
        mode: `torch` for PyTorch's own operations; `cuda` for our kernels on a GPU, compiled at
            their first use; `auto` for those of a GPU or a CPU, where they can be built and agree
            with PyTorch.
        device: Where the networks are.

    Raises:
        ValueError: `mode` is none of these, or it is `cuda` and the device has no CUDA, or the
            kernels cannot be built or do not agree with PyTorch.
    """
    global _KERNELS, _NATIVE, _NATIVE_IS_WANTED
    if mode not in MODES:
        raise ValueError(f"--ops must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "cuda" and device.type != "cuda":
        raise ValueError(f"--ops=cuda needs a CUDA device, got {device}; use --ops=auto")
    _KERNELS = _NATIVE = None
    _NATIVE_IS_WANTED = mode != "torch"
    if mode == "torch":
        return f"Operations: PyTorch on {device.type}."
    if device.type == "cpu":
        return _select_native()
    from . import build  # imports the operations, which import this module

    try:
        compiled = build.load(device)
        build.verify(compiled, device)
    except Exception as error:  # compilers and loaders fail in every way
        reason = build.explain(error)
        if mode == "cuda":
            raise ValueError(f"--ops=cuda: no CUDA kernels: {reason}") from error
        return f"Operations: PyTorch on cuda, slower than our kernels, which failed: {reason}."
    _KERNELS = compiled
    return f"Operations: CUDA kernels for {torch.cuda.get_device_name(device)}."


def _select_native() -> str:
    global _NATIVE, _NATIVE_IS_WANTED
    from . import native  # as above

    _NATIVE_IS_WANTED = False
    try:
        _NATIVE = native.load()
    except Exception as error:  # compilers and loaders fail in every way
        reason = " ".join(str(error).split())
        return f"Operations: PyTorch on cpu, slower than with our kernels, which failed: {reason}."
    return "Operations: PyTorch and C++ kernels on cpu."


def has_native() -> bool:
    """Return whether the CPU's kernels run.

    Without a `select` they are loaded at the first call; a failure is then a warning.
    """
    if _NATIVE_IS_WANTED and not torch._C._len_torch_dispatch_stack():  # not while exporting
        line = _select_native()
        if _NATIVE is None:
            warnings.warn(line, stacklevel=2)
    return _NATIVE is not None


def native(x: Tensor) -> Any:
    """Return the library of the CPU's kernels if it serves `x`, or None for the plain path.

    Tensors of an export or a transform of torch.func have no memory that it could read.
    """
    if type(x) not in (Tensor, torch.nn.Parameter) or torch._C._len_torch_dispatch_stack():
        return None
    if x.device.type != "cpu" or x.dtype not in _NATIVE_DTYPES:
        return None
    if torch._C._are_functorch_transforms_active():
        return None
    return _NATIVE if has_native() else None


def kernels(x: Tensor, *others: Tensor | None) -> Any:
    """Return the compiled kernels that serve `x`, or None for the plain path.

    Tensors inside a transform of torch.func have no memory that a kernel could read.
    """
    if _KERNELS is None or not x.is_cuda or any(map(_is_transformed, (x, *others))):
        return None
    return _KERNELS


def _is_transformed(tensor: Tensor | None) -> bool:
    return tensor is not None and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


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
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    computes = has_onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if computes else torch.float32
