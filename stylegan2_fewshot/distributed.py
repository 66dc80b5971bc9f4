"""Ranks and devices: the one place that knows about torch.distributed and CUDA."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as td
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException

from .files import legible


@contextlib.contextmanager
def passing_on_signals() -> Iterator[list[int]]:
    """Pass SIGTERM on to the processes that `spawn` starts, and wait for them.

    Ctrl-C reaches them from the terminal. Yields the signals that came, a list that grows.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGTERM:
            for child in multiprocessing.active_children():
                if child.pid is not None:
                    os.kill(child.pid, number)

    kinds = (signal.SIGINT, signal.SIGTERM)
    previous = {kind: signal.signal(kind, note) for kind in kinds}
    try:
        yield received
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def spawn(work: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Run `work(*arguments)` in several processes of this machine, as torchrun would.

    A process that fails ends the others; a mistake (ValueError, OSError) is one line.

    Raises:
        SystemExit: A process ended with this status.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    try:
        multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
            _be_rank, (work, arguments, processes, port), nprocs=processes
        )
    except ProcessExitedException as ended:
        if ended.signal_name:
            why = f"process {ended.error_index} was killed by {ended.signal_name}"
            hint = " (out of memory?)" if ended.signal_name == "SIGKILL" else ""
            print(f"Error: {why}{hint}; the same command resumes from the last checkpoint",
                  file=sys.stderr, flush=True)  # fmt: skip
        raise SystemExit(ended.exit_code if ended.exit_code >= 0 else 1) from None


def _be_rank(
    number: int, work: Callable[..., None], arguments: tuple[Any, ...], processes: int, port: int
) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(max(torch.get_num_threads() // processes, 1))
    try:
        work(*arguments)
    except (ValueError, OSError) as error:
        print(f"Error: {legible(error)}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def init(device: str = "auto") -> torch.device:
    """Join the process group that torchrun's environment names, or run alone.

    Args:
        device: cpu, cuda, or auto for CUDA where there is a GPU. NCCL serves tensors of CUDA, gloo
            those of the CPU.

    Returns:
        The device of this rank.

    Raises:
        ValueError: There are fewer GPUs than processes on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if number >= there:
            raise ValueError(
                f"--device=cuda: process {number + 1} needs a GPU of its own, but PyTorch finds "
                f"{there}; start fewer processes, or give --device=cpu"
            )
        torch.cuda.set_device(number)
        device = f"cuda:{number}"
    else:
        _keep_freed_memory()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not td.is_initialized():
        td.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    return torch.device(device)


def _keep_freed_memory() -> None:
    """Have glibc keep what tensors free; by default it goes back to the system and is zeroed anew.

    For tensors of 40 MB that took nine tenths of the time of filling them.
    """
    mmap_threshold, trim_threshold = -3, -1  # mallopt's numbers of its parameters
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc, no matter
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def shutdown() -> None:
    """Leave the process group, if there is one: all ranks together, or at once after an error."""
    if td.is_initialized():
        if sys.exc_info()[0] is None:
            barrier()  # gloo may abort a rank that leaves while others are at work
        td.destroy_process_group()


_looking_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this rank do what the others do not: nothing within waits for them."""
    global _looking_alone
    before, _looking_alone = _looking_alone, True
    try:
        yield
    finally:
        _looking_alone = before


def _joined() -> bool:
    return td.is_initialized() and not _looking_alone


def rank() -> int:
    """Return the number of this process, 0 when alone."""
    return td.get_rank() if _joined() else 0


def world_size() -> int:
    """Return the number of processes, 1 when alone."""
    return td.get_world_size() if _joined() else 1


def barrier() -> None:
    """Wait for every rank."""
    if _joined():
        td.barrier()


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Add `tensor` up over the ranks, in place."""
    if _joined():
        td.all_reduce(tensor)
    return tensor


def broadcast_(tensors: Iterable[torch.Tensor]) -> None:
    """Give every rank the values of rank 0, in place."""
    if _joined():
        for tensor in tensors:
            td.broadcast(tensor, src=0)


def gather(value: Any) -> list[Any]:
    """Return the picklable values of all ranks, in order of rank."""
    if not _joined():
        return [value]
    values = [None] * world_size()
    td.all_gather_object(values, value)
    return values


def average_gradients(params: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the ranks; where no rank has one, there is none."""
    params = list(params)
    if not (_joined() and params):
        return
    found = torch.tensor([float(p.grad is not None) for p in params])  # a GPU is not waited for
    touched = [p for p, count in zip(params, sum_(found).tolist(), strict=True) if count]
    for param in touched:
        param.grad = torch.zeros_like(param) if param.grad is None else param.grad
    grads = [param.grad for param in touched if param.grad is not None]
    if not grads:
        return
    rewrite(grads, lambda flat: sum_(flat).div_(world_size()))


def rewrite(tensors: Sequence[torch.Tensor], work: Callable[[torch.Tensor], Any]) -> None:
    """Let `work` change all numbers of some tensors in place, as one flat tensor."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    work(flat)
    parts = flat.split([x.numel() for x in tensors])
    torch._foreach_copy_(list(tensors), [p.view_as(x) for p, x in zip(parts, tensors, strict=True)])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_gb(device: torch.device) -> float:
    """Return the peak memory of this process in GiB: of the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 2**30 if os.uname().sysname == "Darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def forget_peak(device: torch.device) -> None:
    """Let the peak of `memory_gb` start from what is in use now; on the CPU it is of all time."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class CUDAGraphs:
    """Captures work of a CUDA device, all of it in one pool of memory.

    Each graph's own memory may be another's too, so that what is to last must lie outside of it.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def generators(self) -> list[torch.Generator]:
        """Return PyTorch's own generators, which graphs know."""
        return [torch.default_generator, torch.cuda.default_generators[self._device.index]]

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Run work on the stream of captures, as has to be done once before one."""
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outside.wait_stream(self._stream)

    def capture(
        self, work: Callable[[], None], generators: Iterable[torch.Generator]
    ) -> Callable[[], None]:
        """Return what repeats the device's part of `work`, which is not done yet.

        Args:
            work: Is called once.
            generators: Generators of the device that it draws from, PyTorch's default one apart.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # The outer context goes back to the current stream even where a capture fails. Threads that
        # load images may use CUDA meanwhile.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay
