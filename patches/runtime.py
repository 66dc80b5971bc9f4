"""What a checkout of 2021 needs on today's PyTorch, and on the CPU: one function each.

Nothing is written to the checkout. Every function looks first whether its patch is needed in this
process, and returns a line for the user where it has applied it. The docstrings give the reason
and the versions; "seen" means that the trouble was met there.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as td

from stylegan2_fewshot import warp

from .host import Host
from .overlay import replace

Patch = Callable[[Host, torch.device], "str | None"]
PATCHES: list[Patch] = []


def patch(function: Patch) -> Patch:
    """Enter a function into the list that `apply` goes through."""
    PATCHES.append(function)
    return function


def apply(host: Host, device: torch.device) -> list[str]:
    """Apply what is needed in this process; return a line for each."""
    lines = ((change.__name__, change(host, device)) for change in PATCHES)
    return [f"{name}: {line}" for name, line in lines if line]


@patch
def sampler(host: Host, device: torch.device) -> str | None:
    """The host's sampler hands its data set to the constructor of `torch.utils.data.Sampler`,
    which is that of `object` by now and takes none. Seen on torch 2.13."""
    if "__init__" in vars(torch.utils.data.Sampler):
        return None

    def init(self: Any, data_source: Any = None) -> None:
        pass

    torch.utils.data.Sampler.__init__ = init  # type: ignore[method-assign, assignment]
    return "torch's sampler takes a data set again, and ignores it"


@patch
def convolution(host: Host, device: torch.device) -> str | None:
    """Outside torch 1.7 to 1.9 the host's convolution does what torch's own does, after a warning
    at every call; torch's has had second derivatives ever since."""
    gradfix = host.module("torch_utils.ops.conv2d_gradfix")
    if host.name == "stylegan3":
        return None
    gradfix._should_use_custom_op = lambda input: False
    return "convolutions are torch's own"


@patch
def grid_sample(host: Host, device: torch.device) -> str | None:
    """ADA with R1 differentiates `grid_sample` twice. The host's remedy is for torch 1.7 to 1.9,
    stylegan3's for 1.11 and 1.12; outside, they warn at every call or fail. Seen on torch 2.13."""
    gradfix = host.module("torch_utils.ops.grid_sample_gradfix")
    if _differentiates_twice(gradfix):
        return None
    gradfix.grid_sample = warp._lookup
    return "grid_sample has a second derivative"


def _differentiates_twice(gradfix: Any) -> bool:
    image = torch.ones(1, 1, 2, 2, requires_grad=True)
    was, gradfix.enabled = gradfix.enabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value = gradfix.grid_sample(image, torch.zeros(1, 1, 1, 2)).square().sum()
            (slope,) = torch.autograd.grad(value, [image], create_graph=True)
            slope.sum().backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, TypeError, UserWarning):
        return False
    finally:
        gradfix.enabled = was
    return True


@patch
def summary(host: Host, device: torch.device) -> str | None:
    """Every torch: the table of layers feeds uninitialised memory through G while it trains, and
    what that gives, NaN at times, enters the running mean of w."""
    printed = host.loop.misc.print_module_summary

    def print_module_summary(module: Any, inputs: Any, **kwargs: Any) -> Any:
        training = module.training
        shown = printed(module.eval(), [torch.zeros_like(value) for value in inputs], **kwargs)
        module.train(training)
        return shown

    replace(host.loop, "misc.print_module_summary", print_module_summary)
    return "the table of layers leaves the running mean of w alone"


@patch
def buffers(host: Host, device: torch.device) -> str | None:
    """DistributedDataParallel left off handing out the first process's buffers where
    `broadcast_buffers` is false, so noise would differ between processes. Seen on torch 2.13; it
    also takes no `device_ids` on the CPU."""
    from torch.distributed import utils

    known = inspect.signature(utils._sync_module_states).parameters
    if host.name == "stylegan3" or "broadcast_buffers" not in known:
        return None

    def wrap(module: Any, device_ids: Any, **kwargs: Any) -> Any:
        wrapped = torch.nn.parallel.DistributedDataParallel(
            module, device_ids=None if device.type == "cpu" else device_ids, **kwargs
        )
        for buffer in module.buffers():
            td.broadcast(buffer, src=0)
        return wrapped

    replace(host.loop, "torch.nn.parallel.DistributedDataParallel", wrap)
    return "processes start with the same buffers"


@patch
def processor(host: Host, device: torch.device) -> str | None:
    """Every torch: the host's loop asks CUDA for its device, times, memory and pinned memory."""
    if device.type != "cpu":
        return None
    torch.set_flush_denormal(True)
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign, assignment]
    for module in (host.loop, host.train):
        replace(module, "torch.device", lambda *_: torch.device("cpu"))
    replace(host.loop, "torch.cuda.Event", Stopwatch)
    replace(host.loop, "torch.cuda.current_stream", lambda device: None)
    replace(host.loop, "torch.cuda.reset_peak_memory_stats", lambda: None)
    for name in ("max_memory_allocated", "max_memory_reserved"):
        replace(host.loop, f"torch.cuda.{name}", lambda device: 0)
    replace(host.train, "torch.distributed.init_process_group", _gloo)
    return "trains on the CPU, in float32"


def _gloo(backend: str, **kwargs: Any) -> None:
    td.init_process_group("gloo", **kwargs)


class Stopwatch:
    """As much of `torch.cuda.Event` as the host's loop uses, where there is no GPU to wait for."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._at = 0.0

    def record(self, stream: None = None) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once: what has been recorded is done."""

    def elapsed_time(self, end: Stopwatch) -> float:
        """Return milliseconds."""
        return (end._at - self._at) * 1000
