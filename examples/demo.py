"""The demo: ten images turn a network that draws Noto portraits into one that draws Twemoji's.

    python examples/demo.py [--kimg=6] [--out=out/demo]

Trains twice from the same source network with the same seed, plainly and with EWC and APA, and
shows both beside the source: four rows, each with samples of the same seeds. The commands it runs
are the README's; they are printed, and an interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from training import grids, pickles  # noqa: E402
from training.dataset import ImageDataset  # noqa: E402
from training.training_loop import is_finished  # noqa: E402

SOURCE = Path("examples/noto-portraits-64.pkl")
TEN = Path("examples/twemoji-ten.zip")
PLAIN = "--aug=noaug"
EWC_APA = "--aug=apa --ewc-lambda=300 --ewc-samples=200"
SEEDS = range(10)


def run(command: str) -> None:
    """Run a command of ours with this Python, its output shown."""
    click.echo(f"\n$ python {command}")
    subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, check=True)


def train(name: str, method: str, kimg: int, out: Path) -> Path:
    """Adapt the source network to the ten images; return the last snapshot."""
    runs = out / name
    done = [path for path in sorted((ROOT / runs).glob("*")) if is_finished(path)]
    if not done:
        run(
            f"train.py --outdir={runs} --data={TEN} --resume={SOURCE} {method} --kimg={kimg} "
            "--mirror=1 --batch=16 --gamma=0.2 --pl-weight=0 --tick=1 --snap=2 --metrics=none"
        )
        done = [path for path in sorted((ROOT / runs).glob("*")) if is_finished(path)]
    return sorted(done[-1].glob("network-snapshot-*.pkl"))[-1]


@torch.no_grad()
def samples(network: Path, seeds: range) -> torch.Tensor:
    """Return a network's images `[N, C, H, W]` of the given seeds, in [-1, 1]."""
    G = pickles.load(network).G_ema
    z = np.concatenate([np.random.RandomState(seed).randn(1, G.z_dim) for seed in seeds])
    images: torch.Tensor = G(torch.from_numpy(z), None, truncation_psi=0.8, noise_mode="const")
    return images.clamp(-1, 1)


def diversity(images: torch.Tensor) -> float:
    """Return the mean distance of two images: root mean square over pixels, in [0, 2]."""
    pairs = itertools.combinations(images, 2)
    return float(np.mean([(a - b).square().mean().sqrt().item() for a, b in pairs]))


@click.command()
@click.option("--kimg", default=6, show_default=True, help="Length of both trainings.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
def main(kimg: int, out: Path) -> None:
    """Adapt the example network to ten images, with and without EWC and APA."""
    start = time.time()
    plain = train("plain", PLAIN, kimg, out)
    ours = train("ewc-apa", EWC_APA, kimg, out)
    ten = ImageDataset(TEN)
    real = torch.stack([torch.from_numpy(ten[i][0]) for i in range(len(ten))]).float() / 127.5 - 1
    rows = [("the ten images", real)]
    for label, network in (("source", ROOT / SOURCE), ("fine-tuned", plain), ("EWC + APA", ours)):
        rows.append((label, samples(network, SEEDS)))
        spread = diversity(samples(network, range(64)))
        click.echo(f"{label:12s} mean distance of two of 64 samples: {spread:.3f}")
    picture = ROOT / out / "demo.png"
    grids.save_png(picture, grids.labelled_rows(rows))
    click.echo(f"{time.time() - start:.0f} s\n{picture}")


if __name__ == "__main__":
    main()
