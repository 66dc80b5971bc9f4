"""Five hundred images: does D overfit, and what keeps it from that?

    python examples/limited_data.py                        # what is missing, then the report
    python examples/limited_data.py --methods=none,apa --seeds=1 --kimg=100 --subset=100

Trains from scratch on a few toon heads, every method with the same seeds and images, and measures
against 5,000 others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import make_data
import measures
import numpy as np
import torch
from experiment import Experiment, Record, Runs, by_method, command, commands, load
from measures import as_float, real_images
from tables import markdown, save_figure, spread
from torch import Tensor
from trials import ROOT, Trial, snapshots

from training import pickles
from training.dataset import ImageDataset

DATA = make_data.archive(make_data.SOURCE, "train")
HELDOUT = make_data.archive(make_data.SOURCE, "heldout")
P = "--{0}-kimg={{p_kimg:g}}".format
METHODS = {
    "none": "--aug=noaug",
    "ADA": f"--aug=ada {P('ada')}",
    "APA": f"--aug=apa {P('apa')}",
    # With equal targets both p rise together: ADA acts first here, and APA on what is left.
    "ADA + APA": f"--aug=ada,apa --target=0.5 --apa-target=0.6 {P('ada')} {P('apa')}",
    "DiffAugment": "--aug=diffaugment",
    "all 20,000": "--aug=noaug",
}
KID = "kid1k_full@mobilenetv2"
OVERFITTING = "overfitting"
COMPARED = 480  # images of each kind for r_v: a multiple of D's groups


def trial(method: str, options: str, seed: int, settings: Mapping[str, Any]) -> Trial:
    """Return the run of a method and a seed."""
    kimg, subset = settings["kimg"], settings["subset"]
    part = "" if method == "all 20,000" else f"--subset={subset} "
    shared = (
        f"--data={DATA} {part}--metricdata={HELDOUT} --cbase=1024 --cmax=64 --zdim=64 "
        f"--map-depth=2 --batch=16 --gamma=0.05 --ema-kimg=10 --pl-weight=0 --kimg={kimg} "
        f"--tick={kimg / 100:g} --snap=4 --metrics={KID}"
    )
    return Trial(method, f"{shared} {options.format(p_kimg=settings['p_kimg'])}", seed)


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
    D = pickles.load(network).D
    fakes = measures.samples(network, range(len(unseen)))
    train, validation, generated = (
        torch.cat([D(part, None) for part in images.split(32)]).mean().item()
        for images in (seen, unseen, fakes)
    )
    return (train - validation) / (train - generated)


def measure(trial: Trial, run_dir: Path) -> None:
    """Add r_v of every snapshot to a run's metrics."""
    options = json.loads((run_dir / "training_options.json").read_text())["dataset"]
    dataset = ImageDataset(**{**options, "path": ROOT / options["path"]})
    count = min(len(dataset), COMPARED)
    seen = as_float(torch.from_numpy(np.stack([dataset[i][0] for i in range(count)])))
    unseen = as_float(real_images(HELDOUT, count))
    for path in snapshots(run_dir)[1:]:

        def value(path: Path = path) -> dict[str, Any]:
            return {OVERFITTING: overfitting(path, seen, unseen)}

        measures.kept(run_dir, OVERFITTING, path, value)


def table(record: Record) -> str:
    """Return, by method, means and spreads over seeds at the best and at the last snapshot."""
    header = ["method", "seeds", "KID, best", "at kimg", "KID, last", "last / best", "r_v"]
    header += ["logits, real", "fake", "p of ADA", "p of APA"]
    lines = []
    for method, runs in by_method(record).items():
        curves = [[s for s in run["snapshots"] if KID in s] for run in runs]
        best, last = [min(c, key=lambda s: s[KID]) for c in curves], [c[-1] for c in curves]
        climb = [a[KID] / b[KID] for a, b in zip(last, best, strict=True)]
        cells = [
            spread([s[KID] for s in best]),
            spread([s["kimg"] for s in best], 0),
            spread([s[KID] for s in last]),
            spread(climb, 2),
            spread([s.get(OVERFITTING) for s in last], 2),
        ]
        ends = (spread([r["end"].get(k) for r in runs], 2) for k in ENDS)
        lines.append([method, str(len(runs)), *cells, *ends])
    return markdown(header, lines)


ENDS = ("real", "fake", "ada_p", "apa_p")


def sections(record: Record) -> dict[str, str]:
    """Return the document's section."""
    if not record["runs"]:
        return {"limited-data": "0 of 3 seeds were run."}
    plot = "![KID and r_v along training](limited-data.png)"
    return {"limited-data": "\n\n".join([table(record), plot, commands(record)])}


def pictures(runs: Runs, settings: Mapping[str, Any], docs: Path) -> None:
    """Draw KID and r_v along training from the record beside the document."""
    if runs:
        record = load("limited-data", docs)
        save_figure(docs / "limited-data.png", (10, 4), lambda figure: draw(figure, record))


def draw(figure: Any, record: Record) -> None:
    """Draw a panel for each measure: a colour for each method, a line for each seed."""
    panels: Iterable[tuple[str, Any]] = zip((KID, OVERFITTING), figure.subplots(1, 2), strict=True)
    for key, panel in panels:
        for number, (method, runs) in enumerate(by_method(record).items()):
            for index, run in enumerate(runs):
                points = [(s["kimg"], s[key]) for s in run["snapshots"] if key in s]
                label = None if index else method
                panel.plot(*zip(*points, strict=True), ".-", color=f"C{number}", label=label)
        panel.set(title=key, xlabel="kimg")
        panel.grid(alpha=0.3)
    panel.legend()


EXPERIMENT = Experiment(
    "limited-data",
    METHODS,
    trial,
    sections,
    settings={"kimg": 500, "subset": 500, "p_kimg": 20.0},
    measure=measure,
    pictures=pictures,
)

if __name__ == "__main__":
    command(EXPERIMENT, __doc__)()
