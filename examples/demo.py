"""The demo: ten line drawings turn a network that draws cartoon heads into one that draws those.

    python examples/demo.py [--kimg=5] [--out=out/demo]

Trains from the same source network with the same seed, plainly and with EWC, and shows samples of
the same seeds below the source's. The commands it runs are the README's; they are printed, and an
interrupted demo resumes where it stopped.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch
from few_shot import SOURCE, enlarged
from measures import real_images, samples
from trials import ROOT, Trial, train

from stylegan2_fewshot.ops import select
from stylegan2_fewshot.pixels import to_float
from training import grids
from training.run_dir import snapshots

TEN = Path("examples/lorelei-ten.zip")
COMMON = (
    f"--data={TEN} --resume={SOURCE} --mirror=1 --batch=4 --gamma=0.2 "
    "--pl-weight=0 --ema-kimg=2 --tick=0.1 --snap=1000 --metrics=none"
)
METHODS = {
    "fine-tuned": "--aug=noaug",
    "EWC": "--aug=noaug --ewc-lambda=10 --ewc-samples=300",  # a short run: less than the experiment
}
SEEDS = range(10)
PSI = 0.8


@click.command(help=__doc__.split("\n")[0])
@click.option("--kimg", default=5.0, show_default=True, help="Length of both trainings.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
def main(kimg: float, out: Path) -> None:
    """Adapt the example network to ten images, with and without EWC."""
    start = time.time()
    select("auto", torch.device("cpu"))
    trials = [Trial(name, f"{COMMON} --kimg={kimg:g} {how}") for name, how in METHODS.items()]
    runs = train(trials, out)
    networks = {"source": ROOT / SOURCE}
    networks.update({trial.method: snapshots(runs[trial])[-1] for trial in trials})
    rows = [("ten images", to_float(real_images(TEN)))]
    rows += [(label, samples(network, SEEDS, PSI)) for label, network in networks.items()]
    picture = ROOT / out / "demo.png"
    grids.save_png(picture, grids.labelled_rows(enlarged(rows, 96)))
    click.echo(f"{time.time() - start:.0f} s\n{picture}")


if __name__ == "__main__":
    main()
