"""Makes an ordinary network pickle of a generator with filter banks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from stylegan2_fewshot.methods.bank.filters import parse_route, without_banks
from stylegan2_fewshot.options import Command


@click.command(cls=Command)
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--route",
    default="mean",
    show_default=True,
    help="The filter set of each bank, such as 3,1,4, or the mean of the sets.",
)
def main(source: str, target: Path, route: str) -> None:
    """Write one route through the banks of IN (path or URL) to OUT, a pickle for any reader."""
    from training import pickles

    nets = pickles.load(source)
    chosen = parse_route(route, nets.G_ema)
    plain = {key: without_banks(getattr(nets, key), chosen) for key in ("G", "G_ema")}
    pickles.save(target, **vars(replace(nets, **plain)))
    click.echo(f"{target}: route {route}, an ordinary network pickle")


if __name__ == "__main__":
    main()
