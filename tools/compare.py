"""Compare runs: a table of the best and the last snapshots, and each metric over training time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from metrics.results import is_better, read, value
from stylegan2_fewshot.files import printable, replacing

from .command import FILE, UserPath, command

Runs = dict[str, dict[str, list[dict[str, Any]]]]  # run -> metric -> results by kimg


@command()
@click.argument("folders", nargs=-1, required=True, type=UserPath(exists=True, path_type=Path))
@click.option(
    "--plot",
    type=FILE,
    default="metrics.png",
    help="Picture to write.",
    show_default=True,
)
def main(folders: tuple[Path, ...], plot: Path) -> None:
    """Print the metrics of the runs in FOLDERS as a Markdown table, and plot them over kimg."""
    runs = {label: _printable(read(f)) for label, f in zip(labels(folders), folders, strict=True)}
    empty = [label for label, metrics in runs.items() if not metrics]
    if empty:
        raise click.UsageError(f"{', '.join(empty)}: no metric-*.jsonl with results in it")
    click.echo(table(runs))
    save_plot(runs, plot)
    click.echo(f"\nPlot: {plot}")


def labels(folders: tuple[Path, ...]) -> list[str]:
    """Return the last parts of paths that are needed to tell them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        names = [printable("/".join(parts[-length:])) for parts in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _printable(metrics: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Return results under names that may be shown; they come from the names of files."""
    return {printable(name): results for name, results in metrics.items()}


def table(runs: Runs) -> str:
    """Return a Markdown table: per run and metric the best value, its kimg, and the last value."""
    names = metric_names(runs)
    rows = [["run", *names]]
    rows += [
        [run, *(_cell(metrics.get(name, [])) for name in names)] for run, metrics in runs.items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names) + 1)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def metric_names(runs: Runs) -> list[str]:
    """Return the names of all metrics of all runs, alphabetically."""
    return sorted({name for metrics in runs.values() for name in metrics})


def best_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the best of the results of one metric, the earliest of equal ones."""
    best = results[0]
    for result in results[1:]:
        best = result if is_better(result, best) else best
    return best


def save_plot(runs: Runs, path: Path) -> None:
    """Write a PNG with a panel for each metric, and a line in it for each run."""
    from matplotlib.figure import Figure

    names = metric_names(runs)
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat[len(names) :]:
        panel.remove()
    for panel, name in zip(axes.flat, names, strict=False):
        _draw(panel, name, runs)
    figure.legend(axes[0, 0].get_lines(), list(runs), loc="outside lower center")
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=120)


def _draw(panel: Any, name: str, runs: Runs) -> None:
    for number, metrics in enumerate(runs.values()):
        results = metrics.get(name, [])
        kimg = [result.get("kimg") or 0 for result in results]
        panel.plot(kimg, list(map(value, results)), ".-", color=f"C{number % 10}")
    panel.set(title=name, xlabel="kimg")
    panel.grid(alpha=0.3)


def _cell(results: list[dict[str, Any]]) -> str:
    if not results:
        return "-"
    best = best_of(results)
    at = "" if best.get("kimg") is None else f" at {best['kimg']:g}"
    return f"{value(best):.4g}{at}, last {value(results[-1]):.4g}"


if __name__ == "__main__":
    main()
