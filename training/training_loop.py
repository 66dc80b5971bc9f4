"""The training loop: it knows batches, optimizers and snapshots, and no method by name."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import metrics
from stylegan2_fewshot import Plugins, Run, distributed, stats
from stylegan2_fewshot.files import replacing, write_text
from stylegan2_fewshot.loss import StyleGAN2Loss
from stylegan2_fewshot.plugin import seed_of

from . import checkpoint, construction, grids, pickles, run_log
from .dataset import IN_MEMORY_BYTES, ImageDataset, InfiniteSampler

FINISHED_FILE = "finished.json"
BEST_FILE = "network-best.pkl"
COMPARE_EVERY = 16  # iterations after which ranks tell one another whether to stop


class Interrupted(Exception):
    """Training was asked to stop, and has saved all that it needs to go on."""


@dataclass
class State:
    """What training changes, and what a checkpoint holds."""

    G: nn.Module
    D: nn.Module
    G_ema: nn.Module
    optimizers: dict[str, torch.optim.Optimizer]
    plugins: Plugins
    loss: StyleGAN2Loss
    dataset: ImageDataset
    cur_nimg: int = 0
    best: dict[str, Any] | None = None
    snapshots_since_best: int = 0
    trained: dict[str, dict[str, nn.Parameter]] = field(default_factory=dict)

    def tensors(self) -> dict[str, Any]:
        """Return the content of a checkpoint; every rank has to call this."""
        parts = {"G": self.G, "D": self.D, "G_ema": self.G_ema, "plugins": self.plugins}
        return {
            **{name: part.state_dict() for name, part in parts.items()},
            **{f"{name}_opt": opt.state_dict() for name, opt in self.optimizers.items()},
            "pl_mean": self.loss.pl_mean,
            "pl_means": distributed.gather(self.loss.pl_mean.item()),  # every rank has its own
            "cur_nimg": self.cur_nimg,
            "best": self.best,
            "snapshots_since_best": self.snapshots_since_best,
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take over the content of a checkpoint."""
        for name in ("G", "D", "G_ema", "plugins"):
            getattr(self, name).load_state_dict(saved[name])
        for name, opt in self.optimizers.items():
            opt.load_state_dict(saved[f"{name}_opt"])
        means = saved.get("pl_means", ())
        own = (
            means[distributed.rank()]
            if len(means) == distributed.world_size()
            else saved["pl_mean"].item()
        )
        self.loss.pl_mean.fill_(own)
        for name in ("cur_nimg", "best", "snapshots_since_best"):
            setattr(self, name, saved[name])


def is_finished(run_dir: Path) -> bool:
    """Return whether training in a run directory has come to its end."""
    return (run_dir / FINISHED_FILE).exists()


