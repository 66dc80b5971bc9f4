"""Trains in an unmodified checkout of StyleGAN2-ADA: its own train.py with our loss and plugins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch

from stylegan2_fewshot import Plugins
from stylegan2_fewshot.options import (
    Mistake,
    PluginCommand,
    PluginOption,
    all_options,
    augmentations,
    describe,
    parse,
)

from .host import Host, open_checkout
from .session import Worker

USAGE = (
    "usage: python -m patches.stylegan2_ada CHECKOUT train OPTIONS; --help after train lists them"
)
LOSS = "patches.host_loss.HostLoss"
SHARED = ("p", "target", "augpipe")  # the host's where the augmentation is, ours otherwise
COUNT = click.IntRange(min=1)
OWN = [
    click.Option(["--device"], type=click.Choice(["auto", "cpu", "cuda"]), default="auto"),
    click.Option(["--plugin"], multiple=True, help="A method of yours, as package.module:Class."),
    click.Option(["--cbase"], type=COUNT, help="Feature maps times resolution."),
    click.Option(["--cmax"], type=COUNT, help="Most feature maps of a layer."),
    click.Option(["--zdim"], type=COUNT, help="Dimensions of z and w."),
    click.Option(["--map-depth"], type=COUNT, help="Layers of the mapping network."),
    click.Option(["--tick"], type=COUNT, help="kimg between status lines."),
]
PLACES: dict[str, tuple[str, ...]] = {
    "cbase": ("G_kwargs.synthesis_kwargs.channel_base", "D_kwargs.channel_base"),
    "cmax": ("G_kwargs.synthesis_kwargs.channel_max", "D_kwargs.channel_max"),
    "zdim": ("G_kwargs.z_dim", "G_kwargs.w_dim"),
    "map_depth": ("G_kwargs.mapping_kwargs.num_layers",),
    "tick": ("kimg_per_tick",),
}


class HostCommand(PluginCommand):
    """The host's command with our options beside its own; where both have one, the host's."""

    def __init__(self, host: Host) -> None:
        theirs: click.Command = host.train.main
        names = {param.name for param in theirs.params}
        own = [option for option in OWN if option.name not in names]
        # --aug names several, and some that the host does not know.
        params = [_Aug() if param.name == "aug" else param for param in theirs.params]
        callback = click.pass_context(lambda ctx, **values: _train(host, ctx, values))
        super().__init__("train", params=[*params, *own], callback=callback, help=theirs.help)
        self._hosts = names

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the host's parameters, then ours."""
        if __name__ not in ctx.meta:  # click tells parameters apart by identity
            options = [claims[0] for key, claims in all_options().items() if key not in self._hosts]
            ctx.meta[__name__] = [PluginOption(option) for option in options]
        return [*click.Command.get_params(self, ctx), *ctx.meta[__name__]]


class _Aug(click.Option):
    def __init__(self) -> None:
        text = "noaug, or augmentations in order, as ada,apa  [default: the checkout's own]"
        super().__init__(["--aug"], help=text)


def _train(host: Host, ctx: click.Context, values: dict[str, Any]) -> None:
    """Run the host's own command with what is its own, and hand the rest to our loss."""
    if host.name == "stylegan3" and values["cfg"] != "stylegan2":
        raise ValueError(f"--cfg={values['cfg']}: only --cfg=stylegan2 has our networks' losses")
    if values.pop("with_dataaug", None):
        raise ValueError("--with-dataaug: use --aug=ada,apa, where each has its own probability")
    device = _device(values.pop("device"))
    external = tuple(values.pop("plugin"))
    changes = {key: values.pop(key) for key in PLACES if key not in _names(host)}
    plugins, theirs, words = _divide(host, ctx, values)

    def amend(options: Any) -> None:
        _amend(options, plugins, {k: v for k, v in changes.items() if v is not None}, device)

    _intercept(host, amend, words)
    host.train.subprocess_fn = Worker(str(host.path), device, external)
    ctx.invoke(host.train.main, **theirs)


