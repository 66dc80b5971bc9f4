"""The limited-data experiment: does D overfit to a hundred images, and what keeps it from that?

    python examples/limited_data.py                            # all of it, or what is missing
    python examples/limited_data.py --methods=none,apa --seeds=1
    python examples/limited_data.py --size=large --out=out/limited-data-large       # on a GPU

Trains from scratch on a part of the Noto portraits, every method for as long and with the same
seeds, and writes docs/limited-data.md. It goes on where it was interrupted.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from experiment import (
    ROOT,
    Trial,
    by_method,
    choice,
    commands,
    finished,
    last_and_best,
    markdown,
    numbers,
    publish,
    save_figure,
    slug,
    spread,
    train,
)
from make_data import write_zip
from PIL import Image
from torch import Tensor

import metrics
from training import pickles
from training.dataset import ImageDataset

SOURCE = ROOT / "examples/noto-portraits.zip"
METHODS = {
    "none": "--aug=noaug",
    "ADA": "--aug=ada --ada-kimg={p_kimg}",
    "APA": "--aug=apa --apa-kimg={p_kimg}",
    "ADA + APA": "--aug=ada,apa --ada-kimg={p_kimg} --apa-kimg={p_kimg}",
    "DiffAugment": "--aug=diffaugment",
}
DISTANCE = "kid1k_full@mobilenetv2"
OVERFITTING = "overfitting"
GROUP = 4  # images that D compares with one another
Runs = Mapping[str, list[Path]]  # finished run directories by method


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Attributes:
        resolution: Height and width of the images.
        subset: Number of images to train with.
        kimg: Length of each run.
        p_kimg: Thousands of images in which p can go from 0 to 1.
        snapshots: How many networks of a run are saved and measured.
        options: Further options of `train.py`.
    """

    resolution: int
    subset: int
    kimg: int
    p_kimg: int
    snapshots: int
    options: str


TINY = "--cbase=1024 --cmax=64 --zdim=64 --map-depth=2 --batch=8 --gamma=0.1 --ema-kimg=3"
SIZES = {
    "small": Size(32, 100, 100, 100, 10, f"{TINY} --pl-weight=0"),
    "large": Size(64, 500, 2000, 500, 20, "--cmax=256 --batch=32 --gamma=0.1 --pl-weight=0"),
}


def setting(size: Size, archive: Path) -> str:
    """Return the options of `train.py` that all methods share."""
    return (
        f"--data={archive} --subset={size.subset} {size.options} --kimg={size.kimg} "
        f"--tick={size.kimg / size.snapshots / 5:g} --snap=5 --metrics={DISTANCE}"
    )


