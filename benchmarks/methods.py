"""What every method costs beside plain fine-tuning, in CPU time and in memory.

    OMP_NUM_THREADS=1 python -m benchmarks.methods
    python -m benchmarks.methods --method="mine=--plugin=my.py:Mine --mine-weight=1" --rounds=3

Each method adapts the example network in a process of its own, all in turn, for as many rounds as
are asked for. Values are minima over the rounds. CPU time is that of the training iterations alone,
with lazy regularisation and G's average; memory is the process's peak, PyTorch and all.
"""

from __future__ import annotations

import datetime
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from training.environment import processor

ROOT = Path(__file__).resolve().parent.parent
BASE = "fine-tuning"
METHODS = {
    BASE: "",
    "ada at p = 0.2": "--aug=fixed --p=0.2",
    "apa": "--aug=apa",
    "diffaugment": "--aug=diffaugment",
    "ewc": "--ewc-lambda=30 --ewc-samples=16",
    "lecam": "--lecam-lambda=3e-7",
    "freezed": "--freezed=4",
    "bank": "--bank-size=4",
    "tune": "--tune=affine-bias",
    "cdc": "--cdc-lambda=1000",
    "dcl": "--dcl-g=2",
    "fsgan": "--fsgan=GD",
    "rick": "--rick-freeze=40 --rick-warmup=0 --rick-every=8",
    "adam": "--adam-percentile=50 --adam-probe=1 --adam-batches=1",
    "minegan": "--minegan-layers=2 --minegan-alone=0",
}
SHARED = (
    "--outdir=out --mirror=1 --batch=4 --gamma=0.2 --pl-weight=0 --ema-kimg=2 --metrics=none "
    "--device=cpu"
)
UNTIMED = 16  # iterations that come first: what is set up late, and one of each kind
Row = dict[str, float]


@click.command(context_settings={"show_default": True})
@click.option("--data", default="examples/lorelei-ten.zip", help="Images to adapt to.")
@click.option("--source", default="examples/toon-heads-32.pkl", help="Network to start from.")
@click.option("--method", multiple=True, help="NAME=OPTIONS of train.py, besides the built-in.")
@click.option("--only", help="Comma-separated names.  [default: all]")
@click.option("--rounds", type=click.IntRange(min=1), default=2, help="Processes per method.")
@click.option("--iterations", type=click.IntRange(min=1), default=32, help="Timed, per process.")
def main(
    data: str,
    source: str,
    method: tuple[str, ...],
    only: str | None,
    rounds: int,
    iterations: int,
) -> None:
    """Print a table of CPU seconds per iteration and of peak memory, by method."""
    known = METHODS | dict(split(text) for text in method)
    names = [BASE, *(name for name in only.split(",") if name != BASE)] if only else list(known)
    if unknown := set(names) - set(known):
        raise click.UsageError(f"--only: there is no {min(unknown)}; there are {', '.join(known)}")
    best: dict[str, Row] = {}
    for _ in range(rounds):
        for name in names:  # in turn, so that all meet the same machine
            words = f"{SHARED} --data={data} --resume={source}".split()
            words += ([] if "--aug" in known[name] else ["--aug=noaug"]) + known[name].split()
            found = run([f"{iterations}", *words])
            best[name] = {key: min(x, best.get(name, found)[key]) for key, x in found.items()}
    click.echo(f"{datetime.date.today()}, {processor()}, {os.cpu_count()} cores\n\n{table(best)}")


def split(text: str) -> tuple[str, str]:
    """Return the name and the options of `NAME=OPTIONS`."""
    name, equals, options = text.partition("=")
    if not equals or not options.startswith("--"):
        raise click.UsageError(f"--method={text}: write NAME=--OPTION=VALUE ...")
    return name, options


def run(words: list[str]) -> Row:
    """Return what one process measures; its errors go to stderr."""
    command = [sys.executable, "-m", "benchmarks.methods", "--measure", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        raise click.ClickException(f"the measurement ended with {done.returncode}: {command}")
    values: Row = json.loads(done.stdout.splitlines()[-1])
    return values


def table(best: dict[str, Row]) -> str:
    """Return the rows, each beside that of plain fine-tuning."""
    lines = [
        "| method | CPU s/iteration | ratio | peak GiB | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, row in best.items():
        ratios = {key: value / best[BASE][key] for key, value in row.items()}
        lines.append(
            f"| {name} | {row['cpu_sec']:.3f} | {ratios['cpu_sec']:.2f} | {row['gib']:.2f} | "
            f"{ratios['gib']:.2f} |"
        )
    return "\n".join(lines)


def measure(iterations: int, words: list[str]) -> Row:
    """Train for some iterations as train.py would; return seconds of each, and the peak in GiB."""
    import train
    from stylegan2_fewshot import distributed
    from training import construction, resolve
    from training.dataset import IN_MEMORY_BYTES
    from training.phases import Phases, batches
    from training.state import construct

    values: dict[str, Any] = dict(train.main.make_context("train.py", words).params)
    for word in ("outdir", "dry_run", "estimate", "fresh", "report"):
        values.pop(word)
    found = resolve.resolve(values)
    device = distributed.init(found.options["device"])
    construction.set_up_torch(found.options)
    found.dataset.keep_decoded(IN_MEMORY_BYTES)
    state, _ = construct(found.options, found.dataset, device)
    phases = Phases(found.options, state, device)
    start = 0.0
    shown = batches(found.options, state.dataset, 0, device)
    for number, (images, labels) in enumerate(shown, 1 - UNTIMED):
        phases.iterate(images, labels)
        if number == 0:
            start = time.process_time()
        if number == iterations:
            break
    seconds = (time.process_time() - start) / iterations
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {"cpu_sec": seconds, "gib": peak}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]), sys.argv[3:])))
    else:
        main()
