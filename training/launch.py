"""Start training: alone, as several processes of this machine, or under torchrun."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from stylegan2_fewshot import distributed
from stylegan2_fewshot.external import load_external
from stylegan2_fewshot.files import legible
from stylegan2_fewshot.ops import select

from . import environment
from . import run_dir as run_dirs
from .dataset import ImageDataset
from .dry_run import check
from .stopping import Diverged, Interrupted, Requests, silence_output
from .training_loop import train

T = TypeVar("T")
Watch = Callable[[Path, bool], None]
INTERRUPTED, DIVERGED = 130, 3  # exit statuses


def launch(
    options: Mapping[str, Any], *, outdir: Path, fresh: bool, gpus: int, watch: Watch | None = None
) -> None:
    """Train with `options` in a run directory below `outdir`, in `gpus` processes.

    Under torchrun every process calls this, and `gpus` is their number.

    Args:
        options: All options of the run.
        outdir: Where run directories are.
        fresh: Whether to start anew where an equal run is.
        gpus: Number of processes.
        watch: Called on rank 0 with the run directory and whether training is done, after every
            snapshot and at the end; a function of a module, as other processes look it up.

    Raises:
        SystemExit: Training was interrupted, status 130, or diverged, status 3.
        ValueError: A user's mistake.
    """
    if gpus == 1 or "RANK" in os.environ:
        _work(options, outdir, fresh, watch)
        return
    with distributed.passing_on_signals() as received:
        try:
            distributed.spawn(_work_in_new_process, (options, outdir, fresh, watch), gpus)
        except SystemExit as ended:
            raise SystemExit(INTERRUPTED if received else ended.code) from None
    if received:
        raise SystemExit(INTERRUPTED)


def _work_in_new_process(
    options: Mapping[str, Any], outdir: Path, fresh: bool, watch: Watch | None
) -> None:
    for place in options["external"]:
        load_external(place)
    _work(options, outdir, fresh, watch)


def _work(options: Mapping[str, Any], outdir: Path, fresh: bool, watch: Watch | None) -> None:
    device = distributed.init(options["device"])
    status = 0
    try:
        with Requests() as requests:
            _train(options, outdir, fresh, device, requests, watch)
    except Interrupted as reason:
        _say(requests, f"{reason}; the same command resumes from there")
        if not reason.together:  # other ranks may be anywhere: do not wait for them
            raise SystemExit(INTERRUPTED) from None
        status = INTERRUPTED
    except Diverged as reason:
        if distributed.rank() == 0:
            print(f"Error: {legible(reason)}", file=sys.stderr, flush=True)
        status = DIVERGED
    except BrokenPipeError:  # in a line that is said before there is anything to save
        silence_output()
        raise SystemExit(INTERRUPTED) from None
    finally:
        distributed.shutdown()
    if status:  # only now: ranks that were interrupted leave together, too
        raise SystemExit(status)


def _train(
    options: Mapping[str, Any],
    outdir: Path,
    fresh: bool,
    device: Any,
    requests: Requests,
    watch: Watch | None,
) -> None:
    operations = select(options["ops"], device)
    plan = _on_rank_0(lambda: run_dirs.plan(outdir, options, fresh))
    for note in plan.notes:
        _say(requests, note)
    if plan.finished:
        _say(requests, run_dirs.about_finished(plan))
        return
    with contextlib.ExitStack() as stack:

        def choose() -> Path:
            if plan.run is None:  # what would be refused is refused before a folder is made
                with distributed.alone():
                    check(plan.options, ImageDataset(**plan.options["dataset"], check=False))
            run = plan.run or run_dirs.create(outdir, plan.options)
            stack.enter_context(run_dirs.lock(run))
            run_dirs.write_options(run, plan.options)
            environment.record(run, device)
            return run

        run = _on_rank_0(choose)
        _say(requests, f"{'Resuming in' if plan.run else 'Training in'} {run}\n{operations}")
        told = watch if watch and distributed.rank() == 0 else None
        train(
            plan.options, run, device, requests, after_snapshot=told and partial(told, run, False)
        )
        if told:
            told(run, True)


def _say(requests: Requests, text: str) -> None:
    if distributed.rank() == 0:
        requests.say(text)


def _on_rank_0(work: Callable[[], T]) -> T:
    """Return on every rank what `work` returns on rank 0; where it is a mistake, all leave."""
    if distributed.world_size() == 1:
        return work()
    result, failed = None, False
    if distributed.rank() == 0:
        try:
            result = work()
        except (ValueError, OSError) as error:
            print(f"Error: {legible(error)}", file=sys.stderr, flush=True)
            failed = True
    value: T
    value, failed = distributed.gather((result, failed))[0]
    if failed:
        raise SystemExit(2)
    return value
