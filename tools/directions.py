"""Finds directions in w that change images most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .choices import LAYERS, NUMBER, Drawing, drawing_options, network_option
from .command import FILE, command
from .output import Output, progress, say

COLUMNS = 7


@command()
@network_option
@click.option(
    "--layers", type=LAYERS, help="Layers to look at and to move, as 0-3.  [default: all]"
)
@click.option("--count", type=click.IntRange(min=1), default=8, show_default=True, help="How many.")
@click.option("--out", type=FILE, required=True, help="An .npz file.")
@click.option("--sheet", type=FILE, help="Also draw them, as a PNG file.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sheet.")
@click.option(
    "--range",
    "reach",
    type=NUMBER,
    default=3.0,
    show_default=True,
    help="Standard deviations that the sheet goes to either side.",
)
@drawing_options("trunc", "class_idx", "prior_sample", "prior_image", "backbone", "route")
def main(
    network: str,
    layers: tuple[int, ...] | None,
    count: int,
    out: Path,
    sheet: Path | None,
    seed: int,
    reach: float,
    **options: Any,
) -> None:
    """Find the directions of w that layers react to most (SeFa), for generate.py --direction.

    Shen and Zhou, CVPR 2021 (arXiv 2007.06600). Nothing is trained and no image is needed. Amounts
    are in standard deviations of w along the direction: --direction=OUT:3=2.5.
    """
    import torch

    from stylegan2_fewshot.files import sha256_of
    from training import generation, grids, sources
    from training.directions import sefa

    subject = generation.Subject(network, Drawing.take(options), say=say)
    moved = layers or tuple(range(subject.G.num_ws))
    if max(moved) >= subject.G.num_ws:
        raise ValueError(
            f"--layers={max(moved)}: the network's layers are 0 to {subject.G.num_ws - 1}"
        )
    vectors = sefa(subject.G, moved_convolutions(subject.G, moved))[:count].cpu()
    with torch.no_grad():
        samples = torch.cat([subject.latents(number, psi=1).ws[:1, 0] for number in range(1000)])
    deviations = (samples.cpu() @ vectors.t()).std(0)
    found = generation.Directions(
        vectors, deviations, moved, sha256_of(sources.fetch(subject.path))
    )
    with Output(out) as output:
        found.write(out)
        output.count += 1
        if sheet:
            rows, start = [], subject.latents(seed)
            steps = torch.linspace(-reach, reach, COLUMNS).tolist()
            for index in progress(range(len(vectors)), total=len(vectors), desc="rows", unit="row"):
                shifts = [found.shift(index, step, subject.G).to(subject.device) for step in steps]
                rows.append((str(index), torch.cat([_moved(subject, start, s) for s in shifts])))
            with output.file(sheet) as stream:
                grids.labelled_rows(rows).save(stream, "png")


def moved_convolutions(G: Any, layers: tuple[int, ...]) -> list[int]:
    """Return which convolutions take the latents of some layers; the last latent has none."""
    return [layer for layer in layers if layer < G.num_ws - 1] or [G.num_ws - 2]


def _moved(subject: Any, start: Any, shift: Any) -> Any:
    from dataclasses import replace

    return subject.images(replace(start, ws=start.ws[:1] + shift)).cpu()


if __name__ == "__main__":
    main()
