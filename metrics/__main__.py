"""Command line: measure the generator of a network pickle."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import click

FOLDER_OR_FILE = click.Path(exists=True)


@click.command(context_settings={"max_content_width": 100})
@click.argument("network")
@click.option("--metrics", "names", default="fid50k_full", help="Names.", show_default=True)
@click.option("--data", type=FOLDER_OR_FILE, help="Training images.  [default: as in the pickle]")
@click.option("--metricdata", type=FOLDER_OR_FILE, help="Images to measure against, if others.")
@click.option("--mirror", type=bool, help="Trained with mirror images.  [default: as in the pickle]")
@click.option("--gpus", type=click.IntRange(min=1), default=1, help="Processes.", show_default=True)
@click.option("--seed", type=int, default=0, help="Seed of all that is random.", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: the run's]")
def main(**options: Any) -> None:
    """Measure the generator in NETWORK (a path, a URL or a name as ffhq256).

    \b
    NETWORK's results are printed as lines of JSON, and in a run directory added to its files:
      python -m metrics network-best.pkl --data=ten.zip --metricdata=heldout.zip \\
          --metrics=kid5k_full@mobilenetv2,lpips1k_intra,nn1k,copying1k
    """
    if options["gpus"] == 1 or "WORLD_SIZE" in os.environ:  # torchrun has started the ranks
        measure(options)
        return
    import torch.multiprocessing

    port = _free_port()
    torch.multiprocessing.spawn(_rank, (options, port), nprocs=options["gpus"])


def measure(options: dict[str, Any]) -> None:
    """Compute, print and keep the results, on this rank of however many there are."""
    import metrics
    from stylegan2_fewshot import _dist
    from training import pickles

    device = _dist.init(options["device"])
    source = options["network"]
    network = pickles.load(source)
    data = _datasets(options, network)
    names, complaints = metrics.usable(options["names"].split(","), *data, device=device)
    notes = {"seed": options["seed"], "kimg": _kimg(source), "snapshot": Path(source).name}
    for result in metrics.compute(names, network.G_ema.to(device), *data, device=device, **notes):
        if _dist.rank() == 0:
            _keep(result, options["out"] or Path(source).parent, required=bool(options["out"]))
    if complaints and _dist.rank() == 0:
        raise click.ClickException("\n".join(complaints))
    _dist.shutdown()


def _datasets(options: dict[str, Any], network: Any) -> tuple[Any, Any]:
    """Return the training set, and the set to measure against or None."""
    from training.dataset import ImageDataset

    noted = network.training_set_kwargs or {}
    path = options["data"] or noted.get("path")
    if not path or not Path(path).exists():
        raise click.UsageError(f"--data: say where the training images are; not at {path}")
    mirror = noted.get("xflip", False) if options["mirror"] is None else options["mirror"]
    training = ImageDataset(path, use_labels=network.G_ema.c_dim > 0, xflip=mirror)
    other = options["metricdata"]
    return training, ImageDataset(other, xflip=mirror) if other else None


def _kimg(source: str) -> int | None:
    """Return the training time in the name of a snapshot."""
    match = re.search(r"network-snapshot-(\d+)\.pkl$", source)
    return int(match[1]) if match else None


def _keep(result: dict[str, Any], folder: Path, *, required: bool) -> None:
    """Print a result, and add it to the files of the run that the network is of."""
    import metrics

    click.echo(json.dumps(result))
    if required:
        folder.mkdir(parents=True, exist_ok=True)
    if required or (folder / "training_options.json").is_file():
        metrics.append(folder, result)


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


if __name__ == "__main__":
    main()
