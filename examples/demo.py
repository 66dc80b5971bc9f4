"""The demo: ten images turn a network that draws Noto portraits into one that draws Twemoji's.

    python examples/demo.py [--kimg=8] [--out=out/demo]

Trains twice from the same source network with the same seed, plainly and with EWC and APA, and
shows both beside the source: four rows, each with samples of the same seeds. The commands it runs
are the README's; they are printed, and an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import click
import numpy as np
import torch
from experiment import ROOT, Trial, last_snapshot, real_images, samples, train

from training import grids

SOURCE = Path("examples/noto-portraits-64.pkl")
TEN = Path("examples/twemoji-ten.zip")
COMMON = (
    f"--data={TEN} --resume={SOURCE} --mirror=1 --batch=4 --gamma=0.5 --pl-weight=0 "
    "--tick=1 --snap=2 --metrics=none"
)
METHODS = {"fine-tuned": "--aug=noaug", "EWC + APA": "--aug=apa --ewc-lambda=500 --ewc-samples=200"}
SEEDS = range(10)
PSI = 0.8


def diversity(images: torch.Tensor) -> float:
    """Return the mean distance of two images: root mean square over pixels, in [0, 2]."""
    pairs = itertools.combinations(images, 2)
    return float(np.mean([(a - b).square().mean().sqrt().item() for a, b in pairs]))


@click.command()
@click.option("--kimg", default=8, show_default=True, help="Length of both trainings.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
def main(kimg: int, out: Path) -> None:
    """Adapt the example network to ten images, with and without EWC and APA."""
    start = time.time()
    trials = [Trial(name, f"{COMMON} {how} --kimg={kimg}") for name, how in METHODS.items()]
    runs = train(trials, out)
    networks = {"source": ROOT / SOURCE}
    networks.update({trial.method: last_snapshot(runs[trial]) for trial in trials})
    rows = [("the ten images", real_images(ROOT / TEN, 10))]
    for label, network in networks.items():
        rows.append((label, samples(network, SEEDS, PSI)))
        spread = diversity(samples(network, range(64), PSI))
        click.echo(f"{label:12s} mean distance of two of 64 samples: {spread:.3f}")
    picture = ROOT / out / "demo.png"
    grids.save_png(picture, grids.labelled_rows(rows))
    click.echo(f"{time.time() - start:.0f} s\n{picture}")


if __name__ == "__main__":
    main()
