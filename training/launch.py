"""Start training: alone, as several processes of this machine, or under torchrun."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stylegan2_fewshot import _dist
from stylegan2_fewshot.ops import backend
from stylegan2_fewshot.plugin import load_external

from . import run_dir as run_dirs
from .training_loop import Interrupted, train


def launch(options: Mapping[str, Any], *, outdir: Path, fresh: bool, gpus: int) -> None:
    """Train with `options` in a run directory below `outdir`, in `gpus` processes.

    Under torchrun every process calls this, and `gpus` is their number.

    Raises:
        SystemExit: Training was interrupted; status 130.
        ValueError: A user's mistake.
    """
    if gpus == 1 or "RANK" in os.environ:
        _work(options, outdir, fresh)
        return
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    interrupted: list[int] = []  # Ctrl-C reaches the ranks as well: wait until they have saved
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    try:  # a process that fails ends the others
        torch.multiprocessing.spawn(_spawned, args=(gpus, options, outdir, fresh), nprocs=gpus)
    except torch.multiprocessing.ProcessExitedException as ended:
        raise SystemExit(130 if interrupted else ended.exit_code) from None
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise SystemExit(130)


def _spawned(rank: int, gpus: int, options: Mapping[str, Any], outdir: Path, fresh: bool) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(gpus))
    torch.set_num_threads(max(torch.get_num_threads() // gpus, 1))
    try:
        for place in options["external"]:
            load_external(place)
        _work(options, outdir, fresh)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def _work(options: Mapping[str, Any], outdir: Path, fresh: bool) -> None:
    device = _dist.init(options["device"])
    status = 0
    try:
        operations = backend.select(options["ops"], device)
        chosen = run_dirs.choose(outdir, options, fresh) if _dist.rank() == 0 else None
        directory, goes_on = _dist.gather(chosen)[0]
        if _dist.rank() == 0:
            print(f"{'Going on in' if goes_on else 'Training in'} {directory}", flush=True)
            print(operations, flush=True)
        train(options, directory, device)
    except Interrupted as reason:
        if _dist.rank() == 0:
            print(f"{reason}; the same command goes on from there", flush=True)
        status = 130
    finally:
        _dist.shutdown()
    if status:  # only now: ranks that were interrupted leave together, too
        raise SystemExit(status)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
