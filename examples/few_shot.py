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
from experiment import (
    Experiment,
    Record,
    Row,
    Runs,
    Settings,
    by_method,
    command,
    commands,
    networks,
    remembered,
    rounded,
)
from measures import real_images, samples
from tables import MINUS, cells, markdown, spread
from trials import ROOT, Trial, run

import metrics
from stylegan2_fewshot.files import sha256_of
from stylegan2_fewshot.pixels import to_float
from training import grids, pickles
from training.dataset import ImageDataset
from training.run_dir import snapshots

SOURCE = Path("examples/toon-heads-32.pkl")
TARGETS = ("lorelei", "personas")
P_KIMG = 0.4  # thousands of images in which p can go from 0 to 1: a run is short
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
ENDS = {"p of APA": ("apa_p", 2), "EWC/ratio": ("ewc_ratio", 2)}
BASELINE = "fine-tuning"
OWN_PAPER = "better in its own paper (remembered)"
PUBLISHED = {  # ten images, FFHQ to babies: FID; to sketches: intra-LPIPS; see docs/methods.md
    "EWC": "FID 87.4 against 104.8; intra-LPIPS 0.42 against 0.39",
    "CDC": "FID 74.4 against 104.8; intra-LPIPS 0.45 against 0.39",
    "MineGAN": "FID 98.2 against 104.8",
    "Freeze-D": "FID 110.9 against 104.8",
    **dict.fromkeys(("tune", "FSGAN", "RICK", "AdAM", "DCL"), OWN_PAPER),
}
SHOWN = range(9)  # seeds of the pictures
EMBEDDED = "source, embedded held-out"  # the row that check.py measures anew
ENOUGH = 5  # seeds for a test


def archives(settings: Settings, seed: int = 0) -> tuple[Path, Path]:
    """Return a seed's ten images, and those to measure against."""
    target, size = settings["target"], settings["size"]
    ten, heldout = f"ten{seed % len(FewShot.seeds)}", "heldout"
    return make_data.archive(target, ten, size), make_data.archive(target, heldout, size)


def group(settings: Settings) -> str:
    """Return the name of a target's section, and of its folder of runs."""
    target, size = settings["target"], settings["size"]
    return target if size == 32 else f"{target}-{size}"


def embedded(target: str) -> float:
    """Return KID of 1,000 of the source's samples to the held-out images in the repository."""
    name, few = "kid1k_full@mobilenetv2", (f"examples/{target}-{n}.zip" for n in ("ten", "heldout"))
    data = [ImageDataset(ROOT / path) for path in few]
    G = pickles.load(ROOT / SOURCE).G_ema
    [found] = metrics.compute([name], G, *data, show=False)
    return float(found["results"][name])


def source_rows(settings: Settings, out: Path) -> Row:
    """Return the rows of the source network."""
    folder, data, source = out / "source", archives(settings), settings["source"]
    where = f"--data={data[0]} --metricdata={data[1]} --mirror=1"
    if not metrics.read(ROOT / folder):
        names = f"--metrics={','.join(METRICS)}"
        run(f"-m metrics {source} {names} {where} --out={folder}", ROOT / folder / "output.txt")
    lines = metrics.read(ROOT / folder).values()
    found = {k: v for line in lines for k, v in line[-1]["results"].items()}
    rows = {"source": rounded({**found, **measures.further(ROOT / source, *data)})}
    if Path(source) == SOURCE:
        rows[EMBEDDED] = rounded({"kid1k_full@mobilenetv2": embedded(settings["target"])})
    return rows


def image_rows(settings: Settings) -> Row:
    """Return the rows of images that no network has made."""
    few, many = map(real_images, archives(settings))
    own = real_images(make_data.archive(make_data.SOURCE, "heldout", settings["size"]))
    rows = {"the ten themselves": few, "real source images": own, "held-out themselves": many}
    found = {name: image_row(images, settings) for name, images in rows.items()}
    control = measures.copies(measures.blurred(few, 1.5), few, many[: measures.COUNT])
    return {**found, "the ten, blurred by 1.5 px": rounded(control)}


