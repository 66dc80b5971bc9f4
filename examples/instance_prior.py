"""The data instance prior's experiment: does it help, and does a condition mean anything?

    python examples/instance_prior.py [--kimg=15] [--out=out/instance-prior]

On the ten-shot target and on a hundred-shot one, adapts the example network without and with the
prior, of two backbones, and with EWC and APA beside it, and writes docs/instance-prior.md with its
pictures. A larger --kimg is a larger experiment; an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import functools
from pathlib import Path

import click
import numpy as np
import torch
from experiment import (
    ROOT,
    Trial,
    last_and_best,
    last_snapshot,
    markdown,
    measured,
    publish,
    real_images,
    run,
    samples,
    slug,
    train,
)
from make_data import base_code_point, write_zip

from metrics import detectors
from stylegan2_fewshot.methods.prior import instances
from training import grids
from training.dataset import ImageDataset

SOURCE = Path("examples/noto-portraits-64.pkl")
TEN = Path("examples/twemoji-ten.zip")
HELDOUT = Path("examples/twemoji-heldout.zip")
BACKBONES = ("mobilenetv2", "vgg16")
COMMON = f"--resume={SOURCE} --mirror=1 --batch=4 --gamma=0.5 --pl-weight=0 --tick=1 --snap=1000"
METRICS = {  # by the heading of their column
    "KID": "kid5k_full@mobilenetv2",
    "intra-LPIPS": "lpips1k_intra",
    "precision": "pr5k3_full_precision@mobilenetv2",
    "recall": "pr5k3_full_recall@mobilenetv2",
    "nearness": "nn1k_ratio",
    "copies": "nn1k_copies",
}
IN_LOOP = "kid5k_full@mobilenetv2,lpips1k_intra,pr5k3_full@mobilenetv2,nn1k"
BETWEEN = ("kid5k_full@mobilenetv2", "nn1k")  # measured once more, with conditions by mixup
RETRIEVED = 400  # samples, the same number from every training image's condition
SHOWN = 6


def hundred(folder: Path) -> tuple[Path, Path]:
    """Write the hundred-shot target and its held-out images; no drawing is in both.

    Half of the drawings of the ten-shot target's held-out archive, of which a hundred images are
    chosen, and the other half.
    """
    pngs = dict(ImageDataset(ROOT / HELDOUT).files())
    bases = sorted({base_code_point(name) for name in pngs})
    rng = np.random.RandomState(0)
    ours = set(rng.permutation(bases)[: len(bases) // 2])
    mine = sorted(name for name in pngs if base_code_point(name) in ours)
    chosen = rng.permutation(mine)[:100]
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    shots, rest = folder / "twemoji-hundred.zip", folder / "twemoji-rest.zip"
    write_zip(ROOT / shots, {name: pngs[name] for name in chosen})
    others = {name: png for name, png in pngs.items() if base_code_point(name) not in ours}
    write_zip(ROOT / rest, others)
    return shots, rest


def features(data: Path, out: Path) -> dict[str, Path]:
    """Compute the features of a target that are missing; return their files by backbone."""
    found = {name: out / f"{data.stem}-{name}.npz" for name in BACKBONES}
    for name, path in found.items():
        if not (ROOT / path).exists():
            run(features_command(data, name, path), ROOT / out / "features.txt")
    return found


def features_command(data: Path, backbone: str, out: Path) -> str:
    """Return the command line, without `python`."""
    return f"-m tools.features {data} --backbone={backbone} --out={out}"


def trials(data: Path, heldout: Path, priors: dict[str, Path], kimg: str) -> list[Trial]:
    """Return the runs of one target."""
    mobilenet, vgg = (f"--prior={path}" for path in priors.values())
    methods = {
        "no prior": "--aug=noaug",
        "mobilenetv2 prior": f"--aug=noaug {mobilenet}",
        "vgg16 prior": f"--aug=noaug {vgg}",
        "vgg16 prior + EWC": f"--aug=noaug {vgg} --ewc-lambda=500 --ewc-samples=200",
        "vgg16 prior + APA": f"--aug=apa {vgg}",
    }
    same = f"--data={data} --metricdata={heldout} {COMMON} --metrics={IN_LOOP} --kimg={kimg}"
    return [Trial(name, f"{same} {how}") for name, how in methods.items()]


@functools.lru_cache(maxsize=2)
def embedded(data: Path) -> torch.Tensor:
    """Return LPIPS vectors of a target's images `[2, N, F]`, mirror images second."""
    images = real_images(ROOT / data)
    return torch.stack([lpips(images), lpips(images.flip(3))])


