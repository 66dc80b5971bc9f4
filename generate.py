"""Generate images with a trained network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tools.choices import SEEDS, Drawing, Seeds, drawing_options, outdir_option
from tools.command import command
from tools.output import Output, progress, say

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = 8  # images per row of the labelled grids
MOST_IN_GRID = 4096


def rows_of(seeds: Seeds, images: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Group images into rows, each labelled with its seeds."""
    import torch

    for start in range(0, len(seeds), COLUMNS):
        row = seeds[start : start + COLUMNS]
        is_range = row == list(range(row[0], row[0] + len(row))) and len(row) > 1
        label = f"{row[0]}-{row[-1]}" if is_range else ", ".join(map(str, row))
        yield label, torch.cat(images[start : start + COLUMNS])


def refuse_contradictions(
    seeds: Seeds | None, projected_w: str | None, grids: bool, drawing: Drawing
) -> None:
    """Raise where options contradict each other."""
    if (seeds is None) == (projected_w is None):
        raise ValueError("give either --seeds or --projected-w")
    if projected_w and (grids or drawing.class_idx is not None):
        raise ValueError("--projected-w goes with none of --grid, --routes-grid and --class")
    if seeds and grids and len(seeds) > MOST_IN_GRID:
        raise ValueError(
            f"--grid and --routes-grid take {MOST_IN_GRID} seeds at most, got {len(seeds)}; "
            "drop them, or give fewer seeds"
        )


@command(help=__doc__)
@click.option("--network", required=True, help="Network pickle: path, URL, short name, or run.")
@click.option("--seeds", type=SEEDS, help="Seeds, such as 0-35,40.")
@drawing_options(
    *("trunc", "class_idx", "prior_sample", "prior_image", "prior_mix"),
    *("backbone", "noise_mode", "route", "direction"),
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    help="Seeds to draw at a time: more keep a GPU busy, and change images by rounding.",
)
@click.option("--projected-w", metavar="FILE", help="Latents w in an .npz file, instead of seeds.")
@outdir_option
@click.option("--grid", is_flag=True, help="Also write all seeds into one labelled grid.png.")
@click.option(
    "--routes-grid", is_flag=True, help="Also write routes.png: every seed through the same routes."
)
def main(
    network: str,
    seeds: Seeds | None,
    batch: int,
    projected_w: str | None,
    outdir: Path,
    grid: bool,
    routes_grid: bool,
    **options: Any,
) -> None:
    """Write seedNNNN.png for every seed, or projNN.png for every projected latent."""
    drawing = Drawing.take(options)
    refuse_contradictions(seeds, projected_w, grid or routes_grid, drawing)
    from training import generation, grids

    subject = generation.Subject(
        network,
        drawing,
        say=say,
        from_seeds=projected_w is None,
    )
    if routes_grid and not subject.has_routes:
        raise ValueError("--routes-grid: the network has no filter banks; drop it")
    made: Iterator[tuple[str, Tensor]]
    if projected_w:
        latents = subject.projected(projected_w)
        total = len(latents)
        made = ((f"proj{n:02d}", subject.images(found)) for n, found in enumerate(latents))
    else:
        assert seeds is not None
        total, made = len(seeds), generation.strips(subject, seeds, batch=batch)
    kept = []
    with Output(outdir) as output:
        for name, img in progress(made, total=total, desc="images"):
            output.picture(f"{name}.png", grids.grid(img, columns=len(img)))
            kept += [img.cpu()] if grid else []
        if routes_grid and seeds:
            routes = [(f"seed {seed}", subject.through_routes(seed)) for seed in seeds]
            output.picture("routes.png", grids.labelled_rows(routes))
        if grid and seeds:
            is_strip = any(len(img) > 1 for img in kept)
            rows = zip(map(str, seeds), kept, strict=True) if is_strip else rows_of(seeds, kept)
            output.picture("grid.png", grids.labelled_rows(list(rows)))


if __name__ == "__main__":
    main()