def image_row(images: torch.Tensor, settings: Settings) -> Row:
    """Return the measures of images, as if a network had made them."""
    data = archives(settings)
    found = measures.of_images(images, METRICS, *data)
    few, many = map(real_images, data)
    near = measures.copies(images[: measures.COUNT], few, many[-measures.COUNT :])
    return rounded({**found, "sharpness": measures.sharpness(images), **near})


def at_end(run: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures of a run's last snapshot."""
    return dict(run["snapshots"][-1])


def reference_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return the references' measures; what a row lacks stays empty."""
    lines = [[name, *cells([found], COLUMNS)] for name, found in rows.items() if name != EMBEDDED]
    text = markdown(["reference", *COLUMNS], lines)
    if EMBEDDED not in rows:
        return text
    kid = rows[EMBEDDED]["kid1k_full@mobilenetv2"]
    few = "Source, 1,000 samples against the held-out images in examples/"
    return f"{text}\n\n{few}: KID {kid:.3f}."


def method_table(record: Record, target: str) -> str:
    """Return means and spreads over seeds at the last snapshot, and the best snapshot's KID."""
    lines = []
    for method, runs in by_method(record, target).items():
        found = cells([at_end(run) for run in runs], COLUMNS)
        best = spread([min(s[KID] for s in run["snapshots"]) for run in runs])
        more = cells([run["end"] for run in runs], ENDS)
        lines.append([method, str(len(runs)), *found, best, *more])
    return markdown(["method", "seeds", *COLUMNS, "KID, best", *ENDS], lines)


def difference_table(record: Record, target: str) -> str:
    """Return each method against fine-tuning over the seeds that both have, nearest first, and what
    was published of it: the sets of ten differ more than the methods do."""
    runs, lines = by_method(record, target), []
    for method in runs:
        pairs = paired(runs, method, BASELINE)
        if method != BASELINE and pairs[KID]:
            found = [spread(pairs[key]).replace("-", MINUS) for key in (KID, DIVERSITY)]
            number, published = str(len(pairs[KID])), PUBLISHED.get(method, "")
            lines.append((sum(pairs[KID]) / len(pairs[KID]), [method, number, *found, published]))
    heads = ["against fine-tuning", "paired seeds", "KID", "intra-LPIPS", "published, 256x256"]
    return markdown(heads, [line for _, line in sorted(lines)])


def seed_table(record: Record, target: str) -> str:
    """Return KID and intra-LPIPS of every seed at the last snapshot."""
    runs = by_method(record, target)
    seeds = sorted({run["seed"] for those in runs.values() for run in those})
    lines = []
    for method, those in runs.items():
        at = {run["seed"]: at_end(run) for run in those}
        both = [f"{at[s][KID]:.3f} / {at[s][DIVERSITY]:.3f}" if s in at else "" for s in seeds]
        lines.append([method, *both])
    return markdown(["KID / intra-LPIPS", *(f"seed {seed}" for seed in seeds)], lines)


def tests(record: Record, target: str) -> str:
    """Return EWC against fine-tuning: paired t-tests over seeds, Holm over both measures."""
    pairs = paired(by_method(record, target), "EWC", BASELINE)
    seeds = len(pairs[KID])
    title = f"**EWC against fine-tuning**, {seeds} paired seeds, last snapshot"
    if not seeds:
        return f"{title}."
    labels = {KID: "KID", DIVERSITY: "intra-LPIPS"}
    lines = {k: f"{labels[k]} {spread(v).replace('-', MINUS)}" for k, v in pairs.items()}
    why = f" Not tested: that takes {ENOUGH} seeds."
    if seeds >= ENOUGH:
        p = {key: float(scipy.stats.ttest_1samp(v, 0).pvalue) for key, v in pairs.items()}
        why, after = "", holm(p)
        lines = {k: f"{x}, p = {p[k]:.3g}, after Holm {after[k]:.3g}" for k, x in lines.items()}
    return f"{title} (difference, mean ± deviation over seeds): {'; '.join(lines.values())}.{why}"


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


def enlarged(rows: Iterable[tuple[str, torch.Tensor]], size: int = 64) -> list[Any]:
    """Return rows of images at `size` pixels, each pixel repeated."""

    def repeated(images: torch.Tensor) -> torch.Tensor:
        factor = size // images.shape[-1]
        return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    return [(label, repeated(images)) for label, images in rows]


class FewShot(Experiment):
    name = "few-shot"
    methods = {
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
    settings = {
        "target": "lorelei",
        "size": 32,
        "source": str(SOURCE),
        "kimg": 8,
        "snapshots": 1,
        "gamma": 0.2,
        "ewc": "--ewc-lambda=30 --ewc-samples=500",
    }
    default = ("fine-tuning", "EWC", "EWC + APA", "placebo")
    seeds = (0, 1, 2, 3, 4)

    def trial(self, method: str, options: str, seed: int, settings: Settings) -> Trial:
        ten, heldout = archives(settings, seed)
        kimg, snaps = settings["kimg"], settings["snapshots"]
        shared = (
            f"--data={ten} --metricdata={heldout} --resume={settings['source']} --mirror=1 "
            f"--batch=4 --gamma={settings['gamma']:g} --pl-weight=0 --ema-kimg=2 --kimg={kimg} "
            f"--tick={kimg / snaps / 16:g} --snap=16 --metrics={','.join(METRICS)}"
        )
        own = options.format(p_kimg=P_KIMG, ewc=settings["ewc"])
        return Trial(method, f"{shared} {own}", seed, group(settings))

    def prepare(self, out: Path, settings: Settings) -> None:
        """Refuse what cannot be run, with what to do."""
        target, size = settings["target"], settings["size"]
        if target not in TARGETS:
            raise click.UsageError(f"--target: {target} is none of {', '.join(TARGETS)}")
        for archive in archives(settings):
            if not (ROOT / archive).exists():
                raise click.UsageError(f"{archive}: run python examples/make_data.py --size={size}")
        data = [ImageDataset(ROOT / archive) for archive in archives(settings)]
        if complaints := metrics.usable(METRICS, *data)[1]:
            raise click.UsageError("\n".join(complaints))

    def measure(self, trial: Trial, run_dir: Path) -> None:
        """Add copies at matched blur to the last snapshot's metrics."""
        ten, heldout = (Path(trial.option(name)) for name in ("data", "metricdata"))
        last = snapshots(run_dir)[-1:]
        measures.kept(run_dir, FURTHER, last, lambda path: measures.further(path, ten, heldout))

    def references(self, runs: Runs, out: Path, settings: Settings) -> Row:
        """Return the rows that runs are compared with, by target and name."""
        folder = out / group(settings)
        source = folder / f"source-{sha256_of(ROOT / settings['source'])[:8]}.json"
        own = remembered(source, lambda: source_rows(settings, folder))
        images = remembered(folder / "images.json", lambda: image_rows(settings))
        tuned = [metrics.read(p)[FURTHER] for t, p in runs.items() if t.method == "fine-tuning"]
        levels = [lines[-1]["results"]["sharpness"] for lines in tuned]
        level = round(sum(levels) / len(levels)) if levels else 0
        level = level or round(own["source"]["sharpness"])

        def blurred() -> Row:
            unseen = real_images(archives(settings)[1])
            return image_row(measures.blurred_to(unseen, level), settings)

        soft = remembered(folder / f"blurred-{level}.json", blurred)
        return {group(settings): {**own, **images, f"held-out, blurred to {level}": soft}}

    def sections(self, record: Record) -> dict[str, str]:
        """Return a section for each target."""
        found = {}
        for target, rows in record["references"].items():
            parts = [
                reference_table(rows),
                method_table(record, target),
                difference_table(record, target),
                seed_table(record, target),
                tests(record, target),
                f"![Samples](few-shot-{target}.png)",
                commands(record, target),
            ]
            found[target] = "\n\n".join(parts)
        return found

    def pictures(self, runs: Runs, record: Record, docs: Path) -> None:
        """Draw samples of the same seeds from the source and every method's first run."""
        settings = record["settings"]
        shown = {"source": ROOT / settings["source"], **networks(runs)}
        rows = [("the ten", to_float(real_images(archives(settings)[0])))]
        rows += [(label, samples(network, SHOWN)) for label, network in shown.items()]
        picture = grids.labelled_rows(enlarged(rows))
        grids.save_png(docs / f"few-shot-{group(settings)}.png", picture)


EXPERIMENT = FewShot()

if __name__ == "__main__":
    command(EXPERIMENT, __doc__)()
