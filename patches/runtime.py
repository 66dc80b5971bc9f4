"""What a checkout of 2021 needs on today's PyTorch, and on the CPU: one function each.

Nothing is written to the checkout. Every function looks first whether its patch is needed in this
process, and returns a line for the user where it has applied it. The docstrings give the reason
and the versions; "met on" names one where the trouble was seen.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as td
from torch.torch_version import TorchVersion

if TYPE_CHECKING:
    from .host import Host


class Overlay:
    """Stands in front of a module, or of any object; nobody else sees what it replaces."""

    def __init__(self, base: Any, **replaced: Any) -> None:
        self._base = base
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


def replace(module: Any, path: str, value: Any) -> None:
    """Replace what `module` knows as `path`, such as `torch.cuda.Event`, for that module alone."""
    name, _, rest = path.partition(".")
    if not rest:
        setattr(module, name, value)
        return
    part = getattr(module, name)
    if not isinstance(part, Overlay):
        part = Overlay(part)
        setattr(module, name, part)
    replace(part, rest, value)


Patch = Callable[["Host", torch.device, int], "str | None"]
PATCHES: list[Patch] = []


def patch(function: Patch) -> Patch:
    """Enter a function into the list that `apply` goes through."""
    PATCHES.append(function)
    return function


def apply(host: Host, device: torch.device, processes: int) -> list[str]:
    """Apply what is needed in this process; return a line for each."""
    lines = ((change.__name__, change(host, device, processes)) for change in PATCHES)
    return [f"{name}: {line}" for name, line in lines if line]


@patch
def parse_version(host: Host, device: torch.device, processes: int) -> str | None:
    """Every torch: stylegan3 imports `pkg_resources.parse_version`, and setuptools has left
    pkg_resources out since its version 82. It has to stand in before stylegan3 is imported."""
    stands_in = getattr(sys.modules.get("pkg_resources"), "__spec__", None) is None
    return (
        "pkg_resources is replaced by a stand-in"
        if stands_in and host.name == "stylegan3"
        else None
    )


def provide_parse_version() -> None:
    """Stand in for pkg_resources where it is not installed."""
    if "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None:
        module: Any = ModuleType("pkg_resources")
        module.parse_version = TorchVersion
        sys.modules["pkg_resources"] = module


@patch
def sampler(host: Host, device: torch.device, processes: int) -> str | None:
    """torch without a constructor of its own in `torch.utils.data.Sampler` (met on 2.13): the
    host's sampler hands its data set to it, and `object`'s takes none."""
    if "__init__" in vars(torch.utils.data.Sampler):
        return None

    def init(self: Any, data_source: Any = None) -> None:
        pass

    torch.utils.data.Sampler.__init__ = init  # type: ignore[method-assign]
    return "torch's sampler takes a data set again, and ignores it"


@patch
def convolution(host: Host, device: torch.device, processes: int) -> str | None:
    """torch 1.10 and newer, on a GPU: the host's convolution does what torch's own does, which has
    second derivatives, but warns at every call. stylegan3's does not warn."""
    if device.type == "cpu" or host.name == "stylegan3" or TorchVersion(torch.__version__) < "1.10":
        return None
    host.module("torch_utils.ops.conv2d_gradfix")._should_use_custom_op = lambda input: False
    return "convolutions are torch's own"


@patch
def summary(host: Host, device: torch.device, processes: int) -> str | None:
    """Every torch: the table of layers feeds uninitialised memory through G while it trains, and
    what that gives, NaN at times, enters the running mean of w. stylegan3's mapping keeps it out.
    """
    if host.name == "stylegan3":
        return None
    printed = host.loop.misc.print_module_summary

    def print_module_summary(module: Any, inputs: Any, **kwargs: Any) -> Any:
        training = module.training
        shown = printed(module.eval(), [torch.zeros_like(value) for value in inputs], **kwargs)
        module.train(training)
        return shown

    replace(host.loop, "misc.print_module_summary", print_module_summary)
    return "the table of layers leaves the running mean of w alone"


@patch
def buffers(host: Host, device: torch.device, processes: int) -> str | None:
    """torch 2 (met on 2.13): DistributedDataParallel no longer hands out the first
    process's buffers where `broadcast_buffers` is false, and noise would differ between processes.
    Every torch, on the CPU: it takes no `device_ids`. stylegan3 does without it."""
    if processes == 1 or host.name == "stylegan3":
        return None
    parallel = torch.nn.parallel.DistributedDataParallel
    renamed = "forward_sync_buffers" in inspect.signature(parallel).parameters

    def wrap(module: Any, device_ids: Any, broadcast_buffers: bool) -> Any:
        kept: Any = {"forward_sync_buffers" if renamed else "broadcast_buffers": broadcast_buffers}
        wrapped = parallel(module, device_ids=None if device.type == "cpu" else device_ids, **kept)
        for buffer in module.buffers():
            td.broadcast(buffer, src=0)
        return wrapped

    replace(host.loop, "torch.nn.parallel.DistributedDataParallel", wrap)
    return "processes start with the same buffers"


@patch
def loaders(host: Host, device: torch.device, processes: int) -> str | None:
    """Every torch: what loads images for a process that a signal ends, as when another process
    fails, can stay behind for ever (met on 2.13)."""
    if processes == 1:
        return None
    loader = functools.partial(torch.utils.data.DataLoader, worker_init_fn=_end_with_parent)
    replace(host.loop, "torch.utils.data.DataLoader", loader)
    return "processes that load images end with the one they load for"


def _end_with_parent(worker: int) -> None:
    def wait() -> None:
        parent: Any = multiprocessing.parent_process()
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@patch
def processor(host: Host, device: torch.device, processes: int) -> str | None:
    """Every torch, on the CPU: the host's loop asks CUDA for its device, times and memory."""
    if device.type != "cpu":
        return None
    torch.set_flush_denormal(True)
    torch.set_num_threads(max(torch.get_num_threads() // processes, 1))
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
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
