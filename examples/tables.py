"""Tables, plots and sections of the experiments' documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from trials import ROOT  # noqa: F401  (makes the project's packages importable)

from stylegan2_fewshot.files import replacing, write_text

MINUS = "\N{MINUS SIGN}"
Columns = Mapping[str, tuple[str, int]]  # heading: key of a measure, digits


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Return mean and standard deviation over seeds as text, or the value alone of one seed."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{np.mean(known).round(digits) + 0.0:.{digits}f}"  # without a minus before 0
    return mean if len(known) < 2 else f"{mean} ± {np.std(known, ddof=1):.{digits}f}"


def cells(rows: Sequence[Mapping[str, float]], columns: Columns) -> list[str]:
    """Return the cells of a table's line: of every measure mean and deviation over rows."""
    return [spread([row.get(key) for row in rows], digits) for key, digits in columns.values()]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def save_figure(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Write a plot as PNG.

    Args:
        path: File to write.
        size: Width and height in inches.
        draw: Draws into the matplotlib figure that it is given.
    """
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    with replacing(path) as stream:
        figure.savefig(stream, dpi=100, format="png")


def save_curves(
    path: Path,
    size: tuple[float, float],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    titles: Mapping[str, str],
) -> None:
    """Write a plot of measures along training: a colour for each method, a line for each seed.

    Args:
        path: File to write.
        size: Width and height in inches.
        runs: Runs of a record by method.
        titles: Titles of the panels by key of the measure.
    """

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(titles), squeeze=False)[0]
        for (key, title), panel in zip(titles.items(), panels, strict=True):
            for number, (method, seeds) in enumerate(runs.items()):
                for index, run in enumerate(seeds):
                    points = [(s["kimg"], s[key]) for s in run["snapshots"] if key in s]
                    label = None if index else method
                    panel.plot(*zip(*points, strict=True), ".-", color=f"C{number}", label=label)
            panel.set(title=title, xlabel="kimg")
            panel.grid(alpha=0.3)
        panels[-1].legend()

    save_figure(path, size, draw)


def publish(document: Path, sections: Mapping[str, str]) -> None:
    """Put text into a document, between the marks of each section, in place of what is there.

    Args:
        document: Markdown file; all that stands outside of the sections stays.
        sections: New content by the name in the marks; they are added at the end where missing.
    """
    text = document.read_text() if document.exists() else ""
    for name, content in sections.items():
        head, _, rest = text.partition(_mark("begin", name))
        tail = rest.partition(_mark("end", name))[2] or "\n"
        text = f"{head}{_mark('begin', name)}\n{content.strip()}\n{_mark('end', name)}{tail}"
    write_text(document, text)


def section(document: Path, name: str) -> str | None:
    """Return the text between the marks of a section, or None where it is missing."""
    _, begin, rest = document.read_text().partition(_mark("begin", name))
    return rest.partition(_mark("end", name))[0].strip() if begin else None


def _mark(which: str, name: str) -> str:
    return f"<!-- {which}: {name} -->"
