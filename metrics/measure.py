"""Measure the generator of a network pickle, on one process or several."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import click
import torch
import torch.multiprocessing

import metrics
from stylegan2_fewshot import _dist
from training import conditions, pickles
from training.dataset import ImageDataset


def launch(options: dict[str, Any]) -> None:
    """Measure on as many processes as `--gpus` says; torchrun's are there already."""
    if options["gpus"] == 1 or "WORLD_SIZE" in os.environ:
        measure(options)
    else:
        arguments = (options, _free_port())
        torch.multiprocessing.spawn(_rank, arguments, nprocs=options["gpus"])


def measure(options: dict[str, Any]) -> None:
    """Compute, print and keep the results, on this rank of however many there are."""
    device = _dist.init(options["device"])
    torch.backends.cudnn.allow_tf32 = False
    source = options["network"]
    network = pickles.load(source)
    pool = _pool(options)
    data = _datasets(options, network, has_labels=network.G_ema.c_dim > 0 and pool is None)
    try:
        names, complaints = metrics.usable(options["names"].split(","), *data, device=device)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if _dist.rank() == 0:
        click.echo("\n".join(complaints), err=True, nl=bool(complaints))
    notes = {"seed": options["seed"], "kimg": _kimg(source), "snapshot": Path(source).name}
    notes |= {"labels": pool}
    for result in metrics.compute(names, network.G_ema.to(device), *data, device=device, **notes):
        if _dist.rank() == 0:
            _keep(result, options)
    _dist.shutdown()
    if complaints:
        sys.exit(1)


def _pool(options: dict[str, Any]) -> metrics.Pool | None:
    """Return what a network with a data instance prior is conditioned on, or None without one."""
    instances, sampling = conditions.beside(options["network"]), options["prior_sample"]
    if instances is None and sampling:
        raise click.UsageError(f"--prior-sample={sampling}: no file .prior.npz beside the network")
    if instances is None:
        return None
    return metrics.Pool(conditions.pool(instances.vectors, sampling or "train"))


def _datasets(options: dict[str, Any], network: Any, *, has_labels: bool) -> tuple[Any, Any]:
    """Return the training set, and the set to measure against or None."""
    noted = network.training_set_kwargs or {}
    path = options["data"] or noted.get("path")
    if not path or not Path(path).exists():
        raise click.UsageError(f"--data: say where the training images are; not at {path}")
    mirror = noted.get("xflip", False) if options["mirror"] is None else options["mirror"]
    training = ImageDataset(path, use_labels=has_labels, xflip=mirror)
    other = options["metricdata"]
    return training, ImageDataset(other, xflip=mirror) if other else None


def _kimg(source: str) -> int | None:
    """Return the training time in the name of a snapshot."""
    match = re.search(r"network-snapshot-(\d+)\.pkl$", source)
    return int(match[1]) if match else None


def _keep(result: dict[str, Any], options: dict[str, Any]) -> None:
    """Print a result, and add it to the files of --out, or of the run that the snapshot is of."""
    click.echo(json.dumps(result))
    run = Path(options["network"]).parent
    if options["out"]:
        options["out"].mkdir(parents=True, exist_ok=True)
        metrics.append(options["out"], result)
    elif result["kimg"] is not None and (run / "training_options.json").is_file():
        # With nimg, training that goes on from an older state knows to drop it.
        metrics.append(run, {**result, "nimg": 1000 * result["kimg"]})


def _rank(index: int, options: dict[str, Any], port: int) -> None:
    """Be one of several processes on this machine; the environment is torchrun's."""
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index)}
    os.environ |= {"WORLD_SIZE": str(options["gpus"])}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    measure(options)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