def lpips(images: torch.Tensor) -> torch.Tensor:
    """Return vectors whose squared distance is LPIPS (VGG), of images in [-1, 1]."""
    detector = detectors.load("lpips-vgg16")
    return torch.cat([detector((part + 1) * 127.5) for part in images.split(8)])


def retrieval(network: Path, data: Path, priors: Path | None) -> tuple[float, float]:
    """Return the mean rank, from 1, of the conditioning image and how often it is the first.

    For every training image, samples are drawn from its condition, and all training images
    are ordered by their LPIPS to each sample, an image and its mirror image counting as one.

    Args:
        network: Network pickle.
        data: Training images.
        priors: Features of the training images; None for a network without conditions.
    """
    real = embedded(data)
    number = real.shape[1]
    own = torch.arange(number).repeat_interleave(RETRIEVED // number)
    labels = None if priors is None else _conditions(priors)[own]
    fakes = lpips(samples(network, range(len(own)), label=labels))
    distances = torch.cdist(fakes, real.flatten(0, 1)).view(len(own), 2, number).amin(1)
    ranks = (distances < distances.gather(1, own[:, None])).sum(1) + 1
    return ranks.float().mean().item(), (ranks == 1).float().mean().item()


def _conditions(priors: Path) -> torch.Tensor:
    """Return the conditions of a target's images as they are, not mirrored, `[N, c_dim]`."""
    return instances.load(ROOT / priors).as_conditions().vectors[0]


def picture(path: Path, network: Path, data: Path, priors: Path) -> None:
    """Write a row for each of a few training images: the image, and samples of its condition."""
    real, conditions = real_images(ROOT / data, SHOWN), _conditions(priors)
    rows = []
    for index, image in enumerate(real):
        fakes = samples(network, range(8), psi=0.8, label=conditions[index])
        rows.append((f"image {index}", torch.cat([image[None], fakes])))
    grids.save_png(path, grids.labelled_rows(rows))


def table(runs: dict[Trial, Path], data: Path, heldout: Path, priors: dict[str, Path]) -> str:
    """Return the results on one target as Markdown."""
    number = len(ImageDataset(ROOT / data).file_names)
    rows = []
    for trial, folder in runs.items():
        last, _ = last_and_best(folder, IN_LOOP.partition(",")[0])
        network, own = last_snapshot(folder), priors.get(trial.method.partition(" ")[0])
        rank, first = retrieval(network, data, own)
        row = [trial.method, *(f"{last[name]:.3f}" for name in METRICS.values())]
        rows.append([*row, f"{rank:.2f}", f"{first:.2f}"])
        if own:
            options = f"--metricdata={heldout} --prior-sample=mixup"
            between = measured(network, BETWEEN, options, network.parent / "mixup")
            cells = [f"{between[k]:.3f}" if k in between else "" for k in METRICS.values()]
            rows.append(["... between conditions", *cells, "", ""])
    rows.append(["chance", *[""] * len(METRICS), f"{(number + 1) / 2:.2f}", f"{1 / number:.2f}"])
    return markdown(["method", *METRICS, "rank", "first"], rows)


def section(title: str, data: Path, heldout: Path, *, out: Path, docs: Path, kimg: str) -> str:
    """Run the experiment on one target; return its part of the report."""
    priors = features(data, out)
    chosen = trials(data, heldout, priors, kimg)
    runs = train(chosen, out / data.stem)
    name = f"instance-prior-{data.stem}.png"
    shown = next(trial for trial in chosen if trial.method == "vgg16 prior")
    picture(docs / name, last_snapshot(runs[shown]), data, priors["vgg16"])
    commands = [features_command(data, *prior) for prior in priors.items()]
    commands += [trial.command(out / data.stem) for trial in chosen]
    lines = "\n".join(f"    python {command}" for command in commands)
    return f"{table(runs, data, heldout, priors)}\n\n![{title}]({name})\n\n{lines}"


@click.command()
@click.option("--kimg", default="15", show_default=True, help="Length of each training.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out/instance-prior"), show_default=True
)
@click.option("--docs", type=click.Path(path_type=Path), default=ROOT / "docs", help="Report.")
def main(kimg: str, out: Path, docs: Path) -> None:
    """Measure what the data instance prior does, and write docs/instance-prior.md."""
    targets = {"Ten shots": (TEN, HELDOUT), "A hundred shots": hundred(out)}
    for title, where in targets.items():
        text = section(title, *where, out=out, docs=docs, kimg=kimg)
        publish(docs / "instance-prior.md", slug(title), text)
    click.echo(docs / "instance-prior.md")


if __name__ == "__main__":
    main()
