"""Five hundred images: does D overfit, and what keeps it from that?

    python examples/limited_data.py                        # what is missing, then the report
    python examples/limited_data.py --methods=none,apa --seeds=1 --kimg=100 --subset=100

Trains from scratch on a few toon heads, every method with the same seeds and images, and measures
against 5,000 others.
"""

from __future__ import annotations

import json
from pathlib import Path

import make_data
import measures
import numpy as np
import torch
from experiment import Experiment, Record, Runs, Settings, by_method, command
from measures import real_images
from tables import cells, markdown, save_curves, spread
from torch import Tensor
from trials import ROOT, Trial

from stylegan2_fewshot.pixels import to_float
from training import pickles
from training.dataset import ImageDataset
from training.run_dir import snapshots

DATA = make_data.archive(make_data.SOURCE, "train")
HELDOUT = make_data.archive(make_data.SOURCE, "heldout")
KID = "kid1k_full@mobilenetv2"
OVERFITTING = "overfitting"
COMPARED = 480  # images of each kind for r_v: a multiple of D's groups
BEST = {"KID, best": (KID, 3), "at kimg": ("kimg", 0)}  # heading: key, digits
LAST = {"KID, last": (KID, 3)}
MEMORY = {"r_v": (OVERFITTING, 2)}
ENDS = {"logits, real": ("real", 2), "fake": ("fake", 2)}
ENDS |= {"p of ADA": ("ada_p", 2), "p of APA": ("apa_p", 2)}


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


class LimitedData(Experiment):
    name = "limited-data"
    methods = {
        "none": "--aug=noaug",
        "ADA": "--aug=ada --ada-kimg={p_kimg:g}",
        "APA": "--aug=apa --apa-kimg={p_kimg:g}",
        # With equal targets both p rise together: ADA acts first here, and APA on what is left.
        "ADA + APA": "--aug=ada,apa --target=0.5 --apa-target=0.6 --ada-kimg={p_kimg:g} "
        "--apa-kimg={p_kimg:g}",
        "DiffAugment": "--aug=diffaugment",
        "all 20,000": "--aug=noaug",
    }
    settings = {"kimg": 500, "subset": 500, "p_kimg": 20.0}

    def trial(self, method: str, options: str, seed: int, settings: Settings) -> Trial:
        kimg, subset = settings["kimg"], settings["subset"]
        part = "" if method == "all 20,000" else f"--subset={subset} "
        shared = (
            f"--data={DATA} {part}--metricdata={HELDOUT} --cbase=1024 --cmax=64 --zdim=64 "
            f"--map-depth=2 --batch=16 --gamma=0.05 --ema-kimg=10 --pl-weight=0 --kimg={kimg} "
            f"--tick={kimg / 100:g} --snap=4 --metrics={KID}"
        )
        return Trial(method, f"{shared} {options.format(**settings)}", seed)

    def measure(self, trial: Trial, run_dir: Path) -> None:
        options = json.loads((run_dir / "training_options.json").read_text())["dataset"]
        dataset = ImageDataset(**{**options, "path": ROOT / options["path"]})
        count = min(len(dataset), COMPARED)
        seen = to_float(torch.from_numpy(np.stack([dataset[i][0] for i in range(count)])))
        unseen = to_float(real_images(HELDOUT, count))
        measures.kept(
            run_dir,
            OVERFITTING,
            snapshots(run_dir)[1:],
            lambda path: {OVERFITTING: overfitting(path, seen, unseen)},
        )

    def paragraphs(self, record: Record) -> list[str]:
        header = ["method", "seeds", *BEST, *LAST, "last / best", *MEMORY, *ENDS]
        lines = []
        for method, runs in by_method(record).items():
            curves = [[s for s in run["snapshots"] if KID in s] for run in runs]
            best, last = [min(c, key=lambda s: s[KID]) for c in curves], [c[-1] for c in curves]
            climb = spread([a[KID] / b[KID] for a, b in zip(last, best, strict=True)], 2)
            line = [method, str(len(runs)), *cells(best, BEST), *cells(last, LAST), climb]
            lines.append([*line, *cells(last, MEMORY), *cells([r["end"] for r in runs], ENDS)])
        return [markdown(header, lines), "![KID and r_v along training](limited-data.png)"]

    def pictures(self, runs: Runs, record: Record, docs: Path) -> None:
        if runs:
            titles = {key: key for key in (KID, OVERFITTING)}
            save_curves(docs / "limited-data.png", (10, 4), by_method(record), titles)


EXPERIMENT = LimitedData()

if __name__ == "__main__":
    command(EXPERIMENT, __doc__)()
