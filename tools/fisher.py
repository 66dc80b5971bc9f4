"""Estimate the Fisher information of a network's parameters, for EWC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from stylegan2_fewshot import distributed, files, fisher, npz
from stylegan2_fewshot.networks import labels_beside
from stylegan2_fewshot.ops import select
from stylegan2_fewshot.options import Command
from training import pickles, sources

from .command import FILE, UserPath


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("network_pkl")
@click.option("--out", type=FILE, help="File to write; default NETWORK.fisher.npz.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=1000, help="Number of generated images."
)
@click.option("--seed", default=0, help="Seed of latents, labels and noise.")
@click.option(
    "--network",
    type=click.Choice(["G", "G_ema"]),
    default="G_ema",
    help="Which generator of the pickle: the one that training starts from.",
)
@click.option("--psi", default=1.0, help="Truncation.")
@click.option(
    "--noise-mode",
    type=click.Choice(["random", "const", "none"]),
    default="random",
    help="Noise inputs of G.",
)
@click.option(
    "--granularity",
    type=click.Choice(["parameter", "layer"]),
    default="parameter",
    help="One number per parameter, or the mean over each tensor.",
)
@click.option("--discriminator", is_flag=True, help="Include D's parameters, for --ewc-network=GD.")
@click.option(
    "--labels",
    type=UserPath(path_type=Path, exists=True, dir_okay=False),
    help="Array .npy [M, c_dim] of labels to draw from; default: the conditions in NETWORK's "
    ".prior.npz, or else every class alike.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Samples differentiated at once; default: what fits into 256 MiB.",
)
@click.option("--loop", is_flag=True, help="Differentiate sample by sample: slow, the reference.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to compute."
)
def main(
    network_pkl: str,
    out: Path | None,
    network: str,
    labels: Path | None,
    batch: int | None,
    loop: bool,
    device: str,
    **settings: Any,
) -> None:
    """Estimate the Fisher information of NETWORK_PKL (path, URL, short name or run) for EWC.

    Several processes share the work: torchrun --nproc-per-node=N -m tools.fisher ...
    An interrupted estimate resumes when the same command is given again.
    """
    torch.backends.cudnn.allow_tf32 = False  # squares double what a gradient is off by
    place = distributed.init(device)
    select("auto", place)
    path = sources.fetch(network_pkl)
    out = out or path.with_suffix(".fisher.npz")
    partial = out.with_suffix(".partial.npz")
    nets, conditions = pickles.load(path), labels_beside(path)
    if labels is not None:
        with files.refusing(f"--labels={labels}", "no .npy file of numbers", "write [M, c_dim]"):
            conditions = torch.from_numpy(npz.read_array(labels))
    estimated = fisher.estimate(
        getattr(nets, network).to(place),
        nets.D.to(place),
        fisher.Settings(**settings),
        labels=conditions,
        source=files.sha256_of(path),
        network=network,
        batch=batch,
        vectorized=not loop,
        partial=partial,
    )
    if distributed.rank() == 0:
        fisher.save(out, estimated)
        partial.unlink(missing_ok=True)
        click.echo(f"{fisher.summary(estimated)}\n{out}")
    distributed.shutdown()


if __name__ == "__main__":
    main()
