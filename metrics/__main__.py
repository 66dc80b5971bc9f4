"""Command line: measure the generator of a network pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from training.conditions import SAMPLINGS

from .measure import launch

FOLDER_OR_FILE = click.Path(exists=True)


@click.command(context_settings={"max_content_width": 100})
@click.argument("network")
@click.option("--metrics", "names", default="fid50k_full", help="Names.", show_default=True)
@click.option("--data", type=FOLDER_OR_FILE, help="Training images.  [default: as in the pickle]")
@click.option("--metricdata", type=FOLDER_OR_FILE, help="Images to measure against, if others.")
@click.option(
    "--mirror", type=bool, help="Trained with mirror images.  [default: as in the pickle]"
)
@click.option(
    "--prior-sample",
    type=click.Choice(SAMPLINGS),
    help="Conditions, for a network trained with --prior.  [default: train]",
)
@click.option("--gpus", type=click.IntRange(min=1), default=1, help="Processes.", show_default=True)
@click.option("--seed", type=int, default=0, help="Seed of all that is random.", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: the run's]")
def main(**options: Any) -> None:
    """Measure the generator in NETWORK (a path, a URL or a name as ffhq256).

    \b
    NETWORK's results are printed as lines of JSON, and in a run directory added to its files:
      python -m metrics network-best.pkl --data=ten.zip --metricdata=heldout.zip \\
          --metrics=kid5k_full@mobilenetv2,lpips1k_intra,nn1k,copying1k
    """
    launch(options)


if __name__ == "__main__":
    main()
