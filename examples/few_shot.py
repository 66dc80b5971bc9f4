"""The ten-shot experiment: six methods, two targets, three seeds, equally long.

    python examples/few_shot.py                                   # all of it, or what is missing
    python examples/few_shot.py --targets=twemoji --methods=ewc --seeds=0
    python examples/few_shot.py --kimg=100 --snapshots=20 --out=out/few-shot-long       # on a GPU

Adapts the example network to ten images, measures every snapshot against held-out images, and
writes docs/few-shot.md with all runs there are. It goes on where it was interrupted.
"""

from __future__ import annotations

import os
import shutil
import textwrap
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
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
    measured,
    numbers,
    publish,
    real_images,
    run,
    samples,
    save_figure,
    slug,
    spread,
    train,
)

import metrics
from stylegan2_fewshot.fisher import file as fisher_file
from training import grids
from training.dataset import ImageDataset

SOURCE = Path("examples/noto-portraits-64.pkl")
TARGETS = ("twemoji", "fluent")
METHODS = {
    "fine-tuning": "--aug=noaug",
    "Freeze-D": "--aug=noaug --freezed=7",
    "ADA": "--aug=ada",
    "LeCam": "--aug=noaug --lecam-lambda=3e-7",
    "EWC": "--aug=noaug --ewc-lambda={ewc_lambda:g} --ewc-fisher={fisher}",
    "EWC + APA": "--aug=apa --ewc-lambda={ewc_lambda:g} --ewc-fisher={fisher}",
}
JUDGE, DIVERSITY, NEARNESS = METRICS = ("kid5k_full@mobilenetv2", "lpips1k_intra", "nn1k")
SHOWN = range(10)  # seeds of the pictures in the document
Found = dict[str, list[tuple[dict[str, float], dict[str, float]]]]  # last and best, by method


def ten(target: str) -> Path:
    """Return the archive of the ten images to train on."""
    return Path(f"examples/{target}-ten.zip")


def heldout(target: str) -> Path:
    """Return the archive of the images to measure against."""
    return Path(f"examples/{target}-heldout.zip")


def setting(target: str, *, kimg: int, snapshots: int, batch: int) -> str:
    """Return the options of `train.py` that all methods share.

    Args:
        target: One of TARGETS.
        kimg: Length of the run.
        snapshots: How many networks are saved and measured.
        batch: Images per iteration. Few make many iterations of a kimg; the paper's has 4.
    """
    return (
        f"--data={ten(target)} --metricdata={heldout(target)} --resume={SOURCE} --mirror=1 "
        f"--batch={batch} --gamma=0.5 --pl-weight=0 --kimg={kimg} --tick={kimg / snapshots:g} "
        f"--snap=1 --metrics={','.join(METRICS)}"
    )


def refuse_what_is_missing(targets: Iterable[str]) -> None:
    """Raise, with what to do, unless all data sets and feature networks are there."""
    for target in targets:
        for archive in (ten(target), heldout(target)):
            if not (ROOT / archive).exists():
                raise click.UsageError(f"{archive}: not there; run python examples/make_data.py")
        data = (ImageDataset(ROOT / ten(target)), ImageDataset(ROOT / heldout(target)))
        if complaints := metrics.usable(METRICS, *data)[1]:
            raise click.UsageError("\n".join(complaints))


def fisher_of_source(out: Path) -> Path:
    """Return the file of the source's Fisher information, estimating it where it is missing."""
    path = out / "source.fisher.npz"
    if not (ROOT / path).exists():
        command = f"-m tools.fisher {SOURCE} --samples=500 --out={path}"
        run(command, ROOT / out / "fisher.txt")
    try:
        fisher_file.load(ROOT / path, ROOT / SOURCE)
    except ValueError as error:
        raise click.UsageError(f"{error}, or choose another --out") from error
    return path


def table(source: Mapping[str, float], found: Found) -> str:
    """Return mean and spread over seeds of the last and of the best snapshots, by method."""
    header = ["method", "seeds", "snapshot", "kimg", "KID", "intra-LPIPS", "nearness", "copies"]
    rows = [["source, unchanged", "", "", "0", *_cells([source])]]
    for method, pairs in found.items():
        for which, those in zip(("last", "best"), zip(*pairs, strict=True), strict=True):
            kimg = spread([v["kimg"] for v in those], 1)
            rows.append([method, str(len(those)), which, kimg, *_cells(those)])
    return markdown(header, rows)


def _cells(found: Iterable[Mapping[str, float]]) -> list[str]:
    keys = (JUDGE, DIVERSITY, f"{NEARNESS}_ratio", f"{NEARNESS}_copies")
    return [spread([v[key] for v in found]) for key in keys]


def draw(panel: Any, source: Mapping[str, float], found: Found) -> None:
    """Draw distance and diversity of every run's last and best snapshot."""
    panel.plot(source[JUDGE], source[DIVERSITY], "k*", markersize=12, label="source")
    for number, (method, pairs) in enumerate(found.items()):
        for which, those in enumerate(zip(*pairs, strict=True)):
            place = ([v[JUDGE] for v in those], [v[DIVERSITY] for v in those])
            look = {"markerfacecolor": "none"} if which else {"label": method}
            panel.plot(*place, "o", color=f"C{number}", **look)
    panel.set(xlabel=f"{JUDGE} (lower: nearer)", ylabel=DIVERSITY)
    panel.grid(alpha=0.3)
    panel.legend(title="filled: last\nhollow: best", loc="upper left", bbox_to_anchor=(1, 1))


