"""Which layers an adaptation has changed, beside how much they matter for the source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
from stylegan2_fewshot.fisher import Settings, estimate, kind_of
from stylegan2_fewshot.networks import labels_beside
from stylegan2_fewshot.options import Command

from .command import FILE, FOLDER

DEPTH = {"mapping": 2, "synthesis": 3}  # parts of a parameter's name that make up its layer's
PARTS = ("convolution", "torgb", "styles", "biases", "noise", "mapping")  # kept apart, in order


@dataclass(frozen=True)
class Layer:
    """The parameters of one kind in one layer of G, from the latent to the image.

    Attributes:
        part: One of `PARTS`.
        name: Such as `synthesis.b8.conv1`.
        parameters: Number of parameters.
        fisher: Mean Fisher information in the source network.
        change: `|adapted - source| / |source|`, Euclidean norms over the parameters; None where
            the source's are all 0.
        null: The same of the source trained on with its own data, if that is known.
    """

    part: str
    name: str
    parameters: int
    fisher: float
    change: float | None
    null: float | None = None

    @property
    def over_null(self) -> float | None:
        """The change relative to what training alone brings about."""
        return self.change / self.null if self.null and self.change is not None else None


def layer_of(parameter: str) -> str:
    """Return the layer that a parameter of G belongs to."""
    parts = parameter.split(".")
    return ".".join(parts[: DEPTH.get(parts[0], len(parts))])


def part_of(parameter: str) -> str:
    """Return which of `PARTS` a parameter of G belongs to; the learned input is a convolution's."""
    if parameter.startswith("mapping."):
        return "mapping"
    if (kind := kind_of(parameter)) != "weights":
        return kind
    if ".torgb." in parameter:
        return "torgb"
    return "styles" if ".affine." in parameter else "convolution"


def compare(
    source: Mapping[str, Tensor],
    adapted: Mapping[str, Tensor],
    fisher: Mapping[str, Tensor],
    null: Mapping[str, Tensor] | None = None,
) -> list[Layer]:
    """Return part after part, the layers of each in the order of G's computation.

    Args:
        source: Parameters of the source generator by name.
        adapted: Those of the adapted one.
        fisher: Fisher information by name, of the parameters' shapes or scalars.
        null: Parameters of the source trained on for as long with its own data.

    Raises:
        ValueError: The networks have different parameters, or `fisher` lacks some.
    """
    networks = [net for net in (source, adapted, null) if net is not None]
    for name in dict.fromkeys(name for net in networks for name in net):
        shapes = {net[name].shape if name in net else None for net in networks}
        if name not in fisher or len(shapes) > 1:
            raise ValueError(
                f"{name}: not alike in source, adapted networks and Fisher file; name a network "
                "and one that was trained from it, at the same size"
            )
    layers = []
    for (_, part, layer), members in groupby(sorted(source, key=_place), _place):
        names = list(members)
        information = [fisher[n].detach().expand(source[n].shape).flatten() for n in names]
        before = _vector(source, names)
        changes = [
            None if net is None else _change(before, _vector(net, names)) for net in (adapted, null)
        ]
        mean = float(torch.cat(information).double().mean())
        layers.append(Layer(part, layer, before.numel(), mean, *changes))
    return layers


