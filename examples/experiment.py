"""What the experiments share: train whatever is missing, two runs side by side, and report.

An experiment is a list of `Trial`s. Each is one `train.py` command in a folder of its own, so
that the same experiment again goes on where it was interrupted, and finished runs are not repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from metrics import results  # noqa: E402
from stylegan2_fewshot.files import replacing, write_text  # noqa: E402
from tools.compare import best_of  # noqa: E402
from training import pickles  # noqa: E402
from training.dataset import ImageDataset  # noqa: E402
from training.training_loop import is_finished  # noqa: E402


@dataclass(frozen=True)
class Trial:
    """One training run.

    Attributes:
        method: Name of what is tried, as tables and plots call it.
        options: Options of `train.py`, without `--outdir` and `--seed`.
        seed: Seed of the run.
    """

    method: str
    options: str
    seed: int = 0

    def folder(self, out: Path) -> Path:
        """Return the `--outdir` of the run; other options have another one."""
        digest = hashlib.sha256(self.options.encode()).hexdigest()[:6]
        return out / slug(self.method) / f"seed{self.seed}-{digest}"

    def command(self, out: Path) -> str:
        """Return the command line, without `python`."""
        return f"train.py --outdir={self.folder(out)} {self.options} --seed={self.seed}"

    @property
    def kimg(self) -> float:
        """Return how long the run is."""
        return float(re.search(r"--kimg=(\S+)", self.options)[1])

    def progress(self, out: Path) -> float:
        """Return how many kimg the run has come to, as of its last status line."""
        files = sorted((ROOT / self.folder(out)).glob("0*/stats.jsonl"))
        lines = files[-1].read_text().rpartition("\n")[0].splitlines() if files else []
        return json.loads(lines[-1])["nimg"] / 1000 if lines else 0.0

    def finished(self, out: Path) -> Path | None:
        """Return the directory of the finished run, or None."""
        done = [run for run in sorted((ROOT / self.folder(out)).glob("0*")) if is_finished(run)]
        return done[-1] if done else None


def slug(name: str) -> str:
    """Return a name as folders and options spell it: `EWC + APA` as `ewc-apa`."""
    return name.replace(" ", "").replace("+", "-").lower()


def run(command: str, log: Path, threads: int | None = None) -> None:
    """Run a command of ours with this Python, from the project's root.

    Args:
        command: The command line, without `python`.
        log: Where its output goes.
        threads: Threads for PyTorch; None for all.

    Raises:
        click.ClickException: The command failed.
    """
    tqdm.write(f"$ python {command}")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    with log.open("a") as stream:
        ended = subprocess.run(
            [sys.executable, *shlex.split(command)],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode:
        reason = log.read_text().strip().rpartition("\n")[2]
        raise click.ClickException(f"{reason}\npython {command}: more in {log}")


def train(trials: Sequence[Trial], out: Path, *, jobs: int | None = None) -> dict[Trial, Path]:
    """Run the trials that are not finished; return the run directory of each.

    On a CPU, several runs of one thread each train faster than one run of several threads.

    Args:
        trials: What to train.
        out: Folder for all runs, below the project's root or absolute.
        jobs: Runs at a time; default: as many as there are cores, or 1 with a GPU.
    """
    known = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    jobs = jobs or (1 if torch.cuda.is_available() else cores)
    threads = max(cores // jobs, 1)
    with ThreadPoolExecutor(jobs) as pool:
        running = [
            pool.submit(run, trial.command(out), ROOT / trial.folder(out) / "output.txt", threads)
            for trial in trials
            if trial.finished(out) is None
        ]
        _watch(trials, out, running)
    return finished(trials, out)


def finished(trials: Iterable[Trial], out: Path) -> dict[Trial, Path]:
    """Return the run directories of those trials that are finished."""
    return {trial: found for trial in trials if (found := trial.finished(out))}


def by_method(runs: Mapping[Trial, Path]) -> dict[str, list[Path]]:
    """Return run directories by method, those of its seeds in their order."""
    found: dict[str, list[Path]] = {}
    for trial, run_dir in runs.items():
        found.setdefault(trial.method, []).append(run_dir)
    return found


def commands(trials: Iterable[Trial], out: Path) -> str:
    """Return for a document the command line of each method's first trial."""
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(trial.method, trial)
    lines = [f"    python {trial.command(out)}" for trial in first.values()]
    return "\n".join(["The commands, those of other seeds alike:", "", *lines])


def _watch(trials: Sequence[Trial], out: Path, running: Sequence[Future[None]]) -> None:
    """Show a progress bar over all trials until they are done, or the first one fails."""
    total = sum(trial.kimg for trial in trials)
    start = sum(trial.progress(out) for trial in trials)
    with tqdm(total=total, initial=start, unit="kimg", disable=not running) as bar:
        waiting = True
        while waiting:
            ended, waiting = wait(running, timeout=2, return_when=FIRST_EXCEPTION)
            bar.update(sum(trial.progress(out) for trial in trials) - bar.n)
            if failed := [future for future in ended if future.exception()]:
                for future in running:
                    future.cancel()
                failed[0].result()


