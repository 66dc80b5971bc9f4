"""Makes one network of two that come from one source."""

from __future__ import annotations

from pathlib import Path

import click

from .choices import NUMBER, plugin_option
from .command import FILE, UserPath, command
from .output import Output


@command()
@click.argument("first", metavar="A", type=UserPath())
@click.argument("second", metavar="B", type=UserPath())
@click.argument("target", metavar="OUT", type=FILE)
@click.option(
    "--split",
    type=click.IntRange(min=0),
    required=True,
    help="The last resolution that A gives; 0 for none.",
)
@click.option(
    "--smooth",
    type=NUMBER,
    default=0.0,
    show_default=True,
    help="Resolutions over which the weights of A pass into those of B, instead of a cut.",
)
@plugin_option
def main(first: str, second: str, target: Path, split: int, smooth: float) -> None:
    """Take layers up to a resolution from network A, the rest from B, and write the pickle OUT.

    Coarse layers give poses and shapes, fine ones textures and colours. Both networks have to be
    trained from one source, or one from the other. Where classes or other conditions are, A and B
    need the same.
    """
    from training import blending, pickles

    if split & (split - 1) or split in (1, 2):
        raise ValueError(f"--split={split}: must be 0, or a resolution: 4, 8, 16, ...")
    if smooth < 0:
        raise ValueError(f"--smooth={smooth:g}: must be 0 or more")
    one, two = map(pickles.load, (first, second))
    made = blending.blended(one, two, split, smooth)
    shares = [
        f"{r}: {100 * blending.share_of_second(r, split, smooth):.0f} %"
        for r in two.G_ema.synthesis.block_resolutions
    ]
    click.echo(f"share of {second} by resolution: {', '.join(shares)}")
    with Output(target) as output:
        output.network(target, made, first if split else second)


if __name__ == "__main__":
    main()
