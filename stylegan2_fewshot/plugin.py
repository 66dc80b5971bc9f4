"""Plugins: their protocol, the registry, and the container that loss and loop hold."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import stats
from .protocol import HOOKS, Phase, Plugin, Run, Step, seed_of

__all__ = [
    "HOOKS",
    "Phase",
    "Plugin",
    "Plugins",
    "Run",
    "Step",
    "check",
    "find",
    "isolated",
    "register",
    "registry",
    "seed_of",
]
_REGISTRY: dict[str, type[Plugin]] = {}
P = TypeVar("P", bound=Plugin)


class Plugins(torch.nn.Module):
    """Plugins in the order of the command line; empty, every hook is the identity.

    Args:
        plugins: Plugins by name. Any name will do, also that of a hook.

    Raises:
        ValueError: Two plugins claim the one place for an augmentation pipe in a pickle, or set the
            same weights.
    """

    def __init__(self, plugins: Mapping[str, torch.nn.Module] | None = None) -> None:
        super().__init__()
        self._modules.update(plugins or {})  # add_module refuses the names of hooks
        claims = [n for n, p in self.items() if type(p).augment_pipe is not Plugin.augment_pipe]
        if len(claims) > 1:
            raise ValueError(
                f"{' and '.join(claims)} both put an augmentation pipe into the network pickle, "
                "which holds one; drop one of them"
            )
        writers = [name for name, plugin in self.items() if getattr(plugin, "rewrites", False)]
        if len(writers) > 1:
            raise ValueError(
                f"{' and '.join(writers)} both set the networks' weights themselves; drop one"
            )

    @classmethod
    def create(cls, options: Mapping[str, Mapping[str, Any]]) -> Plugins:
        """Build plugins from `{name: constructor arguments}`."""
        return cls({name: find(name)(**arguments) for name, arguments in options.items()})

    def __getitem__(self, name: str) -> Any:
        return self._modules[name]

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def keys(self) -> KeysView[str]:
        return self._modules.keys()

    def values(self) -> ValuesView[Any]:
        return self._modules.values()

    def items(self) -> ItemsView[str, Any]:
        return self._modules.items()

    @property
    def active(self) -> list[Plugin]:
        """The plugins, in their order."""
        return list(self.values())

    @property
    def resumes_from(self) -> str:
        """Which generator of a source network G starts as unless the user says: G or G_ema."""
        return "G_ema" if any(plugin.resumes_from == "G_ema" for plugin in self.active) else "G"

    def condition(self, dataset: Any) -> Any:
        for plugin in self.active:
            dataset = _call(plugin, "condition", dataset)
        return dataset

    def setup(self, run: Run) -> None:
        for plugin in sorted(self.active, key=lambda plugin: not plugin.rebuilds):
            plugin._seed = run.seed
            _call(plugin, "setup", run)
        self.to(run.device)

    def trainable(self, net: str, name: str) -> bool:
        return all(_call(plugin, "trainable", net, name) for plugin in self.active)

    def synthesis(self, z: Tensor) -> dict[str, Any]:
        parts = (_call(plugin, "synthesis", z) for plugin in self.active)
        return {key: x for part in parts for key, x in part.items()}

    def real_images(self, img: Tensor, c: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        for plugin in self.active:
            img, c = _call(plugin, "real_images", img, c, step)
        return img, c

    def augment(self, img: Tensor, step: Step) -> Tensor:
        for plugin in self.active:
            img = _call(plugin, "augment", img, step)
        return img

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        if self.active:
            step = step.detached()
        for plugin in self.active:
            _call(plugin, "observe", step)

    def penalty(self, step: Step) -> Tensor | None:
        terms = [_penalty(plugin, step) for plugin in self.active]
        given = [term for term in terms if term is not None]
        return torch.stack(given).sum() if given else None

    @torch.no_grad()
    def before_step(self, net: str, params: Mapping[str, torch.nn.Parameter]) -> None:
        for plugin in self.active:
            _call(plugin, "before_step", net, params)

    @torch.no_grad()
    def after_optimizer(self, net: str, params: Mapping[str, torch.nn.Parameter]) -> None:
        for plugin in self.active:
            _call(plugin, "after_optimizer", net, params)

    @torch.no_grad()
    def after_step(self, cur_nimg: int) -> None:
        for plugin in self.active:
            _call(plugin, "after_step", cur_nimg)

    @property
    def rehearsal(self) -> int:
        """Iterations that the plugins want to see before training."""
        return max((plugin.rehearsal for plugin in self.active), default=0)

    def rehearsed(self, moments: Mapping[str, stats.Moments]) -> None:
        for plugin in self.active:
            if plugin.rehearsal:
                _call(plugin, "rehearsed", moments)

    def snapshot(self, path: Path) -> None:
        for plugin in self.active:
            _call(plugin, "snapshot", path)

    def generators(self, device: torch.device) -> list[torch.Generator]:
        """Return the plugins' own generators on a device, those that have been asked for."""
        found = (plugin.generators().get(device) for plugin in self.active)
        return [rng for rng in found if rng is not None]

    def status(self) -> dict[str, str]:
        """Return what the status line shows of the plugins: names of statistics by label."""
        return {label: key for plugin in self.active for label, key in plugin.status.items()}

    def augment_pipe(self) -> torch.nn.Module | None:
        """Return what a network pickle carries as its `augment_pipe`."""
        pipes = (plugin.augment_pipe() for plugin in self.active)
        return next((pipe for pipe in pipes if pipe is not None), None)


