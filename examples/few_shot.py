"""Ten images: does EWC keep what fine-tuning loses, and what do other methods do?

    python examples/few_shot.py                                  # what is missing, then the report
    python examples/few_shot.py --methods=ewc --seeds=0 --target=personas
    python examples/few_shot.py --method="mine=--plugin=my.py:Mine --mine-weight=1" --docs=out/board

Adapts the example network to ten images, each seed to its own ten, and measures every snapshot
against 5,000 held-out images. Runs are paired: the same seed has the same ten, latents and noise
with every method.
"""

from __future__ import annotations

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


def ten(target: str, seed: int) -> Path:
    """Return the archive of the ten images that a seed trains on."""
    return make_data.archive(target, f"ten{seed % 5}")


def heldout(target: str) -> Path:
    """Return the archive of the images to measure against."""
    return make_data.archive(target, "heldout")


def trial(method: str, options: str, seed: int, settings: Mapping[str, Any]) -> Trial:
    """Return the run of a method and a seed."""
    target, kimg, snaps = settings["target"], settings["kimg"], settings["snapshots"]
    own = options.format(p_kimg=P_KIMG, ewc=settings["ewc"])
    shared = (
        f"--data={ten(target, seed)} --metricdata={heldout(target)} --resume={SOURCE} --mirror=1 "
        f"--batch=4 --gamma={settings['gamma']:g} --pl-weight=0 --ema-kimg=2 --kimg={kimg} "
        f"--tick={kimg / snaps / 16:g} --snap=16 --metrics={','.join(METRICS)}"
    )
    return Trial(method, f"{shared} {own}", seed, target)


def prepare(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse what cannot be run, with what to do."""
    target = settings["target"]
    if target not in TARGETS:
        raise click.UsageError(f"--target: {target} is none of {', '.join(TARGETS)}")
    if not (ROOT / heldout(target)).exists():
        raise click.UsageError(f"{heldout(target)}: missing; run python examples/make_data.py")
    data = (ImageDataset(ROOT / ten(target, 0)), ImageDataset(ROOT / heldout(target)))
    if complaints := metrics.usable(METRICS, *data)[1]:
        raise click.UsageError("\n".join(complaints))


def measure(trial: Trial, run_dir: Path) -> None:
    """Add copies at matched blur to the last snapshot's metrics."""
    last, where = snapshots(run_dir)[-1], (ten(trial.group, trial.seed), heldout(trial.group))
    measures.kept(run_dir, FURTHER, last, lambda: measures.further(last, *where))


def references(runs: Runs, out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows that runs are compared with, by target and name."""
    target = settings["target"]
    source = remembered(
        out / target / f"source-{sha256_of(ROOT / SOURCE)[:8]}.json", lambda: _source(target, out)
    )
    images = remembered(out / target / "images.json", lambda: _images(target))
    level = _level(runs) or source["source"]["sharpness"]
    soft = remembered(out / target / f"blurred-{level:.0f}.json", lambda: _blurred(target, level))
    return {target: {**source, **images, f"held-out, blurred to {level:.0f}": soft}}


def _level(runs: Runs) -> float | None:
    """Return the mean sharpness of the fine-tuned networks' samples, if there are any."""
    found = [metrics.read(path) for trial, path in runs.items() if trial.method == "fine-tuning"]
    levels = [lines[FURTHER][-1]["results"]["sharpness"] for lines in found]
    return round(sum(levels) / len(levels)) if levels else None


def _blurred(target: str, level: float) -> dict[str, Any]:
    images = measures.blurred_to(real_images(heldout(target)), level)
    return _row(images, ten(target, 0), heldout(target))


def _source(target: str, out: Path) -> dict[str, Any]:
    folder = out / target / "source"
    data = (ten(target, 0), heldout(target))
    where = f"--data={data[0]} --metricdata={data[1]} --mirror=1"
    if not metrics.read(ROOT / folder):
        names = f"--metrics={','.join(METRICS)}"
        run(f"-m metrics {SOURCE} {names} {where} --out={folder}", ROOT / folder / "output.txt")
    found = {
        k: v for m in metrics.read(ROOT / folder).values() for k, v in m[-1]["results"].items()
    }
    few = {"kid1k_full@mobilenetv2": embedded(target)}
    own = measures.further(ROOT / SOURCE, *data)
    return {"source": rounded({**found, **own}), EMBEDDED: rounded(few)}


def embedded(target: str) -> float:
    """Return KID of 1,000 of the source's samples to the held-out images in the repository."""
    name, few = "kid1k_full@mobilenetv2", (f"examples/{target}-{n}.zip" for n in ("ten", "heldout"))
    data = [ImageDataset(ROOT / path) for path in few]
    G = measures.pickles.load(ROOT / SOURCE).G_ema
    return next(metrics.compute([name], G, *data, show=False))["results"][name]


def _images(target: str) -> dict[str, Any]:
    """Return the rows of images that no network has made."""
    shots, unseen = ten(target, 0), heldout(target)
    few, many = real_images(shots), real_images(unseen)
    own = real_images(make_data.archive(make_data.SOURCE, "heldout"))
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
    kid = rows[EMBEDDED]["kid1k_full@mobilenetv2"]
    return (
        f"{text}\n\nSource, 1,000 samples against the held-out images in examples/: KID {kid:.3f}."
    )


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
    target, first = settings["target"], {}
    for trial, run_dir in runs.items():
        first.setdefault(trial.method, snapshots(run_dir)[-1])
    rows = [("the ten", as_float(real_images(ten(target, 0))))]
    networks: Iterable[tuple[str, Path]] = [("source", ROOT / SOURCE), *first.items()]
    rows += [(label, samples(network, SHOWN)) for label, network in networks]
    grids.save_png(docs / f"few-shot-{target}.png", grids.labelled_rows(enlarged(rows)))


def enlarged(rows: Iterable[tuple[str, torch.Tensor]], size: int = 64) -> list[Any]:
    """Return rows of images at `size` pixels, each pixel repeated."""
    return [
        (
            label,
            images.repeat_interleave(size // images.shape[-1], 2).repeat_interleave(
                size // images.shape[-1], 3
            ),
        )
        for label, images in rows
    ]


SETTINGS = {
    "target": "lorelei",
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
