"""From options to networks: from scratch, or from a network pickle."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stylegan2_fewshot import distributed

from . import networks as nets
from . import pickles, sources
from .dataset import ImageDataset
from .widening import with_labels

_PARTS = {
    "mapping_kwargs": nets.MappingNetwork,
    "synthesis_kwargs": nets.SynthesisNetwork,
    "epilogue_kwargs": nets.DiscriminatorEpilogue,
}
Pair = tuple[nets.Generator, nets.Discriminator]


def set_up_torch(options: Mapping[str, Any]) -> None:
    """Apply the options that are about PyTorch itself."""
    torch.set_flush_denormal(True)
    if options.get("threads"):
        torch.set_num_threads(options["threads"])
    torch.backends.cudnn.benchmark = options["benchmark"]
    torch.backends.cuda.matmul.allow_tf32 = options["allow_tf32"]
    torch.backends.cudnn.allow_tf32 = options["allow_tf32"]


def networks(
    options: Mapping[str, Any], dataset: ImageDataset, device: torch.device
) -> tuple[nets.Generator, nets.Discriminator, nets.Generator, str | None, Pair | None]:
    """Return G, D, G_ema in training mode, and the path of the pickle that they come from.

    G starts as the generator of the pickle that `resume_from` names. An unconditional source is
    widened where the data set has labels; G and D as they were before come last then.
    """
    before, path = None, None
    if options["resume"] is None:
        common: dict[str, Any] = dict(
            c_dim=dataset.label_dim,
            img_resolution=dataset.resolution,
            img_channels=dataset.num_channels,
        )
        # On meta, nothing takes memory; elsewhere, the CPU's random numbers are the same for all.
        with device if device.type == "meta" else contextlib.nullcontext():
            G = nets.Generator(**options["G"], **common)
            D = nets.Discriminator(**options["D"], **common)
        G_ema = copy.deepcopy(G)
    else:
        path = str(sources.fetch(options["resume"]))
        source = pickles.load(path)
        G = copy.deepcopy(getattr(source, options["resume_from"]))
        D, G_ema = source.D, source.G_ema
        _refuse_misfit(options, dataset, source.G)
        _refuse_contradiction(options, "G", G)
        _refuse_contradiction(options, "D", D)
        if options["nhwc"]:
            for net in (G, D, G_ema):
                _use_channels_last(net)
        if dataset.label_dim and not source.G.c_dim:
            before = G.to(device), D.to(device)
            G, D, G_ema = (
                with_labels(G, dataset.label_dim),
                with_labels(D, dataset.label_dim),
                with_labels(G_ema, dataset.label_dim),
            )
    for net in (G, D, G_ema):
        nets.set_precision(net, options["precision"])
        net.train().requires_grad_(False).to(device)
    return G, D, G_ema, path, before


def refuse_groups(options: Mapping[str, Any], D: nn.Module) -> None:
    """Raise unless D's minibatch standard deviation fits the batches that it will see."""
    passes = {options["batch_gpu"]}
    if rest := options["batch_size"] // distributed.world_size() % options["batch_gpu"]:
        passes.add(rest)
    for layer in D.modules():
        group = layer.group_size if isinstance(layer, nets.MinibatchStdLayer) else None
        for images in passes if group is not None else ():
            if images % min(group, images):
                raise ValueError(
                    f"--batch={options['batch_size']}: D compares images in groups of {group}, "
                    f"which must divide the {images} images of a pass; change --batch or "
                    "--batch-gpu"
                )


def _use_channels_last(net: nn.Module) -> None:
    for block in net.modules():
        if isinstance(block, nets.SynthesisBlock | nets.DiscriminatorBlock) and block.use_fp16:
            block.channels_last = True


def _refuse_misfit(options: Mapping[str, Any], dataset: ImageDataset, G: nets.Generator) -> None:
    """Raise unless the source network makes images like the data set's, and can take its labels."""
    wanted = {
        "pixels a side": (dataset.resolution, G.img_resolution),
        "channels": (dataset.num_channels, G.img_channels),
        "numbers in a label": (dataset.label_dim, G.c_dim),
    }
    if G.c_dim == 0:
        del wanted["numbers in a label"]
    elif not dataset.label_dim:
        raise ValueError(
            f"--resume={options['resume']}: the network has {G.c_dim} classes or numbers in a "
            "label; give --cond=1, with a data set that has as many"
        )
    for what, (of_data, of_net) in wanted.items():
        if of_data != of_net:
            raise ValueError(
                f"--resume={options['resume']}: the network has {of_net} {what}, --data="
                f"{options['dataset']['path']} has {of_data}; "
                f"{_remedy(what, of_data, of_net, options['resume'])}"
            )


def _remedy(what: str, mine: int, theirs: int, network: str) -> str:
    """Return how to make the source network fit data."""
    option = {"pixels a side": "--size", "channels": "--channels"}.get(what)
    if option is None:
        return "convert the data or take another network"
    first = f"prepare the images with --size={theirs}, or " if option == "--size" else ""
    return f"{first}convert the network: python -m tools.resize {network} OUT.pkl {option}={mine}"


def _refuse_contradiction(options: Mapping[str, Any], key: str, net: nets.Network) -> None:
    """Raise if an option that was given says otherwise than the source network."""
    for place, option in options["explicit"].items():
        owner, *path = place.split(".")
        if owner != key:
            continue
        wanted = functools.reduce(operator.getitem, path, options[key])
        if wanted != (have := _argument(net, path)):
            raise ValueError(
                f"{option}: the network of --resume={options['resume']} has {place}={have}, not "
                f"{wanted}; drop the option, since the architecture comes from the network"
            )


def _argument(net: nets.Network, path: list[str]) -> Any:
    """Return what a network, or a part of it, was constructed with, be it by default."""
    *part, name = path
    cls: Any = _PARTS[part[0]] if part else type(net)
    kwargs = net.init_kwargs.get(part[0]) or {} if part else net.init_kwargs
    return kwargs.get(name, inspect.signature(cls).parameters[name].default)


def summary(
    options: Mapping[str, Any],
    dataset: ImageDataset,
    G: nn.Module,
    D: nn.Module,
    source: str | None,
    cur_nimg: int,
) -> str:
    """Return what a run is about, in a few lines; nothing is run through the networks."""
    size = {
        key: sum(p.numel() for p in net.parameters()) / 1e6 for key, net in (("G", G), ("D", D))
    }
    shape = "x".join(map(str, reversed(dataset.image_shape)))
    lines = [
        f"Data      {options['dataset']['path']}: {len(dataset)} images, {shape}, "
        + (f"labels of {dataset.label_dim} numbers" if dataset.label_dim else "no labels"),
        f"Networks  G {size['G']:.2f} M, D {size['D']:.2f} M parameters, "
        + (f"from {source}, G as its {options['resume_from']}" if source else "from scratch"),
        f"Plugins   {', '.join(options['plugins']) or 'none'}",
        f"Training  {cur_nimg / 1000:.1f} to {options['total_kimg']:g} kimg, batches of "
        f"{options['batch_size']}",
    ]
    return "\n".join(lines)