def _call(plugin: Plugin, hook: str, *args: Any) -> Any:
    """Call a hook; what it raises says where it comes from."""
    try:
        return getattr(plugin, hook)(*args)
    except Exception as error:
        error.add_note(f"in the hook {hook!r} of the plugin {plugin.name or type(plugin)!r}")
        raise


def _penalty(plugin: Plugin, step: Step) -> Tensor | None:
    term: Tensor | None = _call(plugin, "penalty", step)
    if term is not None and (not isinstance(term, Tensor) or term.shape != ()):
        got = list(term.shape) if isinstance(term, Tensor) else type(term).__name__
        raise TypeError(f"the penalty of the plugin {plugin.name!r} must be a scalar, got {got}")
    return term


def register(name: str) -> Callable[[type[P]], type[P]]:
    """Enter a plugin class into the registry under `name`, its option prefix and file name."""

    def enter(cls: type[P]) -> type[P]:
        check(cls, name)
        cls.name = name
        if cls.draws is not None:
            cls.draws.name = name
        _REGISTRY[name] = cls
        return cls

    return enter


def check(cls: type[Plugin], name: str) -> None:
    """Raise a TypeError where a class is not a plugin as it should be."""
    if name in _REGISTRY:
        raise TypeError(f"plugin {name!r} is registered twice: {_REGISTRY[name]} and {cls}")
    own = {key: value for key, value in vars(cls).items() if inspect.isfunction(value)}
    for key in sorted(own.keys() - set(vars(Plugin))):
        if key.startswith("_"):
            continue
        if close := difflib.get_close_matches(key, HOOKS, n=1, cutoff=0.65):
            raise TypeError(f"plugin {name!r}: {key!r} is not a hook; did you mean {close[0]!r}?")
    for hook in set(HOOKS) & own.keys():
        want, got = (
            list(inspect.signature(f).parameters) for f in (getattr(Plugin, hook), own[hook])
        )
        if want != got:
            raise TypeError(
                f"plugin {name!r}: {hook}({', '.join(got)}) must be {hook}({', '.join(want)})"
            )
    if all(getattr(cls, hook) is getattr(Plugin, hook) for hook in HOOKS):
        raise TypeError(f"plugin {name!r} overrides no hook; hooks are {', '.join(HOOKS)}")


@contextmanager
def isolated(*, empty: bool = False) -> Iterator[None]:
    """Forget afterwards what is registered inside; for tests.

    Args:
        empty: Start without our own methods.
    """
    before = dict(_REGISTRY)
    if empty:
        _REGISTRY.clear()
    try:
        yield
    finally:
        _REGISTRY.clear()
        _REGISTRY.update(before)


def registry() -> dict[str, type[Plugin]]:
    """Return all registered plugin classes by name, alphabetically."""
    return dict(sorted(_REGISTRY.items()))


def find(name: str) -> type[Plugin]:
    """Return the plugin class registered as `name`; ValueError where there is none."""
    if name not in _REGISTRY:
        raise ValueError(f"there is no plugin {name!r}; there are {', '.join(registry())}")
    return _REGISTRY[name]
