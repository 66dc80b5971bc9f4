"""Train a GAN on few images: options become one plain dict, and one call."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from stylegan2_fewshot import trust
from stylegan2_fewshot.ops.selection import MODES
from stylegan2_fewshot.options import Finite, PluginCommand
from tools.command import FOLDER, UserPath
from training import presets, resolve

COUNT = click.IntRange(min=1)
NOT_NEGATIVE = Finite(min=0)
POSITIVE = Finite(min=0, min_open=True)
SEED = click.IntRange(min=0, max=2**31 - 1)
FOLDER_OR_FILE = UserPath(exists=True)


@click.command(cls=PluginCommand, context_settings={"max_content_width": 100})
# What, where, how long.
@click.option("--outdir", type=FOLDER, required=True, help="Folder for runs.")
@click.option("--data", type=FOLDER_OR_FILE, required=True, help="Images: a folder or a ZIP.")
@click.option("--gpus", type=COUNT, help="Processes that train together.  [default: 1]")
@click.option("--snap", type=COUNT, help="Ticks between snapshots.  [default: 50]")
@click.option("--tick", type=POSITIVE, help="kimg between status lines.  [default: 4]")
@click.option("--kimg", type=POSITIVE, help="Duration.  [default: 25000, of cifar 100000]")
@click.option("--seed", type=SEED, default=0, help="Seed of all that is random.", show_default=True)
@click.option("-n", "--dry-run", is_flag=True, help="Check all, print the options, and end.")
@click.option("--estimate", is_flag=True, help="Try a few iterations; say time, memory and disk.")
@click.option("--fresh", is_flag=True, help="Start anew even where an equal run was interrupted.")
@click.option("--metrics", help="Names, or none.  [default: fid50k_full]")
@click.option("--report", is_flag=True, help="Write report.html anew at every snapshot.")
@click.option("--metricdata", type=FOLDER_OR_FILE, help="Images to measure against, if others.")
@click.option("--patience", type=COUNT, help="Stop after N snapshots that bring no improvement.")
# Data.
@click.option("--cond", type=bool, default=False, help="Learn the labels of dataset.json.")
@click.option("--subset", type=COUNT, help="Train with N of the images.  [default: all]")
@click.option("--mirror", type=bool, default=False, help="Add the mirror image of every image.")
# Networks and optimization.
@click.option(
    "--cfg",
    type=click.Choice(presets.NAMES),
    help="Base configuration; fewshot derives it from the number and size of the images.  "
    "[default: auto]",
)
@click.option("--resume", help="Network to start from: path, run, URL, or a name as ffhq256.")
@click.option(
    "--resume-from",
    type=click.Choice(["g", "g_ema"]),
    help="Generator of --resume that G starts as; g_ema makes its samples.  [default: g, or g_ema "
    "with EWC, which holds on to it]",
)
@click.option("--gamma", type=NOT_NEGATIVE, help="Weight of R1.")
@click.option("--pl-weight", type=NOT_NEGATIVE, help="Weight of the path length penalty.")
@click.option("--ema-kimg", type=NOT_NEGATIVE, help="Half-life of the average of G.")
@click.option("--glr", type=POSITIVE, help="Learning rate of G.")
@click.option("--dlr", type=POSITIVE, help="Learning rate of D.")
@click.option("--batch", type=COUNT, help="Images per iteration.")
@click.option("--batch-gpu", type=COUNT, help="Images per pass and GPU; the rest accumulates.")
@click.option("--mbstd-group", type=COUNT, help="Group of the minibatch standard deviation.")
@click.option("--cbase", type=COUNT, help="Feature maps times resolution; 16384 or 32768.")
@click.option("--cmax", type=COUNT, help="Most feature maps of a layer.  [default: 512]")
@click.option("--zdim", type=COUNT, help="Dimensions of z and w.  [default: 512]")
@click.option("--map-depth", type=COUNT, help="Layers of the mapping network.")
# Methods.
@click.option("--aug", help="noaug, or augmentations in order, as ada,apa.  [default: ada]")
@click.option("--plugin", multiple=True, help="A method of your own, as package.module:Class.")
# Machine.
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto")
@click.option(
    "--ops",
    type=click.Choice(MODES),
    default="auto",
    help="auto: our kernels, where they compile; cuda: or an error; torch: PyTorch alone.",
)
@click.option("--fp32", type=bool, help="Same as --precision=fp32.")
@click.option(
    "--nhwc", type=bool, default=False, help="Channels last in layers of reduced precision."
)
@click.option(
    "--graphs",
    type=click.Choice(["auto", "off"]),
    default="off",
    help="auto: replay the passes of G and D as CUDA graphs, where methods allow it; untried.",
)
@click.option("--nobench", type=bool, default=False, help="Do without cuDNN's benchmarking.")
@click.option("--allow-tf32", type=bool, default=False, help="Let float32 products use TF32.")
@click.option("--workers", type=click.IntRange(min=0), default=3, help="Loading processes.")
@click.option(
    "--threads",
    type=COUNT,
    help="Threads of the CPU in each process; where several trainings run side by side, 1 is best. "
    "[default: all cores, shared by the processes]",
)
@trust.options
def main(
    outdir: Path, dry_run: bool, estimate: bool, fresh: bool, report: bool, **values: Any
) -> None:
    """Train a GAN on few images, from scratch or from the network in a pickle.

    \b
    Ten images turn a network that draws one thing into one that draws another:
      python train.py --outdir=runs --data=ten.zip --resume=ffhq256 --cfg=fewshot

    The same command resumes where it was interrupted, a larger --kimg trains on. --dry-run shows
    what would be done, --estimate how long it would take.
    """
    found = resolve.resolve(values)
    if resolve.is_first():
        for note in [*found.dataset.notes, *found.notes]:
            click.echo(note, err=True)
    if dry_run:
        from training.dry_run import check

        click.echo(check(found.options, found.dataset), err=True)
        click.echo(json.dumps(found.options, indent=2))
    elif estimate:
        from training.estimate import estimate as measure

        click.echo(measure(found.options, found.dataset))
    else:
        from training.launch import launch

        watch = partial(write_report, at_snapshots=report)
        launch(found.options, outdir=outdir, fresh=fresh, gpus=found.gpus, watch=watch)


def write_report(run_dir: Path, done: bool, *, at_snapshots: bool) -> None:
    """Write the run's report at its end, or at a snapshot; training never fails for it."""
    if not (done or at_snapshots):
        return
    try:
        from tools import report

        path = report.write([run_dir])
    except Exception as error:  # whatever it is, the networks are saved and hours are not lost
        click.echo(f"No report: {error}; try python -m tools.report {run_dir}", err=True)
    else:
        if done:
            click.echo(f"Report: {path}")


if __name__ == "__main__":
    main()
