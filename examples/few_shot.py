"""Ten images: does EWC keep what fine-tuning loses, and what do other methods do?

    python examples/few_shot.py                                  # what is missing, then the report
    python examples/few_shot.py --methods=ewc --seeds=0 --target=personas
    python examples/few_shot.py --method="mine=--plugin=my.py:Mine --mine-weight=1" --docs=out/board

Adapts the example network to ten images, each seed to its own ten, and measures every snapshot
against 5,000 held-out images. Runs are paired: the same seed has the same ten, latents and noise
with every method.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import make_data
import measures
import scipy.stats
import torch
from experiment import Experiment, Record, Runs, by_method, command, commands, remembered, rounded
from measures import as_float, real_images, samples
from tables import MINUS, markdown, spread
from trials import ROOT, Trial, run, snapshots

import metrics
from stylegan2_fewshot.files import sha256_of
from training import grids
from training.dataset import ImageDataset

SOURCE = Path("examples/toon-heads-32.pkl")
TARGETS = ("lorelei", "personas")
P_KIMG = 0.4  # thousands of images in which p can go from 0 to 1: a run is short
METHODS = {
    "fine-tuning": "--aug=noaug",
    "EWC": "--aug=noaug {ewc}",
    "EWC, lambda 3": "--aug=noaug --ewc-lambda=3 --ewc-samples=500",
    "EWC + APA": "--aug=apa --apa-kimg={p_kimg} {ewc}",
    "placebo": "--aug=noaug --lecam-lambda=1e-9",
    "APA": "--aug=apa --apa-kimg={p_kimg}",
    "ADA": "--aug=ada --ada-kimg={p_kimg}",
    "Freeze-D": "--aug=noaug --freezed=4",
    "CDC": "--aug=noaug --cdc-lambda=1000",
    "tune": "--aug=noaug --tune=affine-bias",
    "FSGAN": "--aug=noaug --fsgan=GD",
    "RICK": "--aug=noaug --rick-freeze=40",
    "AdAM": "--aug=noaug --adam-percentile=50",
    "DCL": "--aug=noaug --dcl-g=2",
    "MineGAN": "--aug=noaug --minegan-layers=2",
    "frozen": "--aug=noaug --ewc-lambda=1e12",
}
SEEDS = (0, 1, 2, 3, 4)
DEFAULT = ("fine-tuning", "EWC", "EWC + APA", "placebo")
KID, DIVERSITY = "kid5k_full@mobilenetv2", "lpips1k_intra"
METRICS = (KID, "fd5k_full@mobilenetv2", "pr5k3_full@mobilenetv2", DIVERSITY)
FURTHER = "copies"
COLUMNS = {  # heading: key, digits
    "KID": (KID, 3),
    "FD": ("fd5k_full@mobilenetv2", 0),
    "precision": ("pr5k3_full_precision@mobilenetv2", 2),
    "recall": ("pr5k3_full_recall@mobilenetv2", 2),
    "intra-LPIPS": (DIVERSITY, 3),
    "copies": ("copies", 2),
    "nearness": ("nearness", 2),
    "sharpness": ("sharpness", 1),
}
SHOWN = range(12)  # seeds of the pictures
EMBEDDED = "source, embedded held-out"  # the row that check.py measures anew


def ten(target: str, seed: int, size: int = 32) -> Path:
    """Return the archive of the ten images that a seed trains on."""
    return make_data.archive(target, f"ten{seed % len(SEEDS)}", size)


def heldout(target: str, size: int = 32) -> Path:
    """Return the archive of the images to measure against."""
    return make_data.archive(target, "heldout", size)


def group(settings: Mapping[str, Any]) -> str:
    """Return the name of a target's section, and of its folder of runs."""
    target, size = settings["target"], settings["size"]
    return target if size == 32 else f"{target}-{size}"


def trial(method: str, options: str, seed: int, settings: Mapping[str, Any]) -> Trial:
    """Return the run of a method and a seed."""
    where, kimg, snaps = (settings[key] for key in ("target", "kimg", "snapshots"))
    size, own = settings["size"], options.format(p_kimg=P_KIMG, ewc=settings["ewc"])
    shared = (
        f"--data={ten(where, seed, size)} --metricdata={heldout(where, size)} "
        f"--resume={settings['source']} --mirror=1 "
        f"--batch=4 --gamma={settings['gamma']:g} --pl-weight=0 --ema-kimg=2 --kimg={kimg} "
        f"--tick={kimg / snaps / 16:g} --snap=16 --metrics={','.join(METRICS)}"
    )
    return Trial(method, f"{shared} {own}", seed, group(settings))


def archives(settings: Mapping[str, Any], seed: int = 0) -> tuple[Path, Path]:
    """Return a seed's ten images, and those to measure against."""
    target, size = settings["target"], settings["size"]
    return ten(target, seed, size), heldout(target, size)