def reduced(source: Path, resolution: int, out: Path) -> Path:
    """Write the archive at a lower resolution, each pixel a square's mean; return its path."""
    path, full = out / f"{source.stem}-{resolution}.zip", ImageDataset(source).resolution
    if resolution < 4 or full % resolution:
        raise click.UsageError(f"--resolution={resolution}: must divide {full}; take 32 or 64")
    if not (ROOT / path).exists():
        (ROOT / out).mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(source) as archive:
            pngs = {name: archive.read(name) for name in archive.namelist()}
        write_zip(ROOT / path, {n: _reduce(png, full // resolution) for n, png in pngs.items()})
    return path


def _reduce(png: bytes, factor: int) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.reduce(factor).save(buffer, "png", optimize=True)
    return buffer.getvalue()


@torch.no_grad()
def overfitting(network: Path, seen: Tensor, unseen: Tensor) -> float:
    """Return how much of D's verdict on real images is memory: 0 none, 1 all.

    Karras et al., NeurIPS 2020 (arXiv 2006.06676), Eq. 1:
    `r_v = (E[D(train)] - E[D(validation)]) / (E[D(train)] - E[D(generated)])`.

    Args:
        network: Network pickle, unconditional.
        seen: Training images `[N, C, H, W]` in [-1, 1], in random order: D compares neighbours.
        unseen: Real images that were not trained with, likewise.
    """
    nets = pickles.load(network)
    z = torch.randn(len(unseen), nets.G.z_dim, generator=torch.Generator().manual_seed(0))
    fakes = torch.cat([nets.G(part, None, noise_mode="const") for part in z.split(32)])
    train, validation, generated = (
        torch.cat([nets.D(part, None) for part in images.split(32)]).mean().item()
        for images in (seen, unseen, fakes)
    )
    return (train - validation) / (train - generated)


def measure_overfitting(run_dir: Path) -> None:
    """Add `overfitting` of a run's snapshots to its metrics, where it is missing."""
    found = metrics.read(run_dir)
    known = {line["snapshot_pkl"] for line in found.get(OVERFITTING, [])}
    missing = [line for line in found[DISTANCE] if line["snapshot_pkl"] not in known]
    images = _seen_and_unseen(run_dir) if missing else ()
    for line in missing:
        value = overfitting(run_dir / line["snapshot_pkl"], *images)
        mine = {"metric": OVERFITTING, "results": {OVERFITTING: value}, "better": "lower"}
        metrics.append(run_dir, {**line, **mine})


def _seen_and_unseen(run_dir: Path) -> tuple[Tensor, ...]:
    """Return training images of a run and as many of the rest of its archive, shuffled."""
    options = json.loads((run_dir / "training_options.json").read_text())["dataset"]
    options["path"] = ROOT / options["path"]  # as train.py was told, in that folder
    dataset, everything = (
        ImageDataset(**{**options, "max_size": n}) for n in (options["max_size"], None)
    )
    chosen = {dataset.locate(i)[0] for i in range(len(dataset))}
    order = np.random.RandomState(0).permutation(len(everything))
    parts = [[i for i in order if (i in chosen) == wanted] for wanted in (True, False)]
    size = min(map(len, parts)) // GROUP * GROUP
    pixels = [np.stack([everything[i][0] for i in part[:size]]) for part in parts]
    return tuple(torch.from_numpy(part).float() / 127.5 - 1 for part in pixels)


def statistics(run_dir: Path, name: str) -> tuple[list[float], list[float]]:
    """Return kimg and mean of a statistic at each tick of a run; empty where it has none."""
    lines = map(json.loads, (run_dir / "stats.jsonl").read_text().splitlines())
    points = [(line["nimg"] / 1000, line[name]["mean"]) for line in lines if name in line]
    return [kimg for kimg, _ in points], [mean for _, mean in points]


def measured(run_dir: Path, metric: str) -> tuple[list[float], list[float]]:
    """Return kimg and value of a metric at each snapshot of a run."""
    lines = metrics.read(run_dir)[metric]
    return [line["kimg"] for line in lines], [metrics.value(line) for line in lines]


def draw(figure: Any, runs: Runs) -> None:
    """Draw distance, logits, overfitting and p over kimg: a colour for each method."""
    distance, logits, memory, p = figure.subplots(2, 2, sharex=True).flat
    for number, (method, folders) in enumerate(runs.items()):
        for index, run_dir in enumerate(folders):
            look = {"color": f"C{number}", "linewidth": 1.2}
            label = {} if index else {"label": method}
            distance.plot(*measured(run_dir, DISTANCE), ".-", **look, **label)
            memory.plot(*measured(run_dir, OVERFITTING), ".-", **look)
            logits.plot(*statistics(run_dir, "Loss/scores/real"), "-", **look)
            logits.plot(*statistics(run_dir, "Loss/scores/fake"), ":", **look)
            p.plot(*statistics(run_dir, "Augment/ada_p"), "-", **look)
            p.plot(*statistics(run_dir, "Augment/apa_p"), ":", **look)
    distance.set(title=DISTANCE)
    logits.set(title="D's logits: real —, fake ···")
    memory.set(title="overfitting of D, r_v", xlabel="kimg")
    p.set(title="p: ADA —, APA ···", xlabel="kimg")
    for panel in (distance, logits, memory, p):
        panel.grid(alpha=0.3)
    distance.legend()


def table(runs: Runs) -> str:
    """Return, by method, the means and spreads over seeds at the best and the last snapshot."""
    header = ["method", "seeds", "KID, best", "at kimg", "KID, last", "last / best", "r_v"]
    header += ["sign of real", "real", "fake", "p of ADA", "p of APA"]
    names = ("Loss/signs/real", "Loss/scores/real", "Loss/scores/fake")
    names += ("Augment/ada_p", "Augment/apa_p")
    rows = []
    for method, folders in runs.items():
        pairs = [last_and_best(folder, DISTANCE) for folder in folders]
        cells = [
            spread([best[DISTANCE] for _, best in pairs], 4),
            spread([best["kimg"] for _, best in pairs], 0),
            spread([last[DISTANCE] for last, _ in pairs], 4),
            spread([last[DISTANCE] / best[DISTANCE] for last, best in pairs], 2),
            spread([last[OVERFITTING] for last, _ in pairs], 2),
        ]
        rows.append([method, str(len(folders)), *cells, *(_last(folders, name) for name in names)])
    return markdown(header, rows)


def _last(folders: Sequence[Path], name: str) -> str:
    """Return the mean of a statistic over the last tenth of training, or a dash."""
    curves = [statistics(folder, name)[1] for folder in folders]
    ends = [float(np.mean(curve[-max(len(curve) // 10, 1) :])) for curve in curves if curve]
    return spread(ends, 2) if ends else "-"


def report(trials: Sequence[Trial], size: Size, out: Path, docs: Path) -> None:
    """Write the document's measured part and its plot from the runs that are finished."""
    done = finished(trials, out)
    for run_dir in done.values():
        measure_overfitting(run_dir)
    runs = by_method(done)
    what = f"{size.subset} images of {size.resolution}x{size.resolution}, {size.kimg} kimg"
    plot = "limited-data.png"
    save_figure(docs / plot, (12, 8), lambda figure: draw(figure, runs))
    text = [f"![Along training]({plot})", f"{what}:", table(runs), commands(done, out)]
    publish(docs / "limited-data.md", "limited-data", "\n\n".join(text))


@click.command(help=__doc__.split("\n")[0])
@click.option("--size", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option(
    "--methods", default=",".join(map(slug, METHODS)), callback=choice(METHODS), show_default=True
)
@click.option("--seeds", default="0", callback=numbers, show_default=True)
@click.option("--resolution", type=click.IntRange(min=4), help="Height and width of the images.")
@click.option("--subset", type=click.IntRange(8, 900), help="Number of images to train with.")
@click.option("--kimg", type=click.IntRange(min=1), help="Length of each run.")
@click.option("--snapshots", type=click.IntRange(min=1), help="How many are measured.")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time.  [default: cores]")
@click.option(
    "--out", type=click.Path(path_type=Path), default="out/limited-data", show_default=True
)
@click.option("--docs", type=click.Path(path_type=Path), default=ROOT / "docs", help="Report's.")
def main(
    size: str,
    methods: list[str],
    seeds: list[int],
    jobs: int | None,
    out: Path,
    docs: Path,
    **given: int | None,
) -> None:
    """Run what is chosen and missing, then report all that is there."""
    start = time.time()
    chosen = replace(SIZES[size], **{name: value for name, value in given.items() if value})
    archive = reduced(SOURCE, chosen.resolution, out)
    if complaints := metrics.usable([DISTANCE], ImageDataset(ROOT / archive))[1]:
        raise click.UsageError("\n".join(complaints))
    shared = setting(chosen, archive)
    ways = {name: f"{shared} {way.format(p_kimg=chosen.p_kimg)}" for name, way in METHODS.items()}
    trials = [Trial(name, way, seed) for seed in seeds for name, way in ways.items()]
    train([trial for trial in trials if trial.method in methods], out, jobs=jobs)
    report(trials, chosen, out, docs)
    click.echo(f"{time.time() - start:.0f} s\n{docs / 'limited-data.md'}")


if __name__ == "__main__":
    main()
