"""Sheets of images: truncation by seed, snapshots by seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .choices import NUMBER, SEEDS, Drawing, ListType, Seeds, drawing_options, network_option
from .command import FILE, command
from .output import Output, progress, say

MOST = 4096  # images of a sheet


@command()
@network_option
@click.option("--seeds", type=SEEDS, default="0-7", show_default=True, help="The columns.")
@click.option("--psi", type=ListType(NUMBER), help="Truncations, a row each, such as 0,0.5,1.")
@click.option(
    "--snapshots", is_flag=True, help="One row for each snapshot of the run that --network names."
)
@drawing_options(
    *("trunc", "class_idx", "prior_sample", "prior_image"),
    *("backbone", "noise_mode", "route"),
)
@click.option("--out", type=FILE, required=True, help="A PNG file.")
def main(
    network: str,
    seeds: Seeds,
    psi: tuple[float, ...] | None,
    snapshots: bool,
    out: Path,
    **options: Any,
) -> None:
    """Draw the same seeds at several truncations, or by all snapshots of a run, with labels.

    A run's sheet shows at a glance what training did, and where it began to collapse.
    """
    from training import generation, grids, run_dir

    if (psi is not None) == snapshots:
        raise ValueError("give either --psi or --snapshots")
    drawing = Drawing.take(options)
    subjects: list[tuple[str, str, Drawing]]
    if snapshots:
        found = run_dir.snapshots(Path(network).expanduser())
        if not found:
            raise ValueError(f"--network={network}: --snapshots needs a run with snapshots")
        subjects = [(_kimg(path), str(path), drawing) for path in found]
    else:
        subjects = [(f"psi {p:g}", network, replace(drawing, trunc=p)) for p in psi or ()]
    if len(seeds) * len(subjects) > MOST:
        raise ValueError(f"--seeds: more than {MOST} images; give fewer seeds")
    rows, last = [], None
    with Output(out) as output:
        for label, place, how in progress(subjects, total=len(subjects), desc="rows", unit="row"):
            if last is None or snapshots:
                last = generation.Subject(place, how, say=say)
            made = [last.images(last.latents(seed, how.trunc)) for seed in seeds]
            rows.append((label, _joined(made)))
        with output.file(out) as stream:
            grids.labelled_rows(rows).save(stream, "png")


def _joined(images: list[Any]) -> Any:
    import torch

    return torch.cat(images).cpu()


def _kimg(snapshot: Path) -> str:
    kimg, _, images = snapshot.stem.removeprefix("network-snapshot-").partition("-")
    return f"{int(kimg)}{f'.{images}' if images else ''} kimg"


if __name__ == "__main__":
    main()
