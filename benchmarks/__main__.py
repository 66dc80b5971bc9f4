"""Measure speed and memory, alone or in turn with a checkout of the original."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from stylegan2_fewshot.files import write_text

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).resolve().parent.parent
WHAT = ("ops", "pipe", "tiny32", "demo64", "train64", "train256", "train1024")
Values = dict[str, float]


@click.command(context_settings={"show_default": True})
@click.option("--what", default="ops,demo64", help=f"Comma-separated, of {', '.join(WHAT)}.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32")
@click.option("--nhwc", is_flag=True, help="Channels last in layers of reduced precision.")
@click.option("--augment", is_flag=True, help="ADA's pipe of bgc at p = 0.2.")
@click.option("--ops", type=click.Choice(["auto", "cuda", "torch"]), default="auto")
@click.option("--avx2", is_flag=True, help="As on a processor with AVX2, but not AVX-512.")
@click.option("--batch", type=click.IntRange(min=1), help="Images.  [default: the case's own]")
@click.option("--cpu-time", is_flag=True, help="The processor's seconds, for a busy machine.")
@click.option(
    "--variants",
    is_flag=True,
    help="Also PyTorch alone and without each kernel of the CPU, in turn.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU.  [default: all]")
@click.option("--rounds", type=click.IntRange(min=1), default=2, help="Processes per row.")
@click.option("--reps", type=click.IntRange(min=1), default=3, help="Timed calls per process.")
@click.option("--against", type=click.Path(exists=True, file_okay=False, resolve_path=True))
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write results here.",
)
def main(
    what: str,
    device: str,
    rounds: int,
    against: str | None,
    json_path: Path | None,
    **options: Any,
) -> None:
    """Print a table of operations, generator, training phases, sec/kimg and peak memory.

    Values are minima over all rounds; seconds, but for sec/kimg and GiB. With --against, the
    original in that folder is measured in turn with this code, with --variants this code without
    its kernels too; a ratio of minima is how many times faster, or smaller, this code is.
    """
    import torch

    from training.environment import processor

    names = split(what)
    if json_path:  # what cannot be written shows before it is measured
        json_path.parent.mkdir(parents=True, exist_ok=True)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    sides: dict[str, list[str]] = {"ours": [f"--root={ROOT}"]}
    if against:
        sides["original"] = [f"--root={against}"]
    arguments = [f"--device={device}", *as_arguments(options)]
    cpu = f"{processor()}, {os.cpu_count()} cores"
    chip = torch.cuda.get_device_name() if device == "cuda" else cpu
    today = datetime.date.today().isoformat()
    machine = {"date": today, "device": f"{device}, {chip}", "torch": torch.__version__}
    click.echo("\n".join(f"{name}: {value}" for name, value in machine.items()))
    results = {}
    for name in names:
        best: dict[str, Values] = {}
        for _ in range(rounds):
            for side, own in sides.items():  # in turn, so that all meet the same machine
                for found, values in run(side, [f"--what={name}", *arguments, *own]).items():
                    merge(best.setdefault(found, {}), values)
        results[name] = best
        click.echo(table(name, best))
    if json_path:
        content = {"machine": machine, "arguments": arguments, "results": results}
        write_text(json_path, json.dumps(content, indent=2))


def split(what: str) -> list[str]:
    names = what.split(",")
    for name in names:
        if name not in WHAT:
            raise click.UsageError(f"--what must be of {', '.join(WHAT)}, got {name!r}")
    return names


def as_arguments(options: dict[str, Any]) -> list[str]:
    """Return options as the worker takes them: flags bare, and no None."""
    options = {name.replace("_", "-"): value for name, value in options.items()}
    flags = [f"--{name}" for name, value in options.items() if value is True]
    values = {n: v for n, v in options.items() if v is not None and not isinstance(v, bool)}
    return flags + [f"--{name}={value}" for name, value in values.items()]


def run(side: str, arguments: list[str]) -> dict[str, Values]:
    """Return one process's measurements by side; its notes and errors go to stderr."""
    command = [sys.executable, str(WORKER), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise click.ClickException(f"the measurement ended with {done.returncode}: {command}")
    values: dict[str, Values] = {side: {}}
    for line in done.stdout.splitlines():
        fields: dict[str, Any] = json.loads(line) if line.startswith("{") else {"note": line}
        if "note" in fields:
            click.echo(fields["note"], err=True)
        else:
            values.setdefault(fields.get("side", side), {})[fields["row"]] = fields["value"]
    return values


def merge(best: Values, values: Values) -> None:
    for row, value in values.items():
        best[row] = min(value, best.get(row, value))


def table(name: str, best: dict[str, Values]) -> str:
    first, *others = best
    lines = [f"\n{name:44}{first:>12}" + "".join(f"{side:>15}{'ratio':>8}" for side in others)]
    for row, value in best[first].items():
        cells = ""
        for side in others:
            other = best[side].get(row)
            cells += f"{'-':>15}{'-':>8}" if other is None else f"{other:15.5g}{other / value:8.2f}"
        lines.append(f"{row:44}{value:12.5g}{cells}")
    return "\n".join(lines + shares(best["ours"]))


def shares(values: Values) -> list[str]:
    """Return each operation's share of the bandwidth that copying reaches."""
    suffix = ": copy of as many bytes"
    lines = []
    for name in (row.removesuffix(suffix) for row in values if row.endswith(suffix)):
        share = values[name + suffix] / values[f"{name}: forward"]
        lines.append(f"{name + ': share of copy bandwidth':44}{share:12.0%}")
    return lines


if __name__ == "__main__":
    main()
