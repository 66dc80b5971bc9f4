"""Training runs of an experiment: whatever is missing is trained, some runs side by side.

Each run is one `train.py` command in a folder of its own, so that the same experiment again resumes
where it was interrupted, and finished runs are not repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from training.training_loop import is_finished  # noqa: E402


@dataclass(frozen=True)
class Trial:
    """One training run.

    Attributes:
        method: Name of what is tried, as tables and plots call it.
        options: Options of `train.py`, without `--outdir` and `--seed`.
        seed: Seed of the run.
        group: What the run belongs to, as the target domain; may be empty.
    """

    method: str
    options: str
    seed: int = 0
    group: str = ""

    def folder(self, out: Path) -> Path:
        """Return the `--outdir` of the run; other options have another one."""
        digest = hashlib.sha256(self.options.encode()).hexdigest()[:6]
        return out / self.group / slug(self.method) / f"seed{self.seed}-{digest}"

    def command(self, out: Path) -> str:
        """Return the command line, without `python`."""
        return f"train.py --outdir={self.folder(out)} {self.options} --seed={self.seed}"

    def option(self, name: str) -> str:
        """Return what is given to an option."""
        return str(re.findall(rf"--{name}=(\S+)", self.options)[0])

    @property
    def kimg(self) -> float:
        """Return how long the run is."""
        return float(self.option("kimg"))

    def progress(self, out: Path) -> float:
        """Return how many kimg the run has come to, as of its last status line."""
        files = sorted((ROOT / self.folder(out)).glob("0*/stats.jsonl"))
        lines = files[-1].read_text().rpartition("\n")[0].splitlines() if files else []
        return json.loads(lines[-1])["nimg"] / 1000 if lines else 0.0

    def doing(self, out: Path) -> str:
        """Return what the run does before or between its iterations, as far as it says so."""
        log = ROOT / self.folder(out) / "output.txt"
        last = log.read_text().rstrip().rpartition("\n")[2] if log.exists() else ""
        return f"{self.method}: {last}" if re.match(r"[^:]+: \d+ of \d+", last) else ""

    def finished(self, out: Path) -> Path | None:
        """Return the directory of the finished run, or None."""
        done = [run for run in sorted((ROOT / self.folder(out)).glob("0*")) if is_finished(run)]
        return done[-1] if done else None


def slug(name: str) -> str:
    """Return a name as folders and options spell it: `EWC + APA` as `ewc-apa`."""
    return re.sub(r"[^a-z0-9.=]+", "-", re.sub(r" *\+ *", "-", name.lower())).strip("-")


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
        trials: What to train, the most important first.
        out: Folder for all runs, below the project's root.
        jobs: Runs at a time; default: as many as there are cores, or 1 with a GPU.
    """
    jobs = jobs or (1 if torch.cuda.is_available() else cores())
    threads = max(cores() // jobs, 1)
    with ThreadPoolExecutor(jobs) as pool:
        running = [
            pool.submit(_train_one, trial, out, threads)
            for trial in trials
            if trial.finished(out) is None
        ]
        watch(trials, out, running)
    return finished(trials, out)


def _train_one(trial: Trial, out: Path, threads: int) -> None:
    folder = ROOT / trial.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "commit.txt").write_text(commit())
    run(trial.command(out), folder / "output.txt", threads)


def cores() -> int:
    """Return how many cores this process may use."""
    known = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def commit() -> str:
    """Return the checked-out commit; with a + where files differ from it, empty without git."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def finished(trials: Iterable[Trial], out: Path) -> dict[Trial, Path]:
    """Return the run directories of those trials that are finished."""
    return {trial: found for trial in trials if (found := trial.finished(out))}


def watch(trials: Sequence[Trial], out: Path, running: Sequence[Future[None]]) -> None:
    """Show a progress bar over all trials until they are done, or the first one fails."""
    total = sum(trial.kimg for trial in trials)
    start = sum(trial.progress(out) for trial in trials)
    with tqdm(total=total, initial=start, unit="kimg", disable=not running) as bar:
        while True:
            ended, waiting = wait(running, timeout=2, return_when=FIRST_EXCEPTION)
            bar.n = round(sum(trial.progress(out) for trial in trials), 2)
            bar.set_postfix_str("; ".join(filter(None, (trial.doing(out) for trial in trials))))
            if failed := [future for future in ended if future.exception()]:
                for future in running:
                    future.cancel()
                failed[0].result()
            if not waiting:
                return
