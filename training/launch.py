"""Start training: alone, as several processes of this machine, or under torchrun."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stylegan2_fewshot import distributed
from stylegan2_fewshot.ops import select
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
    interrupted: list[int] = []  # Ctrl-C reaches the ranks as well: wait until they have saved
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    try:
        distributed.spawn(_work_in_new_process, (options, outdir, fresh), gpus)
    except SystemExit as ended:
        raise SystemExit(130 if interrupted else ended.code) from None
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise SystemExit(130)


def _work_in_new_process(options: Mapping[str, Any], outdir: Path, fresh: bool) -> None:
    for place in options["external"]:
        load_external(place)
    _work(options, outdir, fresh)


def _work(options: Mapping[str, Any], outdir: Path, fresh: bool) -> None:
    device = distributed.init(options["device"])
    status = 0
    try:
        operations = select(options["ops"], device)
        chosen = run_dirs.choose(outdir, options, fresh) if distributed.rank() == 0 else None
        directory, goes_on = distributed.gather(chosen)[0]
        if distributed.rank() == 0:
            print(f"{'Going on in' if goes_on else 'Training in'} {directory}", flush=True)
            print(operations, flush=True)
        train(options, directory, device)
    except Interrupted as reason:
        if distributed.rank() == 0:
            print(f"{reason}; the same command goes on from there", flush=True)
        status = 130
    finally:
        distributed.shutdown()
    if status:  # only now: ranks that were interrupted leave together, too
        raise SystemExit(status)
