"""How long a run would take, and how much memory and disk: from a few real iterations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from stylegan2_fewshot import distributed
from stylegan2_fewshot.ops import select

from . import checkpoint, construction, graphs, run_dir
from .clock import snapshots_left
from .dataset import IN_MEMORY_BYTES, ImageDataset
from .phases import Phases, batches, now
from .run_log import RunLog, duration
from .snapshots import Snapshots
from .state import construct

ITERATIONS = 3  # of each phase; one more comes first, to warm up, and one to capture graphs


def estimate(options: Mapping[str, Any], dataset: ImageDataset) -> str:
    """Return in words what a run would take, after a few iterations and a snapshot of it.

    What a run makes once and keeps for others, Fisher information and features of real images, is
    made and kept. Everything else is written to a folder that is removed again.

    Args:
        options: Options of the run.
        dataset: The training images, checked.

    Raises:
        ValueError: The run would be refused.
    """
    device = distributed.init(options["device"])
    select(options["ops"], device)
    construction.set_up_torch(options)
    dataset.keep_decoded(IN_MEMORY_BYTES)
    started = now(device)
    construct(options, dataset, device)
    kept = now(device)
    state, _ = construct(options, dataset, device)
    setup = now(device) - kept
    per_iteration, peaks, warm_up = _iteration(options, state, device)
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder))
        saved = Snapshots(options, Path(folder), state, log, device)
        snapshot, size = _snapshot_costs(saved, state, Path(folder), device)
        saved.choose_metrics()
        measuring = saved.measuring_sec().each
    count, batch = snapshots_left(options, 0), options["batch_size"]
    iterations = options["total_kimg"] * 1000 / batch + state.plugins.rehearsal
    total = setup + iterations * per_iteration + count * (snapshot + measuring)
    disk = count * size["pkl"] + min(count, checkpoint.KEEP) * size["pt"]
    what = f"{_counted(count, 'snapshot')} of {snapshot:.1f} s"
    what += f" and {measuring:.0f} s of metrics" if saved.metrics else ""
    once = kept - started - setup
    memory, largest = max(warm_up, *peaks.values(), distributed.memory_gb(device)), ""
    if device.type == "cuda":
        largest = ", ".join(f"{phase} {peak:.2f}" for phase, peak in peaks.items())
    lines = [
        f"Time    {duration(total)}: {per_iteration * 1000 / batch:.1f} s/kimg, {what}",
        f"Memory  {memory:.2f} GiB on {device}" + f" ({largest})" * bool(largest),
        f"Disk    {disk / 2**30:.2f} GiB for {_counted(count, 'network')} and newest checkpoints",
    ]
    if once >= 1:
        lines.append(f"Once    {duration(once)}, spent now: its results are kept for the run")
    return "\n".join(lines)


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _iteration(
    options: Mapping[str, Any], state: Any, device: torch.device
) -> tuple[float, dict[str, float], float]:
    """Return the seconds of an iteration on average, its lazy regularisation included, and memory.

    Peak memory in GiB is that of each phase by its name, and that of everything before and of the
    phases' first times, when cuDNN tries what is fastest.
    """
    peaks: dict[str, float] = {}
    warm_up = [distributed.memory_gb(device)]
    captured = graphs.of(options, state, device, print)
    phases = Phases(options, state, device, captured)
    share = options["batch_size"] // options.get("gpus", 1)  # of one of the processes
    images, labels = next(iter(batches(options, state.dataset, 0, device)))
    real, real_c = phases.prepare(images[:share], labels[:share])

    def timed(work: Callable[[], object]) -> float:
        for _ in range(2 if captured else 1):
            work()
        warm_up.append(distributed.memory_gb(device))
        distributed.forget_peak(device)
        start = now(device)
        for _ in range(ITERATIONS):
            work()
        return (now(device) - start) / ITERATIONS

    def of_phase(phase: str) -> float:
        seconds = timed(lambda: phases.run(phase, 1.0, real, real_c))
        peaks[phase] = distributed.memory_gb(device)
        return seconds

    seconds = timed(phases.update_ema)
    for net in "GD":
        interval = options[f"{net}_reg_interval"]
        seconds += of_phase(f"{net}main") + of_phase(f"{net}reg") / interval
    return seconds, peaks, max(warm_up)


def _snapshot_costs(
    saved: Snapshots, state: Any, folder: Path, device: torch.device
) -> tuple[float, dict[str, int]]:
    """Return the seconds of a snapshot, and the bytes of its files by suffix."""
    start = now(device)
    saved.save()
    checkpoint.save(checkpoint.path_at(folder, 0), state.tensors())
    seconds = now(device) - start
    pictures = sum(path.stat().st_size for path in folder.glob("*.png"))
    network = run_dir.snapshot_at(folder, 0).stat().st_size
    size = {"pkl": network + pictures, "pt": checkpoint.path_at(folder, 0).stat().st_size}
    return seconds, size
