"""Our part in one process of the host's training: hooks into its loop, and what is kept of it."""

from __future__ import annotations

import copy
import pickle
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stylegan2_fewshot import Run, distributed, stats
from stylegan2_fewshot.external import load_external
from stylegan2_fewshot.files import replacing

from . import runtime
from .host import Host, open_checkout
from .host_loss import HostLoss
from .runtime import Overlay, replace

END = "Gema"  # what the host's loop calls, for the profiler, its update of G_ema
HOSTS_OWN = ("Loss", "Progress", "Timing", "Resources")  # statistics that are not our methods'


class Worker:
    """Stands in for the host's `subprocess_fn`, in this process or in one that is spawned."""

    def __init__(self, checkout: str, device: str, external: tuple[str, ...]) -> None:
        self._arguments = (checkout, device, external)
        self._device = device
        for place in external:
            load_external(place)
        self._host = open_checkout(Path(checkout))
        self._run = self._host.train.subprocess_fn

    def __reduce__(self) -> tuple[type[Worker], tuple[Any, ...]]:
        return Worker, self._arguments

    def __call__(self, rank: int, *args: Any, **kwargs: Any) -> None:
        """Train; a user's mistake is one line and exit status 2 in every process."""
        options = next(value for value in (*args, *kwargs.values()) if hasattr(value, "num_gpus"))
        device = torch.device(self._device, *([rank] if self._device == "cuda" else []))
        patched = runtime.apply(self._host, device, options.num_gpus)
        loop = self._host.loop.training_loop

        def training_loop(rank: int, **options: Any) -> None:
            if rank == 0:
                print("Patched for this machine:", *patched, sep="\n  ")
            Session(self._host, options, device, rank)
            loop(rank=rank, **options)

        self._host.loop.training_loop = training_loop
        try:
            self._run(rank, *args, **kwargs)
        except ValueError as error:
            print(f"Error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        finally:
            if options.num_gpus > 1:
                _leave()


def _leave() -> None:
    """Leave the process group, which the host never does. gloo's threads outlive it where there was
    DistributedDataParallel, and abort the process if Python ends while they let go of a tensor."""
    distributed.shutdown()
    time.sleep(0.5)


class Session:
    """Watches the host's loop: what it builds, where an iteration ends, when it saves.

    Args:
        host: The checkout.
        options: What the host's loop is called with.
        device: The device of this process.
        rank: The number of this process.
    """

    def __init__(
        self, host: Host, options: Mapping[str, Any], device: torch.device, rank: int
    ) -> None:
        self._host, self._options, self._device, self._rank = host, options, device, rank
        self._built: dict[str, Any] = {}
        self._source: str | None = None
        self._construct = host.module("dnnlib").util.construct_class_by_name
        self._label = torch.autograd.profiler.record_function
        self._copy = host.module("torch_utils.misc").copy_params_and_buffers
        self._collector = host.module("torch_utils.training_stats").Collector
        replace(host.loop, "dnnlib.util.construct_class_by_name", self._constructed)
        replace(host.loop, "torch.autograd.profiler.record_function", self._labelled)
        replace(host.loop, "misc.copy_params_and_buffers", self._resumed)
        replace(host.loop, "training_stats.Collector", self._collecting)
        replace(host.loop, "pickle.dump", self._dumped)
        stats.report = host.module("torch_utils.training_stats").report

    def _constructed(self, *args: Any, class_name: str, **kwargs: Any) -> Any:
        made = self._construct(*args, class_name=class_name, **kwargs)
        self._built.setdefault(class_name, made)
        if isinstance(made, HostLoss):
            self._loss = made
            self._set_up()
        return made

    def _labelled(self, label: str) -> Any:
        if label == END:
            self._loss.end_iteration()
        return self._label(label)

    def _resumed(self, source: Any, module: Any, require_all: bool = False) -> None:
        """Copy the source's weights, all of them: the host itself would drop what does not fit."""
        found, needed = _shapes(source), _shapes(module)
        if differing := sorted(key for key, _ in found.items() ^ needed.items()):
            raise ValueError(
                f"--resume={self._options['resume_pkl']}: the source and the network of these "
                f"options differ in {differing[0]} and {len(differing) - 1} others; "
                "choose --cfg, --map-depth, --cbase, --cmax and --zdim as the source has them"
            )
        self._copy(source, module, require_all=require_all)

    def _collecting(self, *args: Any, **kwargs: Any) -> Any:
        collector = self._collector(*args, **kwargs)
        return Overlay(collector, as_dict=lambda: self._shown(collector.as_dict()))

    def _shown(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Print what the methods have reported in a tick, other than by layer."""
        names = [n for n in values if n.count("/") == 1 and n.partition("/")[0] not in HOSTS_OWN]
        if names and self._rank == 0:
            print(*(f"{name} {values[name]['mean']:.4g}" for name in names), sep="   ")
        return values

    def _dumped(self, content: Any, file: Any) -> None:
        pickle.dump(content, file)
        self._save(Path(file.name))

    def _set_up(self) -> None:
        """Set the plugins up with the source network, then take over their state, if kept."""
        resumed = self._local(self._options.get("resume_pkl"))
        kept = None if resumed is None else _read(state_file(Path(resumed)))
        self._source = kept["source"] if kept else resumed
        run = Run(
            G=self._made("G"),
            D=self._made("D"),
            dataset=self._made("training_set"),
            device=self._device,
            batch_size=self._options["batch_size"],
            seed=self._options["random_seed"],
            resumed=self._source,
            resumed_from=self._loss.plugins.resumes_from,
        )
        reached = self._begin(run) if kept or run.resumed_from != "G" else {}
        self._loss.set_up(run)
        if kept:
            for net, weights in reached.items():
                getattr(run, net).load_state_dict(weights)
            self._restore(kept)

    def _made(self, what: str) -> Any:
        return self._built[self._options[f"{what}_kwargs"]["class_name"]]

    def _local(self, url: str | None) -> str | None:
        """Return the path of a network, which the host has downloaded."""
        if url is None:
            return None
        path = self._host.module("dnnlib").util.open_url(url, return_filename=True)
        return str(Path(path).resolve())

    def _begin(self, run: Run) -> dict[str, Any]:
        """Give the networks the weights that all began with; return those that they had.

        What a plugin learns of the source must not depend on where training went on.
        """
        if run.resumed is None:
            return {}
        if not Path(run.resumed).is_file():
            raise ValueError(
                f"{run.resumed}: the network that this training began with is not there"
            )
        with open(run.resumed, "rb") as file:
            loaded = self._host.module("legacy").load_network_pkl(file)
        nets = {"G": run.G, "D": run.D}
        reached = {name: copy.deepcopy(net.state_dict()) for name, net in nets.items()}
        for net, origin in ((run.G, run.resumed_from), (run.D, "D")):
            self._copy(loaded[origin], net)
        return reached

    def _restore(self, kept: Mapping[str, Any]) -> None:
        """Take over the state of the plugins that are on, as far as they were on before."""
        for name, plugin in self._loss.plugins.items():
            start = f"{name}."
            values = {k: v for k, v in kept["plugins"].items() if k.startswith(start)}
            if values:
                _load(name, plugin, {k.removeprefix(start): v for k, v in values.items()})
        self._loss.pl_mean.copy_(kept["pl_mean"])
        self._loss.cur_nimg = kept["cur_nimg"]
        if self._rank == 0:
            print(f"The plugins resume from {kept['cur_nimg'] / 1000:.1f} kimg")

    def _save(self, snapshot: Path) -> None:
        """Write the plugins' state beside a snapshot."""
        content = {
            "plugins": self._loss.plugins.state_dict(),
            "pl_mean": self._loss.pl_mean,
            "cur_nimg": self._loss.cur_nimg,
            "source": self._source,
        }
        with replacing(state_file(snapshot)) as file:
            torch.save(content, file)


def state_file(snapshot: Path) -> Path:
    """Return where the plugins' state belongs: network-snapshot-000002.pkl, plugins-000002.pt."""
    number = re.sub(r"^network-snapshot-", "", snapshot.stem)
    return snapshot.with_name(f"plugins-{number}.pt")


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of weights by name; in a layer that Freeze-D has frozen, and in some of
    the constants, they are no parameters."""
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    return {k: v for k, v in shapes.items() if k.endswith(("weight", "bias", "const"))}


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); move it away") from error
    return content


def _load(name: str, plugin: torch.nn.Module, state: Mapping[str, Any]) -> None:
    try:
        plugin.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the state kept for {name} does not fit its options: {reason}") from error
