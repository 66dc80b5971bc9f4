"""Interrupts training at random moments, and compares with training that was left alone.

    python -m tests.interruptions --kills=50 --terms=20

Trains with ada, apa, EWC, a prior and filter banks. All tensors of the last checkpoint, pictures
and networks of every tick's snapshot, and every line of stats.jsonl must be equal, but for the
fields of clock and memory: Timing/*, Resources/* and timestamp. Ends with status 1 where they are
not.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import tiny
import torch
from PIL import Image

from stylegan2_fewshot.methods.prior import instances
from training import checkpoint, pickles, run_dir
from training.dataset import ImageDataset
from training.stopping import Interrupted
from training.training_loop import train

CPU = torch.device("cpu")
NAMED = ("Timing/", "Resources/", "timestamp")
STARTED = "started"


def make_inputs(folder: Path) -> dict[str, Any]:
    """Write images, a source network and a prior; return the options of a run on them."""
    (data := folder / "data").mkdir()
    pixels = np.random.RandomState(0).randint(0, 256, [8, 16, 16, 3], dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(data / f"{number}.png")
    widths = dict(channel_base=128, channel_max=8)
    tiny.save(folder / "source.pkl")
    plugins: dict[str, Any] = {
        "ada": {"target": -1.0, "kimg": 0.1},
        "apa": {"target": -1.0, "kimg": 0.1},
        "bank": {"size": 3},
        "ewc": {"lambda_": 10.0, "samples": 4},
        "prior": {"prior": str(write_prior(folder, data))},
    }
    network = {**widths, "num_fp16_res": 0, "conv_clamp": None}
    adam = dict(lr=0.0025, betas=[0, 0.99], eps=1e-8)
    return dict(
        name="interrupted", seed=3, device="cpu", ops="auto", precision="fp32", nhwc=False,
        dataset=dict(path=str(data), use_labels=False, max_size=None, xflip=True, seed=3),
        G=dict(z_dim=8, w_dim=8, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=network),
        D=dict(**network, epilogue_kwargs=dict(mbstd_group_size=2)),
        G_opt=adam, D_opt=adam,
        loss=dict(r1_gamma=1.0, style_mixing_prob=0.9, pl_weight=2.0),
        plugins=plugins, external=[], explicit={}, batch_size=4, batch_gpu=2,
        kimg_per_tick=0.016, ema_kimg=0.01, ema_rampup=None, G_reg_interval=4, D_reg_interval=3,
        snapshot_ticks=2, metrics=[], metric_data=None, resume=str(folder / "source.pkl"),
        resume_from="G_ema", workers=0, allow_tf32=False, benchmark=False, patience=None,
    )  # fmt: skip


def write_prior(folder: Path, data: Path) -> Path:
    """Write a file of features, six numbers an image, as a backbone would give them."""
    dataset = ImageDataset(data, xflip=True)
    features = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    path = folder / "prior.npz"
    files = {name: instances.digest(content) for name, content in dataset.files()}
    meta = {"backbone": "vgg16", "backbone_sha256": "0" * 64, "resize": "", "files": files}
    instances.save(path, instances.Instances(instances.unit(features), meta))
    return path


def work(options: dict[str, Any], folder: Path) -> None:
    """Train in a process that may be interrupted; status 130 where that was asked for."""
    torch.set_num_threads(1)
    with (folder.parent / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        train(options, folder, CPU)
    except Interrupted:
        os._exit(130)
    os._exit(0)


def train_on(options: dict[str, Any], folder: Path) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work, args=(options, folder))
    process.start()
    return process


def comparable(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield all that has to be equal, by name."""
    state = checkpoint.load_newest(folder)
    yield from _leaves(state, "checkpoint")
    for line in map(json.loads, (folder / "stats.jsonl").read_text().splitlines()):
        yield (
            f"stats.jsonl at {line['nimg']}",
            {key: value for key, value in line.items() if not key.startswith(NAMED)},
        )
    for name in ("reals", "fakes_init", "fakes000000-064", "fakes000000-096"):
        if (picture := folder / f"{name}.png").exists():
            yield name, picture.read_bytes()
    for nimg in (32, 64, 96):
        if (path := run_dir.snapshot_at(folder, nimg)).exists():
            for key, value in pickles.load(path).G_ema.state_dict().items():
                yield f"{path.name} {key}", value


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from _leaves(inner, f"{name}/{key}")
    else:
        yield name, value


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of all that differs between two runs."""
    mine, theirs = dict(comparable(one)), dict(comparable(other))

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and b is not None else a == b

    return [k for k in {**mine, **theirs} if k not in mine or not same(mine[k], theirs.get(k))]


def interrupt(process: Any, kind: signal.Signals, delay: float) -> float | None:
    """Send a signal after a while; return how long the process took to end, None if it had."""
    process.join(delay)
    if process.exitcode is not None:
        return None
    os.kill(process.pid, kind)
    start = time.monotonic()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise click.ClickException(f"{kind.name}: the process did not end within two minutes")
    if process.exitcode not in (130, 0, -kind):
        raise click.ClickException(f"{kind.name}: the process ended with {process.exitcode}")
    return time.monotonic() - start


@click.command()
@click.option("--kills", type=click.IntRange(min=0), default=10, help="SIGKILLs.")
@click.option("--terms", type=click.IntRange(min=0), default=5, help="SIGTERMs.")
@click.option("--images", type=click.IntRange(min=32), default=96, help="Length of a run.")
@click.option("--seed", type=int, default=0, help="Seed of the moments.")
def main(kills: int, terms: int, images: int, seed: int) -> None:
    """Interrupt training at random moments, and compare with training that was left alone."""
    rng = random.Random(seed)
    left = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    rng.shuffle(left)
    bad: list[str] = []
    longest, runs = 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {**make_inputs(folder), "total_kimg": images / 1000}
        (whole := folder / "whole").mkdir()
        start = time.monotonic()
        (reference := train_on(options, whole)).join()
        if reference.exitcode:
            raise click.ClickException((folder / "output.txt").read_text()[-2000:])
        duration = time.monotonic() - start
        while left or runs == 0:
            (run := folder / f"run{runs}").mkdir()
            runs += 1
            while not run_dir.is_finished(run):
                process = train_on(options, run)
                took = None
                if left:
                    took = interrupt(process, left[-1], rng.uniform(0, duration / 2))
                process.join()
                if took is not None:
                    kind = left.pop()
                    longest = max(longest, took if kind == signal.SIGTERM else 0.0)
                    click.echo(f"{kind.name}, {len(left)} left", err=True)
            bad += [f"run {runs - 1}: {name}" for name in differences(whole, run)]
    click.echo(
        f"{kills} SIGKILLs and {terms} SIGTERMs in {runs} runs of {images} images: "
        f"{len(bad)} differences; SIGTERM took {longest:.1f} s at most"
    )
    for line in bad[:20]:
        click.echo(line)
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
