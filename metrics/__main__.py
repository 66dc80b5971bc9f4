"""Command line: measure the generator of a network pickle, on one process or several."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import torch

import metrics
from stylegan2_fewshot import distributed, trust
from stylegan2_fewshot.external import load_external
from stylegan2_fewshot.ops import select
from stylegan2_fewshot.options import Command
from training import conditions, pickles, run_dir
from training.dataset import ImageDataset
from training.sources import newest_network

FOLDER_OR_FILE = click.Path(exists=True)


@click.command(cls=Command, context_settings={"max_content_width": 100})
@click.argument("network")
@click.option("--metrics", "names", default="fid50k_full", help="Names.", show_default=True)
@click.option("--data", type=FOLDER_OR_FILE, help="Training images.  [default: as in the pickle]")
@click.option("--metricdata", type=FOLDER_OR_FILE, help="Images to measure against, if others.")
@click.option(
    "--mirror", type=bool, help="Trained with mirror images.  [default: as in the pickle]"
)
@click.option(
    "--prior-sample",
    type=click.Choice(["train", "mixup", "kmeans", "gmm"]),
    help="Conditions, for a network trained with --prior.  [default: train]",
)
@click.option("--gpus", type=click.IntRange(min=1), default=1, help="Processes.", show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    help="Seed of all that is random.",
    show_default=True,
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: the run's]")
@click.option("--plugin", multiple=True, help="A method of your own that has made the network.")
@trust.options
def main(**options: Any) -> None:
    """Measure the generator in NETWORK (a path, a run's folder, a URL or a name as ffhq256).

    \b
    NETWORK's results are printed as lines of JSON, and in a run directory added to its files:
      python -m metrics network-best.pkl --data=ten.zip --metricdata=heldout.zip \\
          --metrics=kid5k_full@mobilenetv2,lpips1k_intra,nn1k,copying1k
    """
    if options["gpus"] == 1 or "WORLD_SIZE" in os.environ:  # torchrun's processes are there already
        measure(options)
        return
    distributed.spawn(measure, (options,), options["gpus"])


def measure(options: dict[str, Any]) -> None:
    """Compute, print and keep the results, on this rank of however many there are.

    Raises:
        ValueError: A user's mistake.
        SystemExit: Some metrics were left out; status 1.
    """
    for place in options["plugin"]:
        load_external(place)
    device = distributed.init(options["device"])
    select("auto", device)
    torch.backends.cudnn.allow_tf32 = False
    source = newest_network(options["network"])
    options = {**options, "network": source}
    network = pickles.load(source, needs=("G_ema",))
    pool = _pool(options, network.G_ema.c_dim)
    training, reference = _datasets(
        options, network, has_labels=network.G_ema.c_dim > 0 and pool is None
    )
    vouched = metrics.Trust(options["trust_backbone"], options["backbone_sha256"])
    shared: dict[str, Any] = {"device": device, "trust": vouched}
    wanted = options["names"].split(",")
    names, complaints = metrics.usable(wanted, training, reference, **shared)
    if distributed.rank() == 0:
        click.echo("\n".join(complaints), err=True, nl=bool(complaints))
    notes: dict[str, Any] = {"seed": options["seed"], "labels": pool}
    notes |= {"kimg": _kimg(source), "snapshot": Path(source).name}
    G = network.G_ema.to(device)
    for result in metrics.compute(names, G, training, reference, **shared, **notes):
        if distributed.rank() == 0:
            _keep(result, options)
    distributed.shutdown()
    if complaints:
        sys.exit(1)


def _pool(options: dict[str, Any], c_dim: int) -> metrics.Pool | None:
    """Return what a method keeps beside the network to condition it on, or None."""
    sampling = options["prior_sample"]
    found = conditions.beside(options["network"], c_dim, sampling or "train")
    if found is None and sampling:
        raise ValueError(f"--prior-sample={sampling}: no file .prior.npz beside the network")
    return metrics.Pool(found[1]) if found else None


def _datasets(
    options: dict[str, Any], network: pickles.NetworkPickle, *, has_labels: bool
) -> tuple[ImageDataset, ImageDataset | None]:
    """Return the training set, and the set to measure against or None."""
    G, noted = network.G_ema, network.training_set_kwargs or {}
    path = options["data"] or noted.get("path")
    if not path or not Path(path).exists():
        raise ValueError(f"--data: say where the training images are; not at {path}")
    # The original says random_seed.
    part: dict[str, Any] = {
        "max_size": noted.get("max_size"),
        "seed": noted.get("seed", noted.get("random_seed")),
    }
    part = {} if options["data"] or None in part.values() else part
    mirror = noted.get("xflip", False) if options["mirror"] is None else options["mirror"]
    training = ImageDataset(path, use_labels=has_labels, xflip=mirror, **part)
    if training.resolution != G.img_resolution:
        raise ValueError(
            f"--data: images must be of {G.img_resolution} pixels as the network's, "
            f"got {training.resolution}; resize them"
        )
    if has_labels and training.label_dim != G.c_dim:
        raise ValueError(
            f"--data: labels must be of {G.c_dim} numbers or classes as the network's, "
            f"got {training.label_dim}; give the data set that it was trained on"
        )
    other = options["metricdata"]
    return training, ImageDataset(other, xflip=mirror) if other else None


def _kimg(source: str) -> float | None:
    """Return the training time in the name of a snapshot."""
    nimg = run_dir.nimg_of(Path(source))
    return nimg / 1000 if nimg >= 0 else None


def _keep(result: dict[str, Any], options: dict[str, Any]) -> None:
    """Print a result, and add it to the files of --out, or of the run that the snapshot is of."""
    click.echo(json.dumps(result))
    run = Path(options["network"]).parent
    if options["out"]:
        options["out"].mkdir(parents=True, exist_ok=True)
        metrics.append(options["out"], result)
    elif result["kimg"] is not None and (run / "training_options.json").is_file():
        # With nimg, training that resumes from an older state knows to drop it.
        metrics.append(run, {**result, "nimg": round(1000 * result["kimg"])})


if __name__ == "__main__":
    main()