def last_snapshot(run_dir: Path) -> Path:
    """Return the network that a run ended with."""
    return sorted(run_dir.glob("network-snapshot-*.pkl"))[-1]


def last_and_best(run_dir: Path, judge: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return all metric values of a run's last snapshot, and of the best one by `judge`.

    Args:
        run_dir: A finished run.
        judge: Name of the metric that decides which snapshot is best.
    """
    found = results.read(run_dir)
    best, last = best_of(found[judge]), found[judge][-1]
    return _at(found, last["kimg"]), _at(found, best["kimg"])


def measured(network: Path, names: Sequence[str], options: str, folder: Path) -> dict[str, float]:
    """Return metric values of a network, measuring them where they are missing.

    Args:
        network: Network pickle.
        names: Metrics.
        options: Further options of `python -m metrics`.
        folder: Where the results are kept, below the project's root or absolute.
    """
    if len(results.read(ROOT / folder)) < len(names):
        command = f"-m metrics {network} --metrics={','.join(names)} {options} --out={folder}"
        run(command, ROOT / folder / "output.txt")
    found = results.read(ROOT / folder).values()
    return {k: v for lines in found for k, v in lines[-1]["results"].items()}


def _at(found: Mapping[str, list[dict]], kimg: float) -> dict[str, float]:
    at_kimg = (line for lines in found.values() for line in lines if line["kimg"] == kimg)
    return {"kimg": kimg, **{k: v for line in at_kimg for k, v in line["results"].items()}}


@torch.no_grad()
def samples(
    network: Path, seeds: Iterable[int], psi: float = 1.0, label: torch.Tensor | None = None
) -> torch.Tensor:
    """Return images `[N, C, H, W]` in [-1, 1] of a network's G_ema; `generate.py` draws the same.

    Args:
        network: Network pickle.
        seeds: One image each.
        psi: Truncation.
        label: Labels `[N, c_dim]`, or one `[c_dim]` for all, where the network is conditional.
    """
    G = pickles.load(network).G_ema
    z = np.concatenate([np.random.RandomState(seed).randn(1, G.z_dim) for seed in seeds])
    z = torch.from_numpy(z).float()
    c = torch.zeros(len(z), 0) if label is None else label.expand(len(z), -1)
    images = [
        G(*part, truncation_psi=psi, noise_mode="const")
        for part in zip(z.split(16), c.split(16), strict=True)
    ]
    return torch.cat(images).clamp(-1, 1)


def real_images(archive: Path, count: int | None = None) -> torch.Tensor:
    """Return the first images `[N, C, H, W]` of a data set, or all of them, in [-1, 1]."""
    dataset = ImageDataset(archive)
    pixels = np.stack([dataset[i][0] for i in range(len(dataset))[:count]])
    return torch.from_numpy(pixels).float() / 127.5 - 1


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return mean and standard deviation over seeds as text, or the value alone of one seed."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def save_figure(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Write a plot as PNG.

    Args:
        path: File to write.
        size: Width and height in inches.
        draw: Draws into the matplotlib figure that it is given.
    """
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    with replacing(path) as stream:
        figure.savefig(stream, dpi=120, format="png")


def publish(document: Path, section: str, text: str) -> None:
    """Put text into a document, between the marks of a section, in place of what is there.

    Args:
        document: Markdown file; all that stands outside of the section stays.
        section: Name in the marks; they are added at the end where they are missing.
        text: New content.
    """
    begin, end = (f"<!-- {mark}: {section} -->" for mark in ("begin", "end"))
    old = document.read_text() if document.exists() else ""
    head, _, rest = old.partition(begin)
    tail = rest.partition(end)[2] or "\n"
    write_text(document, f"{head}{begin}\n{text.strip()}\n{end}{tail}")


def choice(known: Iterable[str]) -> Callable[[Any, Any, str], list[str]]:
    """Return a callback for an option that takes some of the `known` names, in their order."""
    names = {slug(name): name for name in known}

    def chosen(ctx: click.Context, param: click.Parameter, value: str) -> list[str]:
        asked = value.split(",")
        if unknown := [name for name in asked if name not in names]:
            raise click.BadParameter(f"{unknown[0]} is none of {', '.join(names)}")
        return [name for key, name in names.items() if key in asked]

    return chosen


def numbers(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """Return the seeds that an option names, as `0,1,2`, each of them once."""
    try:
        return list(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError as error:
        raise click.BadParameter(f"must be numbers with commas between, got {value}") from error
