"""The training loop: it knows batches, optimizers and snapshots, and no method by name."""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from stylegan2_fewshot import adaptive, distributed, stats

from . import checkpoint, construction, graphs, inputs, memory, run_log, sources
from .clock import Clock, tick
from .dataset import IN_MEMORY_BYTES, ImageDataset
from .phases import Phases, about_loading, batches
from .run_dir import finish, is_finished, snapshots
from .snapshots import Snapshots
from .state import State, construct
from .stopping import Diverged, Interrupted, Requests

__all__ = ["Diverged", "Interrupted", "construct", "is_finished", "train"]

COMPARE_EVERY = 16  # iterations after which ranks tell one another whether to stop
LARGE_SCORE = 1e4


def train(
    options: Mapping[str, Any],
    run_dir: Path,
    device: torch.device,
    requests: Requests | None = None,
    after_snapshot: Callable[[], None] | None = None,
) -> None:
    """Train, or resume from the newest checkpoint in `run_dir`.

    Args:
        options: All options of the run, as in its training_options.json.
        run_dir: Where all files go.
        device: The device of this rank.
        requests: Where requests to stop arrive; None to listen for signals here.
        after_snapshot: Called on this rank when a snapshot is saved and measured.

    Raises:
        Diverged: A loss or a weight is not finite.
        Interrupted: Somebody asked to stop, and all that a resume needs has been written.
        ValueError: The options do not fit the data set or the source network.
    """
    if requests is None:
        with Requests() as requests:
            train(options, run_dir, device, requests, after_snapshot)
        return
    construction.set_up_torch(options)
    with requests.at_once("stopped before training began"):
        run, fresh = _begin(options, run_dir, device, requests)
        run.after_snapshot = after_snapshot
        run.snapshots.choose_metrics()
        if fresh:
            run.rehearse()
    try:
        run.to_the_end()
    except Exception as error:
        run.leave_something(error)
        if memory.is_exhausted(error):
            raise ValueError(memory.advice(options)) from error
        if words := about_loading(error):
            raise ValueError(words) from error
        raise


