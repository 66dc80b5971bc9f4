"""PyTorch's names that are not public, and what holds where a version lacks them."""

from __future__ import annotations

from typing import Any

import torch


def transforms_are_active() -> bool:
    """Return whether code runs inside a transform of torch.func; unknown is yes: slow but right."""
    are_active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return are_active is None or bool(are_active())


def is_traced() -> bool:
    """Return whether an export or another tracer records operations; unknown is yes.

    A dispatch mode that only looks on, such as a counter of operations, is not a tracer.
    """
    internals: Any = torch._C
    try:
        if not internals._len_torch_dispatch_stack():
            return False
        kinds = internals._TorchDispatchModeKey
        tracers = (kinds.FAKE, kinds.PROXY, kinds.FUNCTIONAL)
        return any(internals._get_dispatch_mode(kind) is not None for kind in tracers)
    except AttributeError:
        return True


def cpu_computes_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 by itself; unknown is no."""
    if not torch.backends.mkldnn.is_available():
        return False
    is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return is_supported is not None and bool(is_supported())