def train(options: Mapping[str, Any], run_dir: Path, device: torch.device) -> None:
    """Train, or go on where the newest checkpoint in `run_dir` ends.

    Args:
        options: All options of the run, as in its training_options.json.
        run_dir: Where all files go.
        device: The device of this rank.

    Raises:
        Interrupted: SIGINT or SIGTERM came, and a checkpoint has been written.
        ValueError: The options do not fit the data set or the source network.
    """
    construction.set_up_torch(options)
    dataset = ImageDataset(**options["dataset"], check=False)  # the command has looked at it
    dataset.keep_decoded(IN_MEMORY_BYTES // distributed.world_size())
    state, source = construct(options, dataset, device)
    saved = checkpoint.load_newest(run_dir)
    fresh = saved is None
    if saved is not None:
        state.load(saved)
    del saved  # it is as large as all networks
    log = run_log.RunLog(run_dir, state.cur_nimg)
    dataset = state.dataset
    log.say(construction.summary(options, dataset, state.G, state.D, source, state.cur_nimg))
    run = _Run(options, run_dir, device, dataset, state, log)
    run.choose_metrics()
    if fresh:
        run.rehearse()
    with _stop_requests() as stop:
        run.to_the_end(stop)


def construct(
    options: Mapping[str, Any], dataset: ImageDataset, device: torch.device
) -> tuple[State, str | None]:
    """Build networks, plugins and optimizers; return them and the source network's path."""
    torch.manual_seed(seed_of(options["seed"], "init"))
    plugins = Plugins.create(options["plugins"])
    dataset = plugins.condition(dataset)
    G, D, G_ema, path, source = construction.networks(options, dataset, device)
    rest = dict(batch_size=options["batch_size"], seed=options["seed"], source=source)
    start = dict(resumed=path, resumed_from=options["resume_from"]) if path else {}
    plugins.setup(Run(G, D, dataset=dataset, device=device, G_ema=G_ema, **rest, **start))
    distributed.broadcast_([t for net in (G, D, G_ema, plugins) for t in net.state_dict().values()])
    loss = StyleGAN2Loss(device, G.mapping, G.synthesis, D, plugins, **options["loss"])
    trained, optimizers = {}, {}
    for name, net in (("G", G), ("D", D)):
        net.requires_grad_(False)
        named = net.named_parameters()
        trained[name] = {key: param for key, param in named if plugins.trainable(name, key)}
        if not trained[name]:
            raise ValueError(f"no parameter of {name} is left to train; freeze fewer layers")
        interval = options[f"{name}_reg_interval"]
        optimizers[name] = _optimizer(
            list(trained[name].values()), options[f"{name}_opt"], interval
        )
    return State(G, D, G_ema, optimizers, plugins, loss, dataset, trained=trained), path


def _optimizer(
    params: Iterable[nn.Parameter], kwargs: Mapping[str, Any], interval: int
) -> torch.optim.Optimizer:
    """Return Adam, corrected for the extra steps of lazy regularisation.

    Karras et al. 2020 (arXiv 1912.04958), appendix B.
    """
    ratio = interval / (interval + 1)
    betas = tuple(float(beta) ** ratio for beta in kwargs["betas"])
    return torch.optim.Adam(params, lr=kwargs["lr"] * ratio, betas=betas, eps=kwargs["eps"])


@dataclass
class _Run:
    """One process's part in a training run."""

    options: Mapping[str, Any]
    run_dir: Path
    device: torch.device
    dataset: ImageDataset
    state: State
    log: run_log.RunLog
    metrics: list[str] = field(default_factory=list)

    def choose_metrics(self) -> None:
        """Find what the metrics need; training goes on without those that lack something."""
        if names := self.options["metrics"]:
            self.metrics, troubles = metrics.usable(
                names, self.dataset, self._reference, device=self.device, trust=self._trust
            )
            for trouble in troubles:
                self.log.say(trouble)

    def rehearse(self) -> None:
        """Train while plugins look on, take all of it back, and let them decide."""
        state, iterations = self.state, self.state.plugins.rehearsal
        if not iterations:
            return
        self.log.say(f"Rehearsal of {iterations} iterations, which are taken back")
        before = copy.deepcopy(state.tensors())
        for index, (images, labels) in enumerate(itertools.islice(self._batches(), iterations)):
            if index == iterations // 2:
                stats.collect()  # how it begins is not how it goes on
            self._iterate(images, labels)
        moments = stats.collect()
        state.load(before)
        state.plugins.rehearsed(moments)

    def to_the_end(self, stop: Sequence[int]) -> None:
        """Iterate until the last image, or until somebody asks to stop."""
        total = int(self.options["total_kimg"] * 1000)
        self._first_pictures()
        clock = _Clock(self.state.cur_nimg)
        hidden = None if distributed.rank() == 0 else True  # None: hidden unless on a terminal
        bar = tqdm(
            total=total, initial=self.state.cur_nimg, unit="img", disable=hidden, leave=False
        )
        with bar:
            for images, labels in self._batches():
                if self.state.cur_nimg >= total:
                    break
                before = self.state.cur_nimg
                self._iterate(images, labels)
                bar.update(self.state.cur_nimg - before)
                done = self.state.cur_nimg >= total
                tick = _tick(self.options, self.state.cur_nimg)
                ticked = done or tick > _tick(self.options, before)
                if ticked and self._maintain(tick, done, clock):
                    break
                if self._must_stop(bool(stop)):
                    self._save_checkpoint()
                    raise Interrupted(f"stopped at {self.state.cur_nimg / 1000:.1f} kimg")
        self._finish()

    def _must_stop(self, asked: bool) -> bool:
        """Return whether any rank was asked to stop.

        Ranks compare every few iterations only, for on GPUs that waits for all that is under way.
        """
        iteration = self.state.cur_nimg // self.options["batch_size"]
        if distributed.world_size() > 1 and iteration % COMPARE_EVERY:
            return False
        return any(distributed.gather(asked))

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return this rank's part of each batch: uint8 images and labels, on the CPU."""
        sampler = InfiniteSampler(
            len(self.dataset),
            seed=self.options["seed"],
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start_index=self.state.cur_nimg,
        )
        return torch.utils.data.DataLoader(
            self.dataset,
            sampler=sampler,
            batch_size=self.options["batch_size"] // distributed.world_size(),
            num_workers=0 if self.dataset.is_in_memory else self.options["workers"],
            pin_memory=self.device.type == "cuda",
        )

    def _iterate(self, images: Tensor, labels: Tensor) -> None:
        """Take one step of G and D, and whatever regularisation is due."""
        state, options = self.state, self.options
        state.loss.cur_nimg = state.cur_nimg
        torch.manual_seed(seed_of(options["seed"], distributed.rank(), state.cur_nimg))
        real = images.to(self.device).float() / 127.5 - 1
        real_c = labels.to(self.device)
        index = state.cur_nimg // options["batch_size"]
        for phase, gain in _phases(options, index):
            self._run_phase(phase, gain, real, real_c)
        self._update_ema()
        state.plugins.after_step(state.cur_nimg)
        state.cur_nimg += options["batch_size"]

    def _run_phase(self, phase: str, gain: float, real: Tensor, real_c: Tensor) -> None:
        state, size = self.state, self.options["batch_gpu"]
        named, opt = state.trained[phase[0]], state.optimizers[phase[0]]
        params = list(named.values())
        z = torch.randn(len(real), state.G.z_dim, device=self.device)
        picks = torch.randint(len(self.dataset), [len(real)])
        gen_c = _labels(self.dataset, picks.tolist()).to(self.device)
        for param in params:
            param.requires_grad_(True)
        opt.zero_grad(set_to_none=True)
        parts = list(zip(*(t.split(size) for t in (real, real_c, z, gen_c)), strict=True))
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            state.loss.accumulate_gradients(phase, *part, sync=last, gain=gain / len(parts))
        for param in params:
            param.requires_grad_(False)
        distributed.average_gradients(params)
        for param in params:
            if param.grad is not None:
                torch.nan_to_num(param.grad, nan=0, posinf=1e5, neginf=-1e5, out=param.grad)
        state.plugins.before_step(phase[0], named)
        opt.step()

    @torch.no_grad()
    def _update_ema(self) -> None:
        options, state = self.options, self.state
        half_life = options["ema_kimg"] * 1000
        if options["ema_rampup"] is not None:
            half_life = min(half_life, state.cur_nimg * options["ema_rampup"])
        beta = 0.5 ** (options["batch_size"] / max(half_life, 1e-8))
        mine, theirs = list(state.G_ema.parameters()), list(state.G.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - beta)
        for mean, value in zip(state.G_ema.buffers(), state.G.buffers(), strict=True):
            mean.copy_(value)

    def _maintain(self, tick: int, done: bool, clock: _Clock) -> bool:
        """Print, save and measure as is due; return whether training should end early."""
        state = self.state
        clock.report(state.cur_nimg, distributed.memory_gb(self.device))
        moments = stats.collect()
        kimg = state.cur_nimg / 1000
        total = self.options["total_kimg"]
        self.log.say(
            run_log.status_line(
                moments, tick=tick, kimg=kimg, total_kimg=total, shown=state.plugins.status()
            )
        )
        self.log.record(moments, state.cur_nimg)
        ended = False
        if done or tick % self.options["snapshot_ticks"] == 0:
            self._save_pictures(f"fakes{int(kimg):06d}.png")
            path = self._save_network()
            ended = self._measure(path)
            self._save_checkpoint()
        clock.end_maintenance(state.cur_nimg)
        return ended

    def _first_pictures(self) -> None:
        if self.state.cur_nimg == 0 and distributed.rank() == 0:
            shown = [self.dataset[i][0] for i in self._shown]
            reals = torch.as_tensor(np.stack(shown)).float() / 127.5 - 1
            self._save_grid("reals.png", reals)
            self._save_pictures("fakes_init.png")

    @functools.cached_property
    def _shown(self) -> list[int]:
        """Which training images the grid shows: spread over the set, the same in every run."""
        count = _columns(self.dataset) * max(min(1080 // self.dataset.resolution, 9), 2)
        order = np.random.RandomState(0).permutation(len(self.dataset))
        return [int(order[i % len(order)]) for i in range(count)]

    def _save_pictures(self, name: str) -> None:
        """Save samples of G_ema at the same latents in every run."""
        if distributed.rank() != 0:
            return
        z = np.random.RandomState(0).randn(len(self._shown), self.state.G.z_dim)
        c = _labels(self.dataset, self._shown).to(self.device)
        batches = zip(
            torch.from_numpy(z).float().to(self.device).split(16), c.split(16), strict=True
        )
        G = copy.deepcopy(self.state.G_ema).eval()
        with torch.no_grad():
            images = torch.cat([G(a, b, noise_mode="const").cpu() for a, b in batches])
        self._save_grid(name, images)

    def _save_grid(self, name: str, images: Tensor) -> None:
        grids.save_png(self.run_dir / name, grids.grid(images, columns=_columns(self.dataset)))

    def _save_network(self) -> Path:
        path = self.run_dir / f"network-snapshot-{self.state.cur_nimg // 1000:06d}.pkl"
        if distributed.rank() == 0:
            pickles.save(
                path,
                G=self.state.G,
                D=self.state.D,
                G_ema=self.state.G_ema,
                augment_pipe=self.state.plugins.augment_pipe(),
                training_set_kwargs=dict(self.options["dataset"]),
            )
            self.state.plugins.snapshot(path)
        return path

    def _measure(self, path: Path) -> bool:
        """Compute the metrics of a snapshot and keep the best one; return whether to give up."""
        if not self.metrics:
            return False
        G = copy.deepcopy(self.state.G_ema).eval()
        results = metrics.compute(
            self.metrics,
            G,
            self.dataset,
            self._reference,
            device=self.device,
            trust=self._trust,
            seed=self.options["seed"],
            kimg=self.state.cur_nimg / 1000,
            snapshot=path.name,
        )
        for index, result in enumerate(results):
            self.log.metric(result, self.state.cur_nimg)
            if index == 0:
                self._judge(result, path)
        patience = self.options["patience"]
        return patience is not None and self.state.snapshots_since_best >= patience

    @property
    def _trust(self) -> metrics.Trust:
        """What the command line says about detectors that are programs."""
        given = self.options.get("trust", {})
        return metrics.Trust(given.get("everything", False), tuple(given.get("hashes", ())))

    @functools.cached_property
    def _reference(self) -> ImageDataset | None:
        """The images to measure against where they are not the training images."""
        if self.options["metric_data"] is None:
            return None
        return ImageDataset(self.options["metric_data"], xflip=self.dataset.xflip)

    def _judge(self, result: dict[str, Any], path: Path) -> None:
        """Keep a copy of the snapshot whose first metric is the best so far."""
        state = self.state
        state.snapshots_since_best += 1
        if metrics.is_better(result, state.best):
            state.best, state.snapshots_since_best = result, 0
            if distributed.rank() == 0:
                best = path.with_name(BEST_FILE)
                with path.open("rb") as source, replacing(best) as copied:
                    shutil.copyfileobj(source, copied)
                state.plugins.snapshot(best)

    def _save_checkpoint(self) -> None:
        content = self.state.tensors()
        if distributed.rank() == 0:
            checkpoint.save(checkpoint.path_at(self.run_dir, self.state.cur_nimg), content)
        distributed.barrier()

    def _finish(self) -> None:
        if distributed.rank() == 0:
            content = json.dumps({"kimg": self.state.cur_nimg / 1000})
            write_text(self.run_dir / FINISHED_FILE, content)
        self.log.say(f"Done: {self.state.cur_nimg / 1000:.1f} kimg, results in {self.run_dir}")


class _Clock:
    """Measures a tick: training, and the maintenance before it."""

    def __init__(self, cur_nimg: int) -> None:
        self._began = self._resumed = time.time()
        self._nimg, self._maintenance = cur_nimg, 0.0

    def report(self, cur_nimg: int, peak_gb: float) -> None:
        self._paused = time.time()
        trained = self._paused - self._resumed
        per_kimg = trained / max(cur_nimg - self._nimg, 1) * 1000
        stats.report("Timing/sec_per_kimg", per_kimg)
        stats.report("Timing/total_sec", self._paused - self._began)
        stats.report("Timing/maintenance_sec", self._maintenance)
        stats.report("Resources/peak_gb", peak_gb)

    def end_maintenance(self, cur_nimg: int) -> None:
        self._resumed, self._nimg = time.time(), cur_nimg
        self._maintenance = self._resumed - self._paused


def _phases(options: Mapping[str, Any], index: int) -> list[tuple[str, float]]:
    """Return the phases of an iteration, with the factor that makes up for lazy ones."""
    phases = []
    for net in "GD":
        phases.append((f"{net}main", 1.0))
        interval = options[f"{net}_reg_interval"]
        if index % interval == 0:
            phases.append((f"{net}reg", float(interval)))
    return phases


def _tick(options: Mapping[str, Any], cur_nimg: int) -> int:
    """Return the tick that an image belongs to: a function of the images alone, so that an
    interrupted run saves where the uninterrupted one would have."""
    return int(cur_nimg // (options["kimg_per_tick"] * 1000))


def _columns(dataset: ImageDataset) -> int:
    return max(min(1920 // dataset.resolution, 16), 3)


def _labels(dataset: ImageDataset, indices: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.stack([dataset.get_label(i) for i in indices])).float()


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; the second one takes its usual course at once."""
    received: list[int] = []
    owner = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a process that loads images, and ends with the loop
            return
        received.append(number)
        for kind in previous:
            signal.signal(kind, signal.SIG_DFL)
        print("\nSaving, then leaving; once more to leave at once.", flush=True)

    kinds = (signal.SIGINT, signal.SIGTERM)
    previous = {}
    with contextlib.suppress(ValueError):  # signals reach the main thread alone
        previous = {kind: signal.signal(kind, note) for kind in kinds}
    try:
        yield received
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
