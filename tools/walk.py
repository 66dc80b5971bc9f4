"""Walks from latent to latent, as a movie or as frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from . import video
from .choices import NUMBER, SEEDS, Drawing, ListType, Seeds, drawing_options
from .command import UserPath, command
from .output import Output, progress, say

MOST = 1_000_000  # frames


@dataclass(frozen=True)
class Step:
    """One frame: how far it is from a keyframe to the next, and what it is called."""

    start: int
    stop: int
    share: float
    label: str


@command()
@click.option(
    "--network",
    "networks",
    type=ListType(),
    required=True,
    help="Network: path, URL, short name or run; several, such as a.pkl,b.pkl, side by side.",
)
@click.option("--seeds", type=SEEDS, help="Seeds of the keyframes, such as 1,5,9.")
@click.option("--w", "files", type=ListType(), help="Keyframes from files of tools.project.")
@click.option(
    "--truncation-walk",
    type=ListType(NUMBER),
    metavar="PSI,PSI,...",
    help="Each seed at these truncations, such as 0,1.",
)
@click.option(
    "--frames",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Frames from one keyframe to the next.",
)
@click.option("--fps", type=click.IntRange(1, 120), default=30, show_default=True, help="Speed.")
@click.option(
    "--easing",
    type=click.Choice(["linear", "smooth"]),
    default="linear",
    show_default=True,
    help="Constant speed, or slower near keyframes.",
)
@click.option("--loop/--no-loop", default=True, help="Return to the start.  [default: loop]")
@click.option(
    "--pause",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Further frames on each keyframe.",
)
@click.option("--labels", is_flag=True, help="Write keyframes' and networks' names under images.")
@drawing_options(
    *("trunc", "class_idx", "prior_sample", "prior_image"),
    *("backbone", "noise_mode", "route", "direction"),
)
@click.option(
    "--out",
    type=UserPath(path_type=Path),
    required=True,
    help="File.mp4, .webp or .gif, or a folder for frames.",
)
def main(
    networks: tuple[str, ...],
    seeds: Seeds | None,
    files: tuple[str, ...] | None,
    truncation_walk: tuple[float, ...] | None,
    frames: int,
    fps: int,
    easing: str,
    loop: bool,
    pause: int,
    labels: bool,
    out: Path,
    **options: Any,
) -> None:
    """Walk between seeds or projections in a straight line through w, and return to the start.

    At a keyframe the image is generate.py's; frames and WebP keep it to the last bit. With filter
    banks, a frame takes the route of the nearer keyframe unless --route says one.
    """
    from training import generation

    if (seeds is None) == (files is None):
        raise ValueError("give either --seeds or --w")
    if files and truncation_walk:
        raise ValueError("--truncation-walk goes with --seeds")
    video.check(out)
    drawing = Drawing.take(options)
    subjects = [
        generation.Subject(network, drawing, say=say, from_seeds=seeds is not None)
        for network in networks
    ]
    rows = [_keyframes(subject, seeds, files, truncation_walk) for subject in subjects]
    names = [name for name, _ in rows[0]]
    steps = list(_steps(names, frames, loop=loop, pause=pause, smooth=easing == "smooth"))
    walks = [[latents for _, latents in row] for row in rows]
    captions = [Path(network).stem for network in networks] if labels else []
    with Output(out) as output:
        made = (_frame(subjects, walks, step, captions) for step in steps)
        shown = progress(made, total=len(steps), desc="frames", unit="frame")
        video.write(output, out, shown, fps)


def _keyframes(
    subject: Any,
    seeds: Seeds | None,
    files: tuple[str, ...] | None,
    psis: tuple[float, ...] | None,
) -> list[tuple[str, Any]]:
    """Return names and latents of the keyframes of a network."""
    if files:
        found = [(Path(f).stem, latents) for f in files for latents in subject.projected(f, "--w")]
        return found
    assert seeds is not None
    if len(seeds) * len(psis or "1") > MOST:
        raise ValueError(f"--seeds: {MOST} keyframes at most")
    named = [(seed, psi) for seed in seeds for psi in psis or (None,)]
    return [
        (f"seed {seed}" + ("" if psi is None else f", psi {psi:g}"), subject.latents(seed, psi))
        for seed, psi in named
    ]


def _steps(
    names: list[str], frames: int, *, loop: bool, pause: int, smooth: bool
) -> Iterator[Step]:
    """Yield every frame; a loop ends on the frame before the first."""
    count = len(names)
    for start in range(count if loop and count > 1 else count - 1):
        stop = (start + 1) % count
        for frame in [0] * pause + list(range(frames)):
            share = frame / frames
            share = share * share * (3 - 2 * share) if smooth else share
            yield Step(start, stop, share, names[start if share < 0.5 else stop])
    if not loop or count == 1:
        yield from [Step(count - 1, count - 1, 0.0, names[-1])] * (1 + pause)


def _between(one: Any, two: Any, share: float) -> Any:
    if share == 0:
        return one
    near = one if share < 0.5 else two
    return replace(near, ws=one.ws.lerp(two.ws, share))


def _frame(subjects: list[Any], walks: list[list[Any]], step: Step, captions: list[str]) -> Any:
    """Draw one frame: the networks' images side by side."""
    from PIL import Image

    from training import grids

    pictures = []
    for subject, walk in zip(subjects, walks, strict=True):
        latents = _between(walk[step.start], walk[step.stop], step.share)
        pictures.append(grids.grid(subject.images(latents)))
    if len(pictures) == 1 and not captions:
        return pictures[0]
    height = max(p.height for p in pictures)
    line = max(height // 8, 12) if captions else 0
    wide = sum(p.width for p in pictures)
    canvas = Image.new("RGB", (wide, height + 2 * line), "white")
    left = 0
    for index, picture in enumerate(pictures):
        canvas.paste(picture, (left, 0))
        if captions:
            _write(canvas, captions[index], (left, height), line, picture.width)
        left += picture.width
    if captions:
        _write(canvas, step.label, (0, height + line), line, wide)
    return canvas


def _write(canvas: Any, text: str, place: tuple[int, int], line: int, width: int) -> None:
    """Write one line, as small as it has to be."""
    from PIL import ImageDraw, ImageFont

    size = line - 2
    while size > 6 and ImageFont.load_default(size).getlength(text) > width:
        size -= 1
    font = ImageFont.load_default(size)
    ImageDraw.Draw(canvas).text(place, text, fill="black", font=font)


if __name__ == "__main__":
    main()
