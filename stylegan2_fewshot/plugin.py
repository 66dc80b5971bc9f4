"""The plugin protocol: ten hooks, the registry, and the container that loss and loop hold."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from . import distributed

HOOKS = (
    "condition",
    "setup",
    "trainable",
    "synthesis",
    "real_images",
    "augment",
    "observe",
    "penalty",
    "after_step",
    "snapshot",
)
_REGISTRY: dict[str, type[Plugin]] = {}
P = TypeVar("P", bound="Plugin")


@dataclass(frozen=True)
class Step:
    """One forward pass of training, as the hooks see it.

    Attributes:
        phase: Gmain, Gpl, Dfake, Dreal or Dr1; "end" in `after_step`. A pass that serves the main
            loss and its regulariser at once carries the name of the main one.
        cur_nimg: Real images shown to D before this iteration.
        c: Labels `[N, c_dim]` as handed to the network.
        ws: Latents `[N, num_ws, w_dim]`, where G ran.
        img: Images `[N, C, H, W]` in [-1, 1], before augmentation.
        logits: D's output `[N, 1]`, where D ran.
        z: Latents `[N, z_dim]`, where G ran.
    """

    phase: str
    cur_nimg: int = 0
    c: Tensor | None = None
    ws: Tensor | None = None
    img: Tensor | None = None
    logits: Tensor | None = None
    z: Tensor | None = None


@dataclass(frozen=True)
class Run:
    """What a plugin may know of the training run when it is set up.

    Attributes:
        G: The generator that is trained, before any wrapping.
        D: The discriminator, likewise.
        dataset: The training set.
        device: Where training takes place.
        batch_size: Images per iteration over all ranks.
        seed: Seed of the run.
        resumed: Path of the source network's pickle, or None when training starts from scratch.
        resumed_from: Which generator of that pickle G starts as, G or G_ema.
        G_ema: The moving average of G, for those that change the networks themselves.
        source: G and D as they are in that pickle, where those that are trained have been widened.
    """

    G: torch.nn.Module
    D: torch.nn.Module
    dataset: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 1
    seed: int = 0
    resumed: str | None = None
    resumed_from: str = "G"
    G_ema: torch.nn.Module | None = None
    source: tuple[torch.nn.Module, torch.nn.Module] | None = None


class Plugin(torch.nn.Module):
    """A method for training with few images: a module whose buffers are its whole state.

    Override at least one hook. Hooks return values and change nothing that they were handed.
    The constructor is the command line: its parameters are keyword-only, annotated, defaulted,
    and described under `Args:` in the class's docstring.
    """

    name: ClassVar[str] = ""
    augmentation: ClassVar[bool] = False  # switched on by --aug, not by the first option
    option_names: ClassVar[Mapping[str, str]] = {}  # parameter -> option where not --NAME-PARAMETER
    neutral: ClassVar[Mapping[str, Any]] = {}  # settings that leave training as it is
    rebuilds: ClassVar[bool] = False  # its setup changes the networks, so it comes first
    resumes_from: ClassVar[str] = "G"  # generator of --resume that G starts as by default

    def __init__(self) -> None:
        super().__init__()
        self._seed = 0
        self._generator: torch.Generator | None = None
        self._drawn_at = -1

    @classmethod
    def labels_beside(cls, network: Path) -> Tensor | None:
        """Return the labels `[M, c_dim]` that a network pickle was trained with, where this
        method keeps them in a file beside it."""
        return None

    def rng(self, step: Step, device: torch.device) -> torch.Generator:
        """Return this plugin's own generator, seeded anew in every iteration.

        The seed is a function of (run's seed, rank, cur_nimg, plugin's name): other plugins, z and
        noise never see what is drawn here, and a resumed run draws what the run would have drawn.
        """
        if self._generator is None or self._generator.device != device:
            self._generator, self._drawn_at = torch.Generator(device=device), -1
        if self._drawn_at != step.cur_nimg:
            seed = seed_of(self._seed, distributed.rank(), step.cur_nimg, self.name)
            self._generator.manual_seed(seed)
            self._drawn_at = step.cur_nimg
        return self._generator

    def condition(self, dataset: Any) -> Any:
        """Return the training set with the labels that G and D take; no network is built yet."""
        return dataset

    def setup(self, run: Run) -> None:
        """Prepare for training; networks are built, no checkpoint is loaded yet."""

    def trainable(self, net: str, name: str) -> bool:
        """Return whether the parameter `name` of `net` ("G" or "D") is trained."""
        return True

    def synthesis(self, z: Tensor) -> dict[str, Any]:
        """Return further arguments of G's synthesis for images of the latents `z` `[N, z_dim]`."""
        return {}

    def real_images(self, img: Tensor, c: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Return the real images `[N, C, H, W]` and labels that D is shown."""
        return img, c

    def augment(self, img: Tensor, step: Step) -> Tensor:
        """Return the images `[N, C, H, W]` on their way into D, real or fake."""
        return img

    def observe(self, step: Step) -> None:
        """Look at a forward pass; no gradients."""

    def penalty(self, step: Step) -> Tensor | None:
        """Return a scalar to add to the loss of `step.phase`, or None."""
        return None

    def after_step(self, step: Step) -> None:
        """Update the state, once an iteration, when both optimizers are done."""

    def snapshot(self, path: Path) -> None:
        """Write what generating needs beside the network pickle at `path`, on one rank alone."""


class Plugins(torch.nn.ModuleDict):
    """Plugins in the order of the command line; empty, every hook is the identity."""

    @classmethod
    def create(cls, options: Mapping[str, Mapping[str, Any]]) -> Plugins:
        """Build plugins from `{name: constructor arguments}`."""
        return cls({name: find(name)(**arguments) for name, arguments in options.items()})

    @property
    def active(self) -> list[Plugin]:
        """The plugins, in their order."""
        return list(self.values())  # type: ignore[arg-type]

    @property
    def resumes_from(self) -> str:
        """Which generator of a source network G starts as unless the user says: G or G_ema."""
        return "G_ema" if any(plugin.resumes_from == "G_ema" for plugin in self.active) else "G"

    def condition(self, dataset: Any) -> Any:
        for plugin in self.active:
            dataset = plugin.condition(dataset)
        return dataset

    def setup(self, run: Run) -> None:
        for plugin in sorted(self.active, key=lambda plugin: not plugin.rebuilds):
            plugin._seed = run.seed
            plugin.setup(run)
        self.to(run.device)

    def trainable(self, net: str, name: str) -> bool:
        return all(plugin.trainable(net, name) for plugin in self.active)

    def synthesis(self, z: Tensor) -> dict[str, Any]:
        return {key: x for plugin in self.active for key, x in plugin.synthesis(z).items()}

    def real_images(self, img: Tensor, c: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        for plugin in self.active:
            img, c = plugin.real_images(img, c, step)
        return img, c

    def augment(self, img: Tensor, step: Step) -> Tensor:
        for plugin in self.active:
            img = plugin.augment(img, step)
        return img

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        for plugin in self.active:
            plugin.observe(step)

    def penalty(self, step: Step) -> Tensor | None:
        terms = [plugin.penalty(step) for plugin in self.active]
        given = [term for term in terms if term is not None]
        return torch.stack(given).sum() if given else None

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        for plugin in self.active:
            plugin.after_step(step)

    def snapshot(self, path: Path) -> None:
        for plugin in self.active:
            plugin.snapshot(path)


def register(name: str) -> Callable[[type[P]], type[P]]:
    """Enter a plugin class into the registry under `name`, its option prefix and file name."""

    def enter(cls: type[P]) -> type[P]:
        _check(cls, name)
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return enter


def _check(cls: type[Plugin], name: str) -> None:
    if name in _REGISTRY:
        raise TypeError(f"plugin {name!r} is registered twice: {_REGISTRY[name]} and {cls}")
    public = [key for key, value in vars(cls).items() if key[0] != "_" and callable(value)]
    unknown = [key for key in public if key not in HOOKS and not hasattr(torch.nn.Module, key)]
    if unknown:
        raise TypeError(f"plugin {name!r}: {unknown[0]!r} is no hook; hooks are {', '.join(HOOKS)}")
    if all(getattr(cls, hook) is getattr(Plugin, hook) for hook in HOOKS):
        raise TypeError(f"plugin {name!r} overrides no hook; hooks are {', '.join(HOOKS)}")


def registry() -> dict[str, type[Plugin]]:
    """Return all registered plugin classes by name, alphabetically."""
    return dict(sorted(_REGISTRY.items()))


def labels_beside(network: Path) -> Tensor | None:
    """Return the labels that lie beside a network pickle, whichever method put them there."""
    found = (cls.labels_beside(network) for cls in registry().values())
    return next((labels for labels in found if labels is not None), None)


def find(name: str) -> type[Plugin]:
    """Return the plugin class registered as `name`; ValueError where there is none."""
    if name not in _REGISTRY:
        raise ValueError(f"there is no plugin {name!r}; there are {', '.join(registry())}")
    return _REGISTRY[name]


def load_external(place: str) -> type[Plugin]:
    """Import and register a third party's plugin, given as `package.module:Class`."""
    module, _, attribute = place.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--plugin={place}: {error}; write it as package.module:Class") from error
    if not (isinstance(cls, type) and issubclass(cls, Plugin)):
        raise ValueError(f"--plugin={place}: not a subclass of stylegan2_fewshot.Plugin")
    if cls in _REGISTRY.values():
        return cls
    # An inherited name is that of another plugin.
    return register(vars(cls).get("name") or cls.__name__.lower())(cls)


def seed_of(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, the same on every machine."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
