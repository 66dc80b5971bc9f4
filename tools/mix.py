"""Mixes the styles of seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .choices import LAYERS, SEEDS, Drawing, Seeds, drawing_options, network_option, outdir_option
from .command import command
from .output import Output, progress, say

DEFAULT_LAYERS = 7
MOST = 4096  # images of a matrix


@command()
@network_option
@click.option("--rows", type=SEEDS, required=True, help="Seeds of the rows, such as 85,100.")
@click.option("--cols", type=SEEDS, required=True, help="Seeds of the columns.")
@click.option(
    "--styles",
    type=LAYERS,
    help="Layers whose style the column's seed gives.  [default: 0-6, as far as there are]",
)
@drawing_options(
    *("trunc", "class_idx", "prior_sample", "prior_image"),
    *("backbone", "noise_mode", "route"),
)
@outdir_option
def main(
    network: str,
    rows: Seeds,
    cols: Seeds,
    styles: tuple[int, ...] | None,
    outdir: Path,
    **options: Any,
) -> None:
    """Show seeds of rows with some layers' styles of seeds of columns, as ROW-COL.png and a grid.

    This was style_mixing.py. Karras et al., CVPR 2019 (arXiv 1812.04948), Figure 3.
    """
    from training import generation

    if len(rows) * len(cols) > MOST:
        raise ValueError(f"--rows and --cols make more than {MOST} images; give fewer seeds")
    subject = generation.Subject(network, Drawing.take(options), say=say)
    layers = list(styles or range(min(DEFAULT_LAYERS, subject.G.num_ws)))
    if max(layers) >= subject.G.num_ws:
        last = subject.G.num_ws - 1
        raise ValueError(f"--styles={max(layers)}: the network's layers are 0 to {last}")
    found = {seed: subject.latents(seed) for seed in {*rows, *cols}}
    pairs = [(seed, seed) for seed in found] + [(row, col) for row in rows for col in cols]
    pictures = {}
    with Output(outdir) as output:
        for row, col in progress(dict.fromkeys(pairs), total=len(set(pairs)), desc="images"):
            ws = found[row].ws.clone()
            ws[:, layers] = found[col].ws[:, layers]
            pictures[row, col] = _picture(subject.images(replace(found[row], ws=ws)))
            output.picture(f"{row}-{col}.png", pictures[row, col])
        output.picture("grid.png", _matrix(list(rows), list(cols), pictures))


def _picture(image: Any) -> Any:
    from training import grids

    return grids.grid(image)


def _matrix(rows: list[int], cols: list[int], pictures: dict[tuple[int, int], Any]) -> Any:
    """Lay the matrix out under the sources of its columns, beside those of its rows."""
    from PIL import Image

    side = pictures[rows[0], rows[0]].width
    canvas = Image.new("RGB", (side * (len(cols) + 1), side * (len(rows) + 1)), "white")
    for x, col in enumerate(cols, 1):
        canvas.paste(pictures[col, col], (side * x, 0))
    for y, row in enumerate(rows, 1):
        canvas.paste(pictures[row, row], (0, side * y))
        for x, col in enumerate(cols, 1):
            canvas.paste(pictures[row, col], (side * x, side * y))
    return canvas


if __name__ == "__main__":
    main()