def _begin(
    options: Mapping[str, Any], run_dir: Path, device: torch.device, requests: Requests
) -> tuple[_Run, bool]:
    """Return a run where its newest checkpoint is, and whether it has none."""
    dataset = ImageDataset(**options["dataset"], check=False)  # the command has looked at it
    dataset.keep_decoded(IN_MEMORY_BYTES // distributed.world_size())
    saved = checkpoint.load_newest(run_dir)
    fresh, known = saved is None, saved and saved.get("inputs")
    given = inputs.describe(dataset, options["resume"])
    inputs.refuse_changes(options, known, given)
    if not fresh:
        options = _without_lost_source(options, run_dir)
    state, source = construct(options, dataset, device, estimates=fresh)
    state.inputs = known or given
    stats.restore([])
    if saved is not None:
        state.load(saved)
    log = run_log.RunLog(
        run_dir, state.cur_nimg, say=requests.say, measured=state.unmeasured is None
    )
    log.options(options)
    about = (state.dataset, state.G, state.D, source, state.cur_nimg)
    log.say(construction.summary(options, *about))
    if text := adaptive.about_targets(state.plugins):
        log.say(text)
    return _Run(options, run_dir, device, state, log, requests), fresh


def _without_lost_source(options: Mapping[str, Any], run_dir: Path) -> Mapping[str, Any]:
    """Return options in which a source network that is gone is replaced by the run's own newest.

    A checkpoint holds all weights; the source would only say what the networks look like.
    """
    resume = options["resume"]
    if resume is None or sources.is_here(resume) or not snapshots(run_dir):
        return options
    return {**options, "resume": str(snapshots(run_dir)[-1])}


class _Run:
    """One process's part in a training run."""

    def __init__(
        self,
        options: Mapping[str, Any],
        run_dir: Path,
        device: torch.device,
        state: State,
        log: run_log.RunLog,
        requests: Requests,
    ) -> None:
        self.options, self.run_dir, self.device = options, run_dir, device
        self.dataset, self.state, self.log, self.requests = state.dataset, state, log, requests
        self.snapshots = Snapshots(options, run_dir, state, log, device)
        self.phases = Phases(options, state, device, graphs.of(options, state, device, log.say))
        self.clock = Clock(options, state.cur_nimg)
        self.after_snapshot: Callable[[], None] | None = None

    def rehearse(self) -> None:
        """Train while plugins look on, take all of it back, and let them decide."""
        state, iterations = self.state, self.state.plugins.rehearsal
        if not iterations:
            return
        self.log.say(f"Rehearsal of {iterations} iterations, which are taken back")
        before = copy.deepcopy(state.tensors())
        data = batches(self.options, self.dataset, state.cur_nimg, self.device)
        for index, (images, labels) in enumerate(itertools.islice(data, iterations)):
            if index == iterations // 2:
                stats.collect()  # the start is not typical of the rest
            self._iterate(images, labels)
        moments = stats.collect()
        state.load(before)
        state.plugins.rehearsed(moments)

    def to_the_end(self) -> None:
        """Iterate until the last image, or until somebody asks to stop."""
        total = int(self.options["total_kimg"] * 1000)
        start = self.state.cur_nimg
        began = time.monotonic()
        self.snapshots.begin()
        self.clock.expect(time.monotonic() - began)  # a snapshot is little more than its pictures
        ended = self._catch_up()
        self.clock.resume(start)
        hidden = None if distributed.rank() == 0 else True  # None: hidden unless on a terminal
        bar = tqdm(total=total, initial=start, unit="img", disable=hidden, leave=False)
        data = batches(self.options, self.dataset, self.state.cur_nimg, self.device)
        with bar:
            for images, labels in () if ended else data:
                if self.state.cur_nimg >= total:
                    break
                self._stop_if_asked()
                before = self.state.cur_nimg
                self._iterate(images, labels)
                bar.update(self.state.cur_nimg - before)
                done = self.state.cur_nimg >= total
                now = tick(self.options, self.state.cur_nimg)
                ticked = done or now > tick(self.options, before)
                if ticked and self._maintain(now, done):
                    break
                if not ticked and before == start:
                    self._say_first(now)
        self._finish()

    def _say_first(self, now: int) -> None:
        """Print a status line after the first iteration, long before the first tick."""
        cur_nimg, clock = self.state.cur_nimg, self.clock
        clock.pause(cur_nimg)
        sec_per_kimg = self.phases.sec_per_kimg()
        left = clock.left(cur_nimg, sec_per_kimg=sec_per_kimg)
        peak = distributed.memory_gb(self.device)
        line = run_log.times(now, cur_nimg, clock.elapsed(), left, sec_per_kimg, peak)
        self.log.say(line + ("  (and metrics, timed next)" if self.snapshots.metrics else ""))
        if self.snapshots.metrics:
            each, once = self.snapshots.measuring_sec(quick=True)
            clock.expect(each)
            left = clock.left(cur_nimg, sec_per_kimg=sec_per_kimg) + once
            self.log.say(run_log.about_metrics(each, once, left))
        clock.resume(cur_nimg)

    def leave_something(self, error: Exception) -> None:
        """Save the network and pictures where training fails, if that can be done."""
        with contextlib.suppress(Exception):
            if not isinstance(error, Diverged) and self.state.not_finite() is None:
                self.snapshots.save()

    def _stop_if_asked(self) -> None:
        if self._must_stop(self.requests.asked):
            self._refuse_not_finite({})
            self._save_checkpoint()
            self.snapshots.save()
            raise Interrupted(f"stopped at {self.state.cur_nimg / 1000:.1f} kimg")

    def _must_stop(self, asked: bool) -> bool:
        """Return whether any rank was asked to stop.

        Ranks compare every few iterations only, for on GPUs that waits for all that is under way.
        """
        iteration = self.state.cur_nimg // self.options["batch_size"]
        if distributed.world_size() > 1 and iteration % COMPARE_EVERY:
            return False
        return any(distributed.gather(asked))

    def _iterate(self, images: Tensor, labels: Tensor) -> None:
        self.phases.iterate(images, labels)

    def _maintain(self, now: int, done: bool) -> bool:
        """Print, save and measure as is due; return whether training should end early."""
        state, clock = self.state, self.clock
        clock.pause(state.cur_nimg)
        clock.report(distributed.memory_gb(self.device))
        moments = stats.collect()
        self._refuse_not_finite(moments)
        line = run_log.status_line(
            moments,
            tick=now,
            cur_nimg=state.cur_nimg,
            left_sec=clock.left(state.cur_nimg),
            shown=state.plugins.status(),
        )
        self.log.say(line)
        self.log.record(moments, state.cur_nimg)
        self._warn_of_large_scores(moments)
        saved = done or now % self.options["snapshot_ticks"] == 0
        ended = saved and self._take_snapshot()
        clock.resume(state.cur_nimg, saved=saved)
        return ended

    def _take_snapshot(self) -> bool:
        """Save and measure; return whether training should end early.

        The checkpoint comes first, so that nothing is lost while metrics are computed.
        """
        self.state.unmeasured = self.snapshots.path.name if self.snapshots.metrics else None
        self._save_checkpoint()
        self.snapshots.save()
        ended = self._catch_up()
        if self.after_snapshot:
            self.after_snapshot()
        return ended

    def _catch_up(self) -> bool:
        """Measure a snapshot that is saved but not measured; return whether to end early."""
        if self.state.unmeasured:
            with self.requests.at_once("stopped while measuring"):
                self.snapshots.measure()
            self.state.unmeasured = None
            self._save_checkpoint()
        return bool(self.snapshots.metrics) and self.snapshots.gives_up()

    def _refuse_not_finite(self, moments: Mapping[str, stats.Moments]) -> None:
        """Raise where a loss or a weight is not finite; all ranks do, or none."""
        bad = run_log.not_finite(moments) or self.state.not_finite()
        bad = next((reason for reason in distributed.gather(bad) if reason), None)
        if bad is None:
            return
        last = snapshots(self.run_dir)
        kept = f"the last good snapshot is {last[-1]}" if last else "no snapshot was saved yet"
        raise Diverged(
            f"{bad} at {self.state.cur_nimg / 1000:g} kimg; {kept}; try lower --glr and --dlr, a "
            "higher --gamma, or --precision=fp32"
        )

    def _warn_of_large_scores(self, moments: Mapping[str, stats.Moments]) -> None:
        for name in ("Loss/scores/real", "Loss/scores/fake"):
            if name in moments and abs(mean := moments[name].mean) > LARGE_SCORE:
                self.log.say(
                    f"Warning: {name} is {mean:.3g}: D's logits run away; a higher --gamma or a "
                    "lower --dlr holds them"
                )

    def _save_checkpoint(self) -> None:
        content = self.state.tensors()
        if distributed.rank() == 0:
            checkpoint.save(checkpoint.path_at(self.run_dir, self.state.cur_nimg), content)
        distributed.barrier()

    def _finish(self) -> None:
        if distributed.rank() == 0:
            finish(self.run_dir, self.options, self.state.cur_nimg)
        if text := adaptive.reached(self.state.plugins):
            self.log.say(text)
        self.log.say(f"Done: {self.state.cur_nimg / 1000:.1f} kimg, results in {self.run_dir}")
