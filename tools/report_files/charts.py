"""Line charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from .runs import Series

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 12, 34
MOST_POINTS = 300
LARGEST = 1e300  # the distance between two numbers is a number, too


@dataclass(frozen=True)
class Line:
    """A line: what the legend says, the number of its colour, its dashes, its points."""

    label: str
    colour: int
    points: Series
    dashed: bool = False


def chart(title: str, lines: Sequence[Line]) -> Markup:
    """Return a chart over kimg as an `<svg>`; empty where no line has a point.

    Args:
        title: What it shows, for those who hear it.
        lines: Points that are not finite, or too large to draw, are left out.
    """
    kept = [(line, _finite(line.points)) for line in lines]
    kept = [(line, points) for line, points in kept if points]
    if not kept:
        return Markup("")
    xs = ticks(0, max(points[-1][0] for _, points in kept), 5)
    values = [value for _, points in kept for _, value in points]
    ys = ticks(min(values), max(values), 4)
    parts = [Markup('<g class="grid">'), *_grid(xs, ys), Markup("</g>")]
    for line, points in kept:
        path = " ".join(f"{_x(k, xs):.1f},{_y(v, ys):.1f}" for k, v in points)
        style = f"line colour{line.colour % 8}" + (" dashed" if line.dashed else "")
        if len(points) == 1:
            x, y = path.split(",")
            parts.append(Markup('<circle class="{}" cx="{}" cy="{}" r="3"/>').format(style, x, y))
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(style, path))
    ends = ", ".join(f"{line.label} ends at {points[-1][1]:.3g}" for line, points in kept)
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
    body = Markup("").join(parts)
    return head.format(WIDTH, HEIGHT, f"{title} over kimg: {ends}") + body + Markup("</svg>")


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return round numbers, evenly spaced, from at most `low` to at least `high`."""
    span = high - low or abs(high) or 1.0
    rough = max(span / count, 1 / LARGEST)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _finite(points: Series) -> Series:
    usable = [(k, v) for k, v in points if abs(k) < LARGEST and abs(v) < LARGEST]
    stride = -(-len(usable) // MOST_POINTS) or 1
    return usable if stride == 1 else [*usable[:-1:stride], usable[-1]]


def _x(kimg: float, xs: Sequence[float]) -> float:
    return LEFT + (kimg - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)


def _y(value: float, ys: Sequence[float]) -> float:
    return HEIGHT - BOTTOM - (value - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)


def _grid(xs: Sequence[float], ys: Sequence[float]) -> list[Markup]:
    found = []
    for value in ys:
        y = round(_y(value, ys), 1)
        found.append(_segment(LEFT, y, WIDTH - RIGHT, y))
        found.append(_text(LEFT - 6, y + 4, f"{value:g}", "end"))
    for value in xs:
        x = round(_x(value, xs), 1)
        found.append(_segment(x, HEIGHT - BOTTOM, x, HEIGHT - BOTTOM + 4))
        end = "end" if value == xs[-1] else "middle"
        unit = f"{value:g} kimg" if value == xs[-1] else f"{value:g}"
        found.append(_text(x if end == "middle" else WIDTH - 2, HEIGHT - BOTTOM + 18, unit, end))
    return found


def _segment(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}"/>').format(x1, y1, x2, y2)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    found = '<text x="{}" y="{}" text-anchor="{}">{}</text>'
    return Markup(found).format(x, y, anchor, escape(text))
