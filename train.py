"""Train a GAN on few images: options become one plain dict, and one call."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from metrics import trust
from stylegan2_fewshot import Plugins
from stylegan2_fewshot.ops.selection import MODES
from stylegan2_fewshot.options import PluginCommand, all_options, parse
from training import presets, run_dir

COUNT = click.IntRange(min=1)
NOT_NEGATIVE = click.FloatRange(min=0)
POSITIVE = click.FloatRange(min=0, min_open=True)
SEED = click.IntRange(min=0, max=2**31 - 1)
FOLDER_OR_FILE = click.Path(exists=True)


@click.command(cls=PluginCommand, context_settings={"max_content_width": 100})
# What, where, how long.
@click.option("--outdir", type=click.Path(path_type=Path), required=True, help="Folder for runs.")
@click.option("--data", type=FOLDER_OR_FILE, required=True, help="Images: a folder or a ZIP.")
@click.option("--gpus", type=COUNT, help="Processes that train together.  [default: 1]")
@click.option("--snap", type=COUNT, default=50, help="Ticks between snapshots.", show_default=True)
@click.option("--tick", type=POSITIVE, help="kimg between status lines.  [default: 4]")
@click.option("--kimg", type=COUNT, help="Duration; 25000, or 100000 with --cfg=cifar.")
@click.option("--seed", type=SEED, default=0, help="Seed of all that is random.", show_default=True)
@click.option("-n", "--dry-run", is_flag=True, help="Print the options as JSON, and end.")
@click.option("--fresh", is_flag=True, help="Start anew even where an equal run was interrupted.")
@click.option("--metrics", default="fid50k_full", help="Names, or none.", show_default=True)
@click.option("--metricdata", type=FOLDER_OR_FILE, help="Images to measure against, if others.")
@click.option("--patience", type=COUNT, help="Stop after N snapshots that bring no improvement.")
# Data.
@click.option("--cond", type=bool, default=False, help="Learn the labels of dataset.json.")
@click.option("--subset", type=COUNT, help="Train with N of the images.  [default: all]")
@click.option("--mirror", type=bool, default=False, help="Add the mirror image of every image.")
# Networks and optimization.
@click.option("--cfg", type=click.Choice(presets.NAMES), help="Base configuration. [default: auto]")
@click.option("--resume", help="Network pickle to start from: path, URL, or a name as ffhq256.")
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
@click.option("--nobench", type=bool, default=False, help="Do without cuDNN's benchmarking.")
@click.option("--allow-tf32", type=bool, default=False, help="Let float32 products use TF32.")
@click.option("--workers", type=click.IntRange(min=0), default=3, help="Loading processes.")
@trust.options
def main(outdir: Path, dry_run: bool, fresh: bool, **values: Any) -> None:
    """Train a GAN on few images, from scratch or from the network in a pickle.

    \b
    Ten images turn a network that draws one thing into one that draws another:
      python train.py --outdir=runs --data=ten.zip --resume=ffhq256 --aug=apa --ewc-lambda=5e8

    The same command again goes on where it was interrupted. --dry-run shows what would be done.
    """
    options, gpus = training_options(values)
    if dry_run:
        click.echo(json.dumps(options, indent=2))
        return
    from training.launch import launch

    launch(options, outdir=outdir, fresh=fresh, gpus=gpus)


def training_options(values: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the options of the run as a plain dict, and the number of processes.

    Args:
        values: What the command line says, by option; None where it says nothing.

    Raises:
        ValueError: A user's mistake.
    """
    given = {key: value for key, value in values.items() if value is not None}
    methods = {key: given[key] for key in given if key == "aug" or key in all_options()}
    plugins = parse(methods if "aug" in methods else {"aug": "ada", **methods})
    Plugins.create(plugins)  # a constructor refuses what it cannot do
    gpus = _number_of_processes(given.get("gpus"))
    dataset, resolution = _dataset(values)
    named = {"cfg": "auto", **given, "gpus": gpus}
    overrides = {key: given[key] for key in presets.OPTIONS if key in given}
    chosen = presets.settings(named["cfg"], resolution=resolution, gpus=gpus, **overrides)
    if note := presets.about_batch(named["cfg"], resolution=resolution, gpus=gpus, **overrides):
        click.echo(note, err=True)
    options = {
        "seed": values["seed"],
        "device": values["device"],
        "ops": values["ops"],
        "dataset": dataset,
        **presets.expand(
            chosen,
            precision=_precision(values),
            nhwc=values["nhwc"],
            resume=_source(values["resume"]),
        ),
        "resume_from": _resume_from(values, plugins),
        "plugins": plugins,
        "external": list(values["plugin"]),
        "explicit": presets.explicit(given),
        "snapshot_ticks": values["snap"],
        "metrics": _metrics(values["metrics"]),
        "metric_data": values["metricdata"],
        "workers": values["workers"],
        "allow_tf32": values["allow_tf32"],
        "benchmark": not values["nobench"],
        "patience": values["patience"],
        **_trust(values),
    }
    return {"name": run_dir.name_of(options, named, methods), **options}, gpus