def picture(target: str, runs: Mapping[str, Path]) -> Any:
    """Draw samples of the same seeds from the source and every method's last network."""
    networks = {"source": ROOT / SOURCE, **{k: last_snapshot(v) for k, v in runs.items()}}
    rows = [("the ten images", real_images(ROOT / ten(target), 10))]
    rows += [(label, samples(network, SHOWN)) for label, network in networks.items()]
    return grids.labelled_rows(rows)


def report(target: str, trials: Iterable[Trial], out: Path, docs: Path) -> None:
    """Write a target's part of the document, and its pictures, from the runs that are finished.

    Args:
        target: One of TARGETS.
        trials: What might be there.
        out: Where the target's runs are.
        docs: Folder of the document.
    """
    runs = finished(trials, out)
    if not runs:
        return
    data = f"--data={ten(target)} --metricdata={heldout(target)} --mirror=1"
    source = measured(SOURCE, METRICS, data, out / "source")
    folders = by_method(runs)
    found = {method: [last_and_best(p, JUDGE) for p in paths] for method, paths in folders.items()}
    grid, plot = f"few-shot-{target}.png", f"few-shot-plot-{target}.png"
    grids.save_png(docs / grid, picture(target, {k: paths[0] for k, paths in folders.items()}))
    save_figure(docs / plot, (7, 5), lambda figure: draw(figure.subplots(), source, found))
    text = [
        table(source, found),
        f"![Distance and diversity of every run]({plot})",
        f"![Samples of the same seeds]({grid})",
        commands(runs, out),
    ]
    publish(docs / "few-shot.md", target, "\n\n".join(text))


def analyse(target: str, shared: str, out: Path, docs: Path, few: Path) -> None:
    """Compare F with what training changes, with ten images and with all that are held out.

    Args:
        target: One of TARGETS.
        shared: What `setting` returns for it.
        out: Where runs are.
        docs: Folder of the document.
        few: A run of plain fine-tuning on the ten.
    """
    options = shared.replace(f"--data={ten(target)}", f"--data={heldout(target)}")
    measured = f"--metrics={','.join(METRICS)}"
    many = Trial("all held-out", f"{options.replace(measured, '--metrics=none')} --aug=noaug")
    runs = {"ten": few, "plenty": train([many], out / target)[many]}
    text = []
    for label, path in runs.items():
        folder = out / target / f"analysis-{label}"
        network = os.path.relpath(last_snapshot(path), ROOT)
        command = f"-m tools.analysis {SOURCE} {network} --out={folder}"
        command += f" --fisher={out / 'source.fisher.npz'}"
        run(command, ROOT / folder / "output.txt")
        name = f"few-shot-analysis-{target}-{label}.png"
        shutil.copyfile(ROOT / folder / "analysis.png", docs / name)
        text += [f"### Fine-tuning on {label} of {target}", f"    python {command}"]
        lines = (ROOT / folder / "analysis.txt").read_text().strip()
        text += [textwrap.indent(lines, "    "), f"![{label}]({name})"]
    publish(docs / "few-shot.md", f"analysis-{target}", "\n\n".join(text))


@click.command(help=__doc__.split("\n")[0])
@click.option("--targets", default=",".join(TARGETS), callback=choice(TARGETS), show_default=True)
@click.option(
    "--methods", default=",".join(map(slug, METHODS)), callback=choice(METHODS), show_default=True
)
@click.option("--seeds", default="0,1,2", callback=numbers, show_default=True)
@click.option("--kimg", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--snapshots", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--ewc-lambda", default=500.0, show_default=True, help="See the document.")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time.  [default: cores]")
@click.option("--out", type=click.Path(path_type=Path), default="out/few-shot", show_default=True)
@click.option("--docs", type=click.Path(path_type=Path), default=ROOT / "docs", help="Report's.")
def main(
    targets: list[str],
    methods: list[str],
    seeds: list[int],
    kimg: int,
    snapshots: int,
    batch: int,
    ewc_lambda: float,
    jobs: int | None,
    out: Path,
    docs: Path,
) -> None:
    """Run what is chosen and missing, then report all that is there."""
    start = time.time()
    refuse_what_is_missing(targets)
    fills = {"fisher": fisher_of_source(out), "ewc_lambda": ewc_lambda}
    for target in targets:
        shared = setting(target, kimg=kimg, snapshots=snapshots, batch=batch)
        ways = {name: f"{shared} {way.format(**fills)}" for name, way in METHODS.items()}
        trials = [Trial(name, way, seed) for name, way in ways.items() for seed in seeds]
        chosen = sorted((t for t in trials if t.method in methods), key=lambda t: t.seed)
        train(chosen, out / target, jobs=jobs)
        report(target, trials, out / target, docs)
        if few := trials[0].finished(out / target):  # plain fine-tuning
            analyse(target, shared, out, docs, few)
    click.echo(f"{time.time() - start:.0f} s\n{docs / 'few-shot.md'}")


if __name__ == "__main__":
    main()
