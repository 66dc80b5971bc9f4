"""Grows a network to larger images, cuts it to smaller ones, or changes their channels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .choices import plugin_option
from .command import FILE, UserPath, command
from .output import Output, progress

if TYPE_CHECKING:
    from training.networks import Generator


@command()
@click.argument("source", metavar="NETWORK", type=UserPath())
@click.argument("target", metavar="OUT", type=FILE)
@click.option("--size", type=click.IntRange(min=8), help="Pixels a side, a power of two")
@click.option("--channels", type=click.Choice(["1", "3", "4"]), help="Grey, RGB or RGBA images")
@click.option(
    "--fit-steps",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Steps over which the first layers left of D are fitted after cutting.",
)
@plugin_option
def main(source: str, target: Path, size: int | None, channels: str | None, fit_steps: int) -> None:
    """Grow or cut NETWORK to another resolution or number of channels, as a pickle OUT.

    A grown network starts out as the same function: its images are the old ones enlarged. A cut one
    loses its finest layers, and its first images differ as little from the shrunk ones as the
    layers left allow; its D has to learn anew what it saw in them. Train from OUT with train.py
    --resume=OUT.
    """
    from training import pickles, resizing

    if size is None and channels is None:
        raise ValueError("give --size, --channels or both")
    with Output(target) as output:
        nets = pickles.load(source)
        before = nets.G_ema
        try:
            made = resizing.resized(
                nets,
                size or before.img_resolution,
                int(channels) if channels else None,
                fit_steps=fit_steps,
                show=lambda steps: progress(steps, total=fit_steps, desc="D", unit="step"),
            )
        except ValueError as error:
            raise ValueError(f"--size={size}: {error}") from error
        click.echo(f"{_shape(before)} to {_shape(made.G_ema)}")
        output.network(target, made, source)


def _shape(G: Generator) -> str:
    side = G.img_resolution
    return f"{side}x{side}x{G.img_channels}"


if __name__ == "__main__":
    main()
