"""What happened in training runs, as one HTML file: a verdict, curves, pictures, options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import jinja2
import numpy as np
from markupsafe import Markup

from metrics import results
from stylegan2_fewshot.files import without_secrets, write_text

from .command import FILE, UserPath, command
from .compare import labels
from .report_files import charts, pictures, runs, verdict

HERE = Path(__file__).parent
NAME = "report.html"
MOST_SNAPSHOTS = 16  # pictures under the slider
COLUMNS, ROWS = 6, 4  # samples in each of them


@command()
@click.argument("folders", nargs=-1, required=True, type=UserPath(exists=True, path_type=Path))
@click.option(
    "--out",
    type=FILE,
    help=f"File to write.  [default: {NAME} in the run, or here for several]",
)
@click.option(
    "--nearest",
    type=click.Choice(["auto", "features", "pixels"]),
    default="auto",
    help="What to find nearest training images by; auto takes features for few images.",
    show_default=True,
)
def main(folders: tuple[Path, ...], out: Path | None, nearest: str) -> None:
    """Write a report on training runs, one or several side by side, as one HTML file.

    \b
    The rules of its verdict are in docs/report.md:
      python -m tools.report runs/00000-ten
      python -m tools.report runs/00000-ten runs/00001-ten-ewc --out=both.html
    """
    path = write(folders, out, nearest=nearest)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def write(
    run_dirs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    nearest: str = "auto",
) -> Path:
    """Write the report on runs, and return its path; nothing is trained or measured for it.

    Args:
        run_dirs: Run directories; their trainings may still be under way.
        out: File to write; by default `report.html` in the run, or here for several.
        nearest: What nearest training images are found by: `auto`, `features` or `pixels`.

    Raises:
        ValueError: A folder is not a run directory.
    """
    folders = [Path(folder) for folder in run_dirs]
    path = Path(out) if out else (folders[0] if len(folders) == 1 else Path()) / NAME
    names = labels(tuple(folders))
    views = [_view(runs.read(f), n, nearest) for f, n in zip(folders, names, strict=True)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "report_files"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(
        title=names[0] if len(names) == 1 else f"{len(names)} runs",
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "report_files" / "report.js").read_text(encoding="utf-8")),
        runs=views,
        steps=sorted({step for view in views for step in view.snapshots}),
        charts=_charts(views),
        metrics=_metric_rows(views),
        options=_option_rows(views),
    )
    write_text(path, text.encode(errors="backslashreplace").decode())  # JSON may hold half a pair
    return path


@dataclass(frozen=True)
class View:
    """A run as the template takes it.

    Attributes:
        run: What the directory tells.
        name: Enough of its path to tell it from the others.
        findings: What the rules find, the verdict first.
        best: The best of several snapshots by a metric, or None.
        snapshots: Pictures of samples by kimg, as URIs.
        reals: The picture of training images as a URI, or None.
        nearest: Samples beside training images, or None.
        pairs: Those, as URIs, with their distance.
    """

    run: runs.Run
    name: str
    findings: list[verdict.Finding]
    best: verdict.Best | None
    snapshots: dict[float, str]
    reals: str | None
    nearest: pictures.Nearest | None
    pairs: list[tuple[str, str, float]]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What was trained on what."""
        options = self.run.options
        data = options.get("dataset") or {}
        plugins = ", ".join(options.get("plugins") or {}) or "none"
        state = "finished" if self.run.finished else "not finished"
        total = options.get("total_kimg")
        facts = [
            ("Trained on", Path(str(data.get("path", "unknown"))).name),
            ("Started from", Path(without_secrets(str(options.get("resume") or "scratch"))).name),
            ("Methods", plugins),
            ("Training", f"{self.run.kimg:g} of {total} kimg, {state}"),
        ]
        if self.best:
            facts.append(("Best snapshot", f"{self.best.kimg:g} kimg by {self.best.name}"))
        return facts


def _view(run: runs.Run, name: str, measure: str) -> View:
    grids = {kimg: pictures.cells(path) for kimg, path in run.grids.items()}
    trained = [kimg for kimg in grids if kimg > 0]
    reals = pictures.cells(run.reals) if run.reals else None
    near = None
    if trained:
        samples = grids[max(trained)][: pictures.MOST_SAMPLES]
        near = pictures.nearest(run, samples, measure)
    found = verdict.judge(evidence(run, grids, reals, near))
    shown = {kimg: _uri(grids[kimg]) for kimg in _chosen(sorted(grids))}
    pairs = [(_uri(a[None]), _uri(b[None]), d) for a, b, d in (near.pairs if near else ())]
    best = verdict.best(_first(run))
    return View(run, name, found, best, shown, None if reals is None else _uri(reals), near, pairs)


