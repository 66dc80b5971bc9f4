"""Snapshots of a run: the network pickle, pictures of it, its metrics, and the best one."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import metrics
from stylegan2_fewshot import distributed
from stylegan2_fewshot.files import replacing
from stylegan2_fewshot.pixels import to_float

from . import grids, pickles, run_log
from .dataset import ImageDataset
from .phases import labels_of
from .run_dir import moment, snapshot_at
from .state import State

BEST_FILE = "network-best.pkl"


class Snapshots:
    """Writes what a run leaves to look at, and measures it; files come from rank 0 alone.

    Args:
        options: Options of the run.
        run_dir: Where files go.
        state: What is trained.
        log: The run's log.
        device: The device of this rank.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        run_dir: Path,
        state: State,
        log: run_log.RunLog,
        device: torch.device,
    ) -> None:
        self._options, self._run_dir, self._state = options, run_dir, state
        self._log, self._device = log, device
        self._dataset = state.dataset
        self.metrics: list[str] = []

    def choose_metrics(self) -> None:
        """Find what the metrics need; training continues without those that lack something."""
        if names := self._options["metrics"]:
            self.metrics, troubles = metrics.usable(
                names, self._dataset, self._reference, device=self._device, trust=self._trust
            )
            for trouble in troubles:
                self._log.say(trouble)

    def begin(self) -> None:
        """Save pictures of the data, and of what the network makes before training.

        On resume, save what a killed process left out: pictures come last.
        """
        if self._state.cur_nimg:
            if not (self._run_dir / f"{self._fakes}.png").exists():
                self.save()
        elif distributed.rank() == 0:
            shown = [self._dataset[i][0] for i in self._shown]
            reals = to_float(torch.as_tensor(np.stack(shown)))
            self._save_picture("reals", reals)
            self._save_fakes("fakes_init")

    @property
    def path(self) -> Path:
        """Where the network of this moment is saved."""
        return snapshot_at(self._run_dir, self._state.cur_nimg)

    @property
    def _fakes(self) -> str:
        return f"fakes{moment(self._state.cur_nimg)}"

    def save(self) -> None:
        """Save the network and pictures of it."""
        if distributed.rank() == 0:
            self._save_network()
            self._save_fakes(self._fakes)

    def measure(self) -> None:
        """Compute the metrics of this moment's snapshot, and keep it if it is the best so far."""
        G = copy.deepcopy(self._state.G_ema).eval()
        results = metrics.compute(
            self.metrics,
            G,
            self._dataset,
            self._reference,
            device=self._device,
            trust=self._trust,
            seed=self._options["seed"],
            kimg=self._state.cur_nimg / 1000,
            snapshot=self.path.name,
        )
        for index, result in enumerate(results):
            self._log.metric(result, self._state.cur_nimg)
            if index == 0:
                self._judge(result, self.path)

    def measuring_sec(self, *, quick: bool = False) -> metrics.Seconds:
        """Return how long the metrics of a snapshot take, from a few of the images they need."""
        if not self.metrics:
            return metrics.Seconds(0.0, 0.0)
        G = copy.deepcopy(self._state.G_ema).eval()
        images = (self._dataset, self._reference)
        return metrics.seconds(
            self.metrics, G, *images, device=self._device, trust=self._trust, quick=quick
        )

    def gives_up(self) -> bool:
        """Return whether as many snapshots as `patience` says have brought no improvement."""
        patience = self._options["patience"]
        return patience is not None and self._state.snapshots_since_best >= patience

    def _judge(self, result: dict[str, Any], path: Path) -> None:
        state = self._state
        state.snapshots_since_best += 1
        if metrics.is_better(result, state.best):
            state.best, state.snapshots_since_best = result, 0
            if distributed.rank() == 0:
                best = path.with_name(BEST_FILE)
                with path.open("rb") as source, replacing(best) as copied:
                    shutil.copyfileobj(source, copied)
                state.plugins.snapshot(best)

    @property
    def _trust(self) -> metrics.Trust:
        """What the command line says about detectors that are programs."""
        given = self._options.get("trust", {})
        return metrics.Trust(given.get("everything", False), tuple(given.get("hashes", ())))

    @functools.cached_property
    def _reference(self) -> ImageDataset | None:
        """The images to measure against where they are not the training images."""
        if self._options["metric_data"] is None:
            return None
        return ImageDataset(self._options["metric_data"], xflip=self._dataset.xflip)

    def _save_network(self) -> None:
        state, path = self._state, self.path
        pickles.save(
            path,
            G=state.G,
            D=state.D,
            G_ema=state.G_ema,
            augment_pipe=state.plugins.augment_pipe(),
            training_set_kwargs=dict(self._options["dataset"]),
        )
        state.plugins.snapshot(path)

    @functools.cached_property
    def _shown(self) -> list[int]:
        """Which training images the grid shows: spread over the set, the same in every run."""
        count = self._columns * max(min(1080 // self._dataset.resolution, 9), 2)
        order = np.random.RandomState(0).permutation(len(self._dataset))
        return [int(order[i % len(order)]) for i in range(count)]

    @property
    def _columns(self) -> int:
        return max(min(1920 // self._dataset.resolution, 16), 3)

    def _save_fakes(self, name: str) -> None:
        """Save samples of G_ema at the same latents in every run."""
        z = np.random.RandomState(0).randn(len(self._shown), self._state.G.z_dim)
        c = labels_of(self._dataset, self._shown).to(self._device)
        batches = zip(
            torch.from_numpy(z).float().to(self._device).split(16), c.split(16), strict=True
        )
        G = copy.deepcopy(self._state.G_ema).eval()
        with torch.no_grad():
            images = torch.cat([G(a, b, noise_mode="const").cpu() for a, b in batches])
        self._save_picture(name, images)

    def _save_picture(self, name: str, images: Tensor) -> None:
        picture: Image.Image = grids.grid(images, columns=self._columns)
        grids.save_png(self._run_dir / f"{name}.png", picture)
        self._log.picture(name.rstrip("0123456789-"), picture, self._state.cur_nimg)