def _vector(net: Mapping[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([net[name].detach().flatten().double() for name in names])


def _change(before: Tensor, after: Tensor) -> float | None:
    return float((after - before).norm() / before.norm()) if before.any() else None


def _place(parameter: str) -> tuple[Any, ...]:
    """Return what sorts parameters by part, then from the latent to the image."""
    part, layer = part_of(parameter), layer_of(parameter)
    words = layer.split(".")
    resolution = int(words[1][1:]) if words[0] == "synthesis" else 0
    return (PARTS.index(part), resolution), part, layer


def rank_correlation(layers: list[Layer], *, over_null: bool = False) -> float:
    """Return Spearman's correlation of Fisher information and change over the layers.

    Li et al., NeurIPS 2020 (arXiv 2012.02780), section 3: what matters more changes less, which
    is a negative number; NaN where one of the two is the same in all layers.

    Args:
        layers: Those of one part.
        over_null: Whether to take the change over that of the null control.
    """
    pairs = [(x.fisher, x.over_null if over_null else x.change) for x in layers]
    values = [
        [float(v) for v in row] for row in zip(*[p for p in pairs if p[1] is not None], strict=True)
    ]
    if not values or len(values[0]) < 2:
        return float("nan")
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef([_ranks(row) for row in values])[0, 1])


def _ranks(values: list[float]) -> Any:
    """Return the ranks of numbers from 0 on; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]


def by_part(layers: list[Layer]) -> Iterator[tuple[str, list[Layer]]]:
    """Yield each part that there is, with its layers."""
    for part, members in groupby(layers, lambda layer: layer.part):
        yield part, list(members)


def table(layers: list[Layer]) -> str:
    """Return the layers as text, one line each, part by part."""
    width = max(len(layer.name) for layer in layers)
    has_null = any(layer.null is not None for layer in layers)
    total = sum(x.parameters * x.fisher for x in layers) or 1
    rows = []
    for part, members in by_part(layers):
        share = sum(x.parameters * x.fisher for x in members) / total
        count = sum(x.parameters for x in members)
        rows.append(f"{part}: {count} parameters, {share:.1%} of the Fisher information")
        head = f"  {'layer':{width}}  parameters    mean F    change"
        rows.append(head + ("      null  over null" if has_null else ""))
        for x in members:
            row = f"  {x.name:{width}}  {x.parameters:10d}  {x.fisher:.2e}  {_number(x.change, 8)}"
            extra = f"  {_number(x.null, 8)}  {_number(x.over_null, 9)}" if has_null else ""
            rows.append(row + extra)
        rows.append("  " + _verdict(members, has_null))
    return "\n".join(rows)


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.4f}"


def _verdict(layers: list[Layer], has_null: bool) -> str:
    text = f"Spearman correlation of mean F and change: {rank_correlation(layers):.2f}"
    if has_null:
        text += f"; and change over null: {rank_correlation(layers, over_null=True):.2f}"
    return text


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("source_pkl")
@click.argument("adapted_pkl")
@click.option(
    "--fisher",
    type=FILE,
    help="Fisher file of the source; without it, F is estimated.",
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=200, help="Images to estimate F from."
)
@click.option(
    "--network",
    type=click.Choice(["G", "G_ema"]),
    default="G_ema",
    help="Which generator of the pickles.",
)
@click.option(
    "--null",
    help="Control: a network, or the folder of a run, of the source trained on for as long with "
    "its own data. What it changes, training itself does.",
)
@click.option(
    "--out",
    type=FOLDER,
    required=True,
    help="Folder for analysis.json, analysis.txt and analysis.png.",
)
def main(
    source_pkl: str,
    adapted_pkl: str,
    fisher: Path | None,
    samples: int,
    network: str,
    null: str | None,
    out: Path,
) -> None:
    """Show mean Fisher information and relative change of every layer of G, part by part.

    SOURCE_PKL is the network that ADAPTED_PKL was trained from: paths, URLs, short names or runs.
    Convolution weights, ToRGB, styles, biases, noise strengths and the mapping are kept apart.
    """
    from matplotlib.figure import Figure

    from training import pickles, sources

    path = sources.fetch(source_pkl)
    source, adapted = pickles.load(path), pickles.load(adapted_pkl)
    nets = [getattr(one, network) for one in (source, adapted)]
    nets += [getattr(pickles.load(null), network)] if null else []
    if fisher is None:
        settings, labels = Settings(samples=samples), labels_beside(path)
        found = estimate(nets[0], source.D, settings, labels=labels, network=network)
    else:
        found = fisher_information.load(fisher, path, network)
    information = {name.removeprefix("G."): value for name, value in found.values.items()}
    before, after, *control = (dict(net.named_parameters()) for net in nets)
    layers = compare(before, after, information, *control)
    facts = {
        "network": network,
        "layers": [{**asdict(layer), "over_null": layer.over_null} for layer in layers],
        "rank_correlation": {part: rank_correlation(members) for part, members in by_part(layers)},
    }
    write_text(out / "analysis.json", json.dumps(facts, indent=1) + "\n")
    write_text(out / "analysis.txt", table(layers) + "\n")
    figure = Figure(figsize=(0.3 * len(layers) + 2, 7), layout="constrained")
    _draw(layers, figure)
    with replacing(out / "analysis.png") as file:
        figure.savefig(file, dpi=120, format="png")
    click.echo(f"{table(layers)}\n{out / 'analysis.png'}")


def _draw(layers: list[Layer], figure: Any) -> None:
    """Draw both quantities as bars, layer by layer, a colour for each part."""
    has_null = any(layer.null is not None for layer in layers)
    upper, lower = figure.subplots(2, sharex=True)
    start = 0
    for part, members in by_part(layers):
        places = range(start, start := start + len(members))
        colour = f"C{PARTS.index(part)}"
        upper.bar(places, [x.fisher for x in members], color=colour, label=part)
        heights = [(x.over_null if has_null else x.change) or 0 for x in members]
        lower.bar(places, heights, color=colour)
    upper.set(yscale="log", ylabel="mean Fisher information")
    upper.legend(ncols=3, fontsize="small")
    lower.set(ylabel="change over null" if has_null else "relative change")
    if has_null:
        lower.axhline(1, color="grey", linewidth=0.8)
    names = [layer.name.removeprefix("synthesis.") for layer in layers]
    lower.set_xticks(range(len(layers)), names, rotation=90)


if __name__ == "__main__":
    main()
