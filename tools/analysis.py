"""Which layers an adaptation has changed, beside how much they matter for the source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from stylegan2_fewshot import fisher as fisher_information
from stylegan2_fewshot.files import replacing, write_text
from stylegan2_fewshot.fisher import Settings, estimate
from stylegan2_fewshot.options import Command
from stylegan2_fewshot.plugin import labels_beside

DEPTH = {"mapping": 2, "synthesis": 3}  # parts of a parameter's name that make up its layer's


@dataclass(frozen=True)
class Layer:
    """One layer of G, from the latent to the image.

    Attributes:
        name: Such as `synthesis.b8.conv1`; with its bias, noise strength and style.
        parameters: Number of parameters.
        fisher: Mean Fisher information in the source network.
        change: `|adapted - source| / |source|`, Euclidean norms over the layer.
    """

    name: str
    parameters: int
    fisher: float
    change: float


def layer_of(parameter: str) -> str:
    """Return the layer that a parameter of G belongs to."""
    parts = parameter.split(".")
    return ".".join(parts[: DEPTH.get(parts[0], len(parts))])


def compare(
    source: Mapping[str, Tensor], adapted: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> list[Layer]:
    """Return the layers in the order of G's computation.

    Args:
        source: Parameters of the source generator by name.
        adapted: Those of the adapted one.
        fisher: Fisher information by name, of the parameters' shapes or scalars.

    Raises:
        ValueError: The networks have different parameters, or `fisher` lacks some.
    """
    for name, value in source.items():
        if name not in adapted or adapted[name].shape != value.shape or name not in fisher:
            raise ValueError(f"{name}: not alike in source, adapted network and Fisher file")
    layers = []
    for layer, members in groupby(sorted(source, key=_depth), layer_of):
        names = list(members)
        before, after, information = (
            torch.cat([table[n].detach().expand(source[n].shape).flatten().double() for n in names])
            for table in (source, adapted, fisher)
        )
        change = (after - before).norm() / before.norm().clamp(min=1e-30)
        layers.append(Layer(layer, before.numel(), float(information.mean()), float(change)))
    return layers


def _depth(parameter: str) -> tuple[Any, ...]:
    """Return what sorts parameters from the latent to the image."""
    parts = parameter.split(".")
    resolution = int(parts[1][1:]) if parts[0] == "synthesis" else 0
    return parts[0], resolution, parts[1:]


def rank_correlation(layers: list[Layer]) -> float:
    """Return Spearman's correlation of Fisher information and change over the layers.

    Li et al., NeurIPS 2020 (arXiv 2012.02780), section 3: what matters more changes less, which
    is a negative number; NaN where one of the two is the same in all layers.
    """
    values = [[x.fisher for x in layers], [x.change for x in layers]]
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef([_ranks(row) for row in values])[0, 1])


def _ranks(values: list[float]) -> Any:
    """Return the ranks of numbers from 0 on; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]


def table(layers: list[Layer]) -> str:
    """Return the layers as text, one line each."""
    width = max(len(layer.name) for layer in layers)
    rows = [f"{'layer':{width}}  parameters    mean F    change"]
    for x in layers:
        rows.append(f"{x.name:{width}}  {x.parameters:10d}  {x.fisher:.2e}  {x.change:8.4f}")
    return "\n".join(rows)


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("source_pkl")
@click.argument("adapted_pkl")
@click.option(
    "--fisher",
    type=click.Path(path_type=Path),
    help="Fisher file of the source; without it, F is estimated.",
)
@click.option("--samples", default=200, help="Images to estimate F from.")
@click.option(
    "--network",
    type=click.Choice(["G", "G_ema"]),
    default="G",
    help="Which generator of the pickles.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for analysis.json, analysis.txt and analysis.png.",
)
def main(
    source_pkl: str, adapted_pkl: str, fisher: Path | None, samples: int, network: str, out: Path
) -> None:
    """Show mean Fisher information and relative change of every layer of G.

    SOURCE_PKL is the network that ADAPTED_PKL was trained from: paths, URLs or short names.
    """
    from matplotlib.figure import Figure

    from training import pickles, sources

    path = sources.fetch(source_pkl)
    source, adapted = pickles.load(path), pickles.load(adapted_pkl)
    before, after = (getattr(nets, network) for nets in (source, adapted))
    if fisher is None:
        settings, labels = Settings(samples=samples), labels_beside(path)
        found = estimate(before, source.D, settings, labels=labels, network=network)
    else:
        found = fisher_information.load(fisher, path)
    information = {name.removeprefix("G."): value for name, value in found.values.items()}
    layers = compare(dict(before.named_parameters()), dict(after.named_parameters()), information)
    correlation = rank_correlation(layers)
    verdict = f"Spearman correlation of mean F and change: {correlation:.2f}"
    facts = {"layers": [asdict(layer) for layer in layers], "rank_correlation": correlation}
    write_text(out / "analysis.json", json.dumps(facts, indent=1) + "\n")
    write_text(out / "analysis.txt", f"{table(layers)}\n{verdict}\n")
    figure = Figure(figsize=(0.3 * len(layers) + 2, 6), layout="constrained")
    _draw(layers, figure)
    with replacing(out / "analysis.png") as file:
        figure.savefig(file, dpi=120, format="png")
    click.echo(f"{table(layers)}\n{verdict}\n{out / 'analysis.png'}")


def _draw(layers: list[Layer], figure: Any) -> None:
    """Draw both quantities as bars, layer by layer."""
    upper, lower = figure.subplots(2, sharex=True)
    names = [layer.name.removeprefix("synthesis.") for layer in layers]
    upper.bar(names, [layer.fisher for layer in layers], color="tab:blue")
    upper.set(yscale="log", ylabel="mean Fisher information")
    lower.bar(names, [layer.change for layer in layers], color="tab:orange")
    lower.set(ylabel="relative change")
    lower.tick_params(axis="x", rotation=90)


if __name__ == "__main__":
    main()
