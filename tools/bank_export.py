"""Makes an ordinary network pickle of a generator with filter banks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from stylegan2_fewshot.methods.bank.filters import parse_route, without_banks

from .command import FILE, UserPath, command
from .output import Output


@command()
@click.argument("source", metavar="IN", type=UserPath())
@click.argument("target", metavar="OUT", type=FILE)
@click.option(
    "--route",
    default="mean",
    show_default=True,
    help="The filter set of each bank, such as 3,1,4, or the mean of the sets.",
)
def main(source: str, target: Path, route: str) -> None:
    """Write one route through the banks of IN to OUT, an ordinary network pickle.

    IN is a path, URL, short name or run.
    """
    from training import pickles

    nets = pickles.load(source)
    chosen = parse_route(route, nets.G_ema)
    G, G_ema = (without_banks(net, chosen) for net in (nets.G, nets.G_ema))
    with Output(target) as output:
        output.network(target, replace(nets, G=G, G_ema=G_ema), source)


if __name__ == "__main__":
    main()