def evidence(
    run: runs.Run,
    grids: dict[float, pictures.Images],
    reals: pictures.Images | None,
    near: pictures.Nearest | None,
) -> verdict.Evidence:
    """Return what the verdict's rules look at."""
    variety: runs.Series = []
    if reals is not None:
        usual = pictures.spread(np.unique(pictures.small(reals), axis=0)[: pictures.MOST_SAMPLES])
        variety = [
            (kimg, pictures.spread(pictures.small(grid[: pictures.MOST_SAMPLES])) / usual)
            for kimg, grid in sorted(grids.items())
            if kimg > 0 and usual > 0
        ]
    return verdict.Evidence(
        variety=variety,
        nearness=near.ratio if near else None,
        real_signs=run.stats.get("Loss/signs/real", []),
        losses=[v for k, v in run.stats.items() if k.startswith("Loss/")],
        metrics=_first(run),
        kimg=run.kimg,
    )


def _first(run: runs.Run) -> dict[str, list[dict[str, Any]]]:
    """Return the metrics, the one that training judged by first."""
    order = list(run.options.get("metrics") or [])
    return dict(
        sorted(run.metrics.items(), key=lambda m: order.index(m[0]) if m[0] in order else 99)
    )


def _chosen(steps: list[float]) -> list[float]:
    """Return at most `MOST_SNAPSHOTS`, evenly spaced, the first and the last among them."""
    if len(steps) <= MOST_SNAPSHOTS:
        return steps
    places = np.linspace(0, len(steps) - 1, MOST_SNAPSHOTS).round().astype(int)
    return [steps[i] for i in places]


def _uri(images: pictures.Images) -> str:
    shown = images[: COLUMNS * ROWS]
    return pictures.data_uri(pictures.tiled(shown, min(COLUMNS, len(shown))))


def _charts(views: Sequence[View]) -> list[tuple[str, str, Markup, list[charts.Line]]]:
    """Return title, explanation, drawing and lines of every chart that has points."""
    names = dict.fromkeys(name for view in views for name in _first(view.run))
    wanted = [(name, "", [(name, lambda run, name=name: _metric(run, name))]) for name in names]
    wanted += [
        ("D's logits", "Far apart: D tells training images and samples apart.",
         [("training images", _stat("Loss/scores/real")), ("samples", _stat("Loss/scores/fake"))]),
        ("Signs of D's logits", "1 and -1: D is always right.",
         [("training images", _stat("Loss/signs/real")), ("samples", _stat("Loss/signs/fake"))]),
        ("Losses", "", [("G", _stat("Loss/G/loss")), ("D", _stat("Loss/D/loss"))]),
    ]  # fmt: skip
    signals = dict.fromkeys(name for view in views for name in view.run.signals)
    wanted += [(name, "", [(name, _stat(name))]) for name in signals]
    found = []
    for title, text, series in wanted:
        lines = _lines(views, series)
        if drawing := charts.chart(title, lines):
            found.append((title, text, drawing, lines))
    return found


def _lines(views: Sequence[View], series: Sequence[tuple[str, Any]]) -> list[charts.Line]:
    """Return a line for each run and series: in one run colours differ, in several dashes."""
    if len(views) == 1:
        return [charts.Line(label, i, get(views[0].run)) for i, (label, get) in enumerate(series)]
    several = len(series) > 1
    return [
        charts.Line(f"{view.name}, {label}" if several else view.name, i, get(view.run), k > 0)
        for i, view in enumerate(views)
        for k, (label, get) in enumerate(series)
    ]


def _stat(name: str) -> Any:
    return lambda run: run.stats.get(name, [])


def _metric(run: runs.Run, name: str) -> runs.Series:
    return [(float(x["kimg"]), results.value(x)) for x in run.metrics.get(name, [])]


def _metric_rows(views: Sequence[View]) -> list[tuple[str, list[str]]]:
    """Return for every metric its best and last value, or its only one, in each run."""
    names = dict.fromkeys(name for view in views for name in _first(view.run))
    return [(name, [_metric_cell(view.run, name) for view in views]) for name in names]


def _metric_cell(run: runs.Run, name: str) -> str:
    if found := verdict.best({name: run.metrics.get(name, [])}):
        return f"{found.value:.4g} at {found.kimg:g} kimg, last {found.last:.4g}"
    known = [f"{value:.4g} at {kimg:g} kimg" for kimg, value in _metric(run, name)]
    return ", ".join(known[-1:]) or "-"


def _option_rows(views: Sequence[View]) -> list[tuple[str, list[str], bool]]:
    """Return every option with its value in each run, and whether those differ."""
    flat = [_flat(view.run.options) for view in views]
    keys = dict.fromkeys(key for options in flat for key in options)
    rows = [(key, [options.get(key, "-") for options in flat]) for key in keys]
    return [(key, values, len(set(values)) > 1) for key, values in rows]


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in options.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, str) else repr(value)
    return found


if __name__ == "__main__":
    main()