def _names(host: Host) -> set[str]:
    return {param.name for param in host.train.main.params}


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: PyTorch finds no GPU here; use --device=cpu")
    return name


def _divide(
    host: Host, ctx: click.Context, values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return our plugins with their arguments, the host's options, and words for the run's name.

    ADA with an adaptive or a fixed probability is the host's own, except in DeceiveD, which has
    APA instead; so there all augmentations are ours.
    """
    own = () if host.name == "DeceiveD" else ("ada", "fixed")
    names = augmentations(values["aug"] or ("ada" if own else "apa"))
    theirs = [name for name in names if name in own]
    if len(theirs) > 1:
        raise ValueError(f"--aug={values['aug']}: the checkout has one p; leave ada or fixed out")
    ours = ",".join(name for name in names if name not in theirs) or "noaug"
    mine: dict[str, Any] = {"aug": ours}
    rest: dict[str, Any] = {"aug": theirs[0] if theirs else "noaug"}
    for key, value in values.items():
        is_given = ctx.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE
        if (
            key in all_options()
            and is_given
            and (key not in _names(host) or (key in SHARED and not theirs))
        ):
            mine[key] = value
        elif key in _names(host) and key != "aug":
            rest[key] = value
    plugins: dict[str, Any] = parse(mine)
    Plugins.create(plugins)  # a constructor refuses what it cannot do
    order = {name: plugins.pop(name, None) for name in names}
    return {**order, **plugins}, rest, [word for word in describe(mine) if word != "noaug"]


def _intercept(host: Host, amend: Callable[[Any], None], words: list[str]) -> None:
    """Amend the options that the host's command makes, before it prints and uses them."""
    if host.name == "stylegan3":
        launch = host.train.launch_training

        def launch_training(c: Any, desc: str, **kwargs: Any) -> None:
            amend(c)
            launch(c=c, desc="-".join([desc, *words]), **kwargs)

        host.train.launch_training = launch_training
        return
    make = host.train.setup_training_loop_kwargs

    def setup_training_loop_kwargs(**kwargs: Any) -> tuple[str, Any]:
        desc, options = make(**kwargs)
        amend(options)
        return "-".join([desc, *words]), options

    host.train.setup_training_loop_kwargs = setup_training_loop_kwargs


def _amend(
    options: Any, plugins: Mapping[str, Any], changes: Mapping[str, Any], device: str
) -> None:
    """Put our loss, and what else was asked for, into the options of the host's loop."""
    options["loss_kwargs"] = {
        **options["loss_kwargs"],
        "class_name": LOSS,
        "plugins": dict(plugins),
    }
    for key, value in changes.items():
        for place in PLACES[key]:
            _put(options, place, value)
    if device == "cpu":
        options["data_loader_kwargs"]["pin_memory"] = False
        for net in ("G_kwargs", "D_kwargs"):
            _put(options, _of_g(options[net], f"{net}.num_fp16_res"), 0)


def _of_g(kwargs: Mapping[str, Any], place: str) -> str:
    """Return where an argument of the synthesis network goes: stylegan3 has no folder for them."""
    return place.replace(".", ".synthesis_kwargs.") if "synthesis_kwargs" in kwargs else place


def _put(options: Any, place: str, value: Any) -> None:
    *path, name = place.split(".")
    for key in path:
        options = options[key]
    options[name] = value


def main(arguments: list[str]) -> None:
    """Run `CHECKOUT train OPTIONS`."""
    try:
        if len(arguments) < 2 or arguments[1] != "train":
            raise ValueError(USAGE)
        command = HostCommand(open_checkout(Path(arguments[0])))
    except ValueError as error:
        mistake = Mistake(str(error))
        mistake.show()
        sys.exit(mistake.exit_code)
    command.main(arguments[2:], prog_name=f"patches.stylegan2_ada {arguments[0]} train")


if __name__ == "__main__":
    main(sys.argv[1:])