def _dataset(values: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Check the images; return the data set's arguments and their resolution."""
    from training.dataset import ImageDataset

    arguments = {
        "path": values["data"],
        "use_labels": values["cond"],
        "max_size": values["subset"],
        "xflip": values["mirror"],
        "seed": values["seed"],
    }
    first = os.environ.get("RANK", "0") == "0"  # one of torchrun's processes looks at every file
    dataset = ImageDataset(**arguments, check=first)
    if first:
        click.echo("".join(f"{note}\n" for note in dataset.notes), err=True, nl=False)
    number = len(dataset.file_names)
    if values["subset"] and values["subset"] > number:
        raise ValueError(f"--subset={values['subset']}: there are {number} images; ask for fewer")
    return arguments, dataset.resolution


def _number_of_processes(gpus: int | None) -> int:
    """Return how many processes train together: as many as torchrun started, or --gpus."""
    started = int(os.environ.get("WORLD_SIZE", gpus or 1))
    if gpus not in (None, started):
        raise ValueError(f"--gpus={gpus}, but torchrun started {started}; leave --gpus away")
    return started


def _metrics(text: str) -> list[str]:
    """Return the names of the metrics; one that there is not is a mistake."""
    from metrics import registry

    names = [] if text == "none" else text.split(",")
    for name in names:
        registry.find(name)
    return names


def _trust(values: dict[str, Any]) -> dict[str, Any]:
    """Return what is said about detectors that are programs, if anything is."""
    said = trust.Trust(values["trust_backbone"], values["backbone_sha256"])
    return {"trust": vars(said)} if said != trust.NOBODY else {}


def _precision(values: dict[str, Any]) -> str:
    if values["fp32"] and values["precision"] not in ("auto", "fp32"):
        raise ValueError(f"--fp32 contradicts --precision={values['precision']}; drop one")
    return "fp32" if values["fp32"] else values["precision"]


def _source(resume: str | None) -> str | None:
    """Return the network to start from; a path that does not exist is a mistake."""
    if resume in (None, "noresume"):
        return None
    from training.sources import SHORT_NAMES

    if resume in SHORT_NAMES or resume.startswith(("http://", "https://")):
        return resume
    if not Path(resume).expanduser().is_file():
        names = ", ".join(SHORT_NAMES)
        raise ValueError(f"--resume={resume}: no such file; give a path, a URL, or one of {names}")
    return resume


def _resume_from(values: dict[str, Any], plugins: dict[str, Any]) -> str | None:
    """Return which generator of the source network G starts as, G or G_ema."""
    chosen, resume = values["resume_from"], values["resume"]
    if resume in (None, "noresume"):
        if chosen:
            raise ValueError(f"--resume-from={chosen} needs --resume, the network to start from")
        return None
    if chosen:
        return {"g": "G", "g_ema": "G_ema"}[chosen]
    return Plugins.create(plugins).resumes_from


if __name__ == "__main__":
    main()
