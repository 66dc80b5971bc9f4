"""Trains in an unmodified checkout of StyleGAN2-ADA: its own train.py with our loss and plugins."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from stylegan2_fewshot import Plugins
from stylegan2_fewshot.options import Mistake, PluginCommand, all_options, describe, parse

from .host import Host, open_checkout
from .session import Worker

USAGE = (
    "usage: python -m patches.stylegan2_ada CHECKOUT train OPTIONS; --help after train lists them"
)
LOSS = "patches.host_loss.HostLoss"
COUNT = click.IntRange(min=1)
AUG = click.Option(["--aug"], help="noaug, or augmentations in order, as ada,apa.")
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
    """The host's command with our options beside its own; what names a method of ours is ours."""

    def __init__(self, host: Host) -> None:
        command: click.Command = host.train.main
        names = {param.name for param in command.params}
        others = [param for param in command.params if param.name not in all_options()]
        kept = [AUG if param.name == "aug" else param for param in others]
        own = [option for option in OWN if option.name not in names]
        callback = click.pass_context(lambda ctx, **values: _train(host, ctx, values))
        super().__init__("train", params=[*kept, *own], callback=callback, help=command.help)


def _train(host: Host, ctx: click.Context, values: dict[str, Any]) -> None:
    """Run the host's own command with what is its own, and hand the rest to our loss."""
    if host.name == "stylegan3" and values["cfg"] != "stylegan2":
        raise ValueError(f"--cfg={values['cfg']}: only --cfg=stylegan2 has the losses of ours")
    if values.get("with_dataaug"):
        raise ValueError("--with-dataaug: use --aug=ada,apa, where each has its own probability")
    values["aug"] = values["aug"] or ("apa" if host.name == "DeceiveD" else "ada")
    methods = {key: values.pop(key) for key in [*values] if key == "aug" or key in all_options()}
    plugins = parse(methods)
    Plugins.create(plugins)  # a constructor refuses what it cannot do
    hosts = {param.name for param in host.train.main.params}
    passed = {key: values.pop(key) for key in [*values] if key in hosts}
    device = _device(values["device"])
    if device == "cpu":
        passed["fp32"] = True

    def amend(options: Any) -> None:
        loss = {"class_name": LOSS, "plugins": plugins}
        options["loss_kwargs"] = {**options["loss_kwargs"], **loss}
        options["data_loader_kwargs"]["pin_memory"] = device == "cuda"
        for key, places in PLACES.items():
            for place in places if values.get(key) else ():
                _put(options, place, values[key])

    _intercept(host, amend, describe(methods))
    host.train.subprocess_fn = Worker(str(host.path), device, tuple(values["plugin"]))
    try:
        ctx.invoke(host.train.main, **passed, aug="noaug")
    except ProcessExitedException as ended:
        raise SystemExit(ended.exit_code) from None


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: PyTorch finds no GPU here; use --device=cpu")
    return name


def _intercept(host: Host, amend: Callable[[Any], None], words: list[str]) -> None:
    """Amend the options that the host's command makes, and the run's name, before it prints and
    uses them."""
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
        return "-".join([desc.replace("-noaug", ""), *words]), options

    host.train.setup_training_loop_kwargs = setup_training_loop_kwargs


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