def prepare(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse what cannot be run, with what to do."""
    if settings["target"] not in TARGETS:
        raise click.UsageError(f"--target: {settings['target']} is none of {', '.join(TARGETS)}")
    for archive in archives(settings):
        if not (ROOT / archive).exists():
            size = settings["size"]
            raise click.UsageError(f"{archive}: run python examples/make_data.py --size={size}")
    data = [ImageDataset(ROOT / archive) for archive in archives(settings)]
    if complaints := metrics.usable(METRICS, *data)[1]:
        raise click.UsageError("\n".join(complaints))


def measure(trial: Trial, run_dir: Path) -> None:
    """Add copies at matched blur to the last snapshot's metrics."""
    last, options = snapshots(run_dir)[-1], trial.options
    where = [Path(re.search(rf"--{name}=(\S+)", options)[1]) for name in ("data", "metricdata")]
    measures.kept(run_dir, FURTHER, last, lambda: measures.further(last, *where))


def references(runs: Runs, out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows that runs are compared with, by target and name."""
    folder, source = out / group(settings), settings["source"]
    name = f"source-{sha256_of(ROOT / source)[:8]}.json"
    own = remembered(folder / name, lambda: _source(settings, folder))
    images = remembered(folder / "images.json", lambda: _images(settings))
    level = _level(runs) or round(own["source"]["sharpness"])
    soft = remembered(folder / f"blurred-{level}.json", lambda: _blurred(settings, level))
    return {group(settings): {**own, **images, f"held-out, blurred to {level}": soft}}


def _level(runs: Runs) -> float | None:
    """Return the mean sharpness of the fine-tuned networks' samples, if there are any."""
    found = [metrics.read(path) for trial, path in runs.items() if trial.method == "fine-tuning"]
    levels = [lines[FURTHER][-1]["results"]["sharpness"] for lines in found]
    return round(sum(levels) / len(levels)) if levels else None


def _blurred(settings: Mapping[str, Any], level: float) -> dict[str, Any]:
    shots, unseen = archives(settings)
    return _row(measures.blurred_to(real_images(unseen), level), shots, unseen)


def _source(settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    folder, data, source = out / "source", archives(settings), settings["source"]
    where = f"--data={data[0]} --metricdata={data[1]} --mirror=1"
    if not metrics.read(ROOT / folder):
        names = f"--metrics={','.join(METRICS)}"
        run(f"-m metrics {source} {names} {where} --out={folder}", ROOT / folder / "output.txt")
    found = {
        k: v for m in metrics.read(ROOT / folder).values() for k, v in m[-1]["results"].items()
    }
    rows = {"source": rounded({**found, **measures.further(ROOT / source, *data)})}
    if Path(source) == SOURCE:
        rows[EMBEDDED] = rounded({"kid1k_full@mobilenetv2": embedded(settings["target"])})
    return rows


def embedded(target: str) -> float:
    """Return KID of 1,000 of the source's samples to the held-out images in the repository."""
    name, few = "kid1k_full@mobilenetv2", (f"examples/{target}-{n}.zip" for n in ("ten", "heldout"))
    data = [ImageDataset(ROOT / path) for path in few]
    G = measures.pickles.load(ROOT / SOURCE).G_ema
    return next(metrics.compute([name], G, *data, show=False))["results"][name]


def _images(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of images that no network has made."""
    shots, unseen = archives(settings)
    few, many = real_images(shots), real_images(unseen)
    own = real_images(make_data.archive(make_data.SOURCE, "heldout", settings["size"]))
    rows = {
        "the ten themselves": few,
        "real source images": own,
        "held-out themselves": many,
    }
    found = {name: _row(images, shots, unseen) for name, images in rows.items()}
    control = measures.copies(measures.blurred(few, 1.5), few, many[: measures.COUNT])
    return {**found, "the ten, blurred by 1.5 px": rounded(control)}


def _row(images: torch.Tensor, shots: Path, unseen: Path) -> dict[str, Any]:
    found = measures.of_images(images, METRICS, shots, unseen)
    near = measures.copies(
        images[: measures.COUNT], real_images(shots), real_images(unseen)[-measures.COUNT :]
    )
    return rounded({**found, "sharpness": measures.sharpness(images), **near})


def at_end(run: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures of a run's last snapshot."""
    return run["snapshots"][-1]


def sections(record: Record) -> dict[str, str]:
    """Return the document's sections."""
    found = {}
    for target, rows in record["references"].items():
        parts = [reference_table(rows), method_table(record, target), seed_table(record, target)]
        parts += [tests(record, target), f"![Samples](few-shot-{target}.png)"]
        found[target] = "\n\n".join([*parts, commands(record, target)])
    return found


def reference_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return the references' measures; what a row lacks stays empty."""
    lines = [
        [name, *(spread([found.get(key)], digits) for key, digits in COLUMNS.values())]
        for name, found in rows.items()
        if name != EMBEDDED
    ]
    text = markdown(["reference", *COLUMNS], lines)
    if EMBEDDED not in rows:
        return text
    kid = rows[EMBEDDED]["kid1k_full@mobilenetv2"]
    few = "Source, 1,000 samples against the held-out images in examples/"
    return f"{text}\n\n{few}: KID {kid:.3f}."


def method_table(record: Record, target: str) -> str:
    """Return means and spreads over seeds at the last snapshot, and the best snapshot's KID."""
    header = ["method", "seeds", *COLUMNS, "KID, best", "p of APA", "EWC/ratio"]
    lines = []
    for method, runs in by_method(record, target).items():
        cells = [spread([at_end(r).get(k) for r in runs], n) for k, n in COLUMNS.values()]
        best = spread([min(s[KID] for s in r["snapshots"]) for r in runs])
        more = [spread([r["end"].get(key) for r in runs], 2) for key in ("apa_p", "ewc_ratio")]
        lines.append([method, str(len(runs)), *cells, best, *more])
    return markdown(header, lines)


def seed_table(record: Record, target: str) -> str:
    """Return KID and intra-LPIPS of every seed at the last snapshot."""
    runs = by_method(record, target)
    seeds = sorted({run["seed"] for those in runs.values() for run in those})
    lines = []
    for method, those in runs.items():
        at = {run["seed"]: at_end(run) for run in those}
        cells = [f"{at[s][KID]:.3f} / {at[s][DIVERSITY]:.3f}" if s in at else "" for s in seeds]
        lines.append([method, *cells])
    return markdown(["KID / intra-LPIPS", *(f"seed {seed}" for seed in seeds)], lines)


def tests(record: Record, target: str) -> str:
    """Return EWC against fine-tuning: paired t-tests over seeds, Holm over both measures."""
    pairs = paired(by_method(record, target), "EWC", "fine-tuning")
    seeds = len(pairs[KID])
    title = f"**EWC against fine-tuning**, {seeds} paired seeds, last snapshot"
    if not seeds:
        return f"{title}."
    enough = seeds >= len(SEEDS)
    p = {
        k: float(scipy.stats.ttest_1samp(v, 0).pvalue) if enough else 1.0 for k, v in pairs.items()
    }
    lines = []
    for key, label in ((KID, "KID"), (DIVERSITY, "intra-LPIPS")):
        text = f"{label} {spread(pairs[key]).replace('-', MINUS)}"
        lines.append(f"{text}, p = {p[key]:.3g}, after Holm {holm(p)[key]:.3g}" if enough else text)
    why = "" if enough else f" Not tested: that takes {len(SEEDS)} seeds."
    return f"{title} (difference, mean ± deviation over seeds): {'; '.join(lines)}.{why}"


def paired(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], one: str, other: str
) -> dict[str, list[float]]:
    """Return by measure the differences of two methods at the last snapshot, seed by seed."""
    ends = [{run["seed"]: at_end(run) for run in runs.get(name, [])} for name in (one, other)]
    both = sorted(set(ends[0]) & set(ends[1]))
    return {k: [ends[0][s][k] - ends[1][s][k] for s in both] for k in (KID, DIVERSITY)}


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for their number (Holm 1979)."""
    found, least = {}, 0.0
    for rank, key in enumerate(sorted(p, key=lambda key: p[key])):
        least = max(least, min(1.0, (len(p) - rank) * p[key]))
        found[key] = least
    return found


def pictures(runs: Runs, settings: Mapping[str, Any], docs: Path) -> None:
    """Draw samples of the same seeds from the source and every method's first run."""
    first: dict[str, Path] = {"source": ROOT / settings["source"]}
    for trial, run_dir in runs.items():
        first.setdefault(trial.method, snapshots(run_dir)[-1])
    rows = [("the ten", as_float(real_images(archives(settings)[0])))]
    rows += [(label, samples(network, SHOWN)) for label, network in first.items()]
    picture = grids.labelled_rows(enlarged(rows))
    grids.save_png(docs / f"few-shot-{group(settings)}.png", picture)


def enlarged(rows: Iterable[tuple[str, torch.Tensor]], size: int = 64) -> list[Any]:
    """Return rows of images at `size` pixels, each pixel repeated."""

    def repeated(images: torch.Tensor) -> torch.Tensor:
        factor = size // images.shape[-1]
        return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    return [(label, repeated(images)) for label, images in rows]


SETTINGS = {
    "target": "lorelei",
    "size": 32,
    "source": str(SOURCE),
    "kimg": 8,
    "snapshots": 1,
    "gamma": 0.2,
    "ewc": "--ewc-lambda=30 --ewc-samples=500",
}
EXPERIMENT = Experiment(
    "few-shot",
    METHODS,
    trial,
    sections,
    SETTINGS,
    DEFAULT,
    SEEDS,
    prepare,
    measure,
    references,
    pictures,
)

if __name__ == "__main__":
    command(EXPERIMENT, __doc__)()
