"""Networks out of the arguments and tensors of a file, once the two are seen to fit each other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan2_fewshot.augment import AugmentPipe
from stylegan2_fewshot.networks import rebuilders

from .networks import Discriminator, Generator
from .unpickler import PickleError, one_line

Rebuilt = Generator | Discriminator | AugmentPipe
CLASSES: dict[str, type[Rebuilt]] = {
    "G": Generator,
    "D": Discriminator,
    "G_ema": Generator,
    "augment_pipe": AugmentPipe,
}

_MAX_VALUES = 10_000
_MAX_INT = 1 << 31


def plain(value: object, fuel: Iterator[int] | None = None, depth: int = 0) -> Any:
    """Copy arguments as plain Python values; `fuel` bounds what a nest of references unfolds to."""
    fuel = fuel or iter(range(_MAX_VALUES))
    if next(fuel, None) is None or depth > 16:
        raise PickleError("refused arguments that are nested or numerous beyond reason")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, fuel, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item, fuel, depth + 1) for item in value)
    if isinstance(value, (bool, float, str, type(None))):
        return value
    if isinstance(value, int) and abs(value) <= _MAX_INT:
        return value
    raise PickleError(f"refused {type(value).__name__} among the arguments")


def arguments(key: str, value: object) -> dict[str, Any]:
    if not isinstance(kwargs := plain(value), dict):
        raise PickleError(f"{key} cannot be built: its arguments are a {type(kwargs).__name__}")
    return kwargs


def refuse_overlap(key: str, tensors: Mapping[str, Tensor], limit: int) -> None:
    if sum(tensor.nbytes for tensor in tensors.values()) > limit:
        raise PickleError(f"{key} has tensors that overlap")


def skeleton(
    key: str,
    args: Iterable[Any],
    kwargs: dict[str, Any],
    tensors: Mapping[str, Tensor],
    may_lack: Callable[[str, Tensor], bool] = lambda name, tensor: False,
) -> Rebuilt:
    """Construct a network without memory, and see that `tensors` are just the ones it takes."""
    try:
        with torch.device("meta"):
            net = constructed(key, args, kwargs, len(tensors))
    except (PickleError, MemoryError):
        raise
    except Exception as error:  # arguments from a file make a constructor raise anything
        name = CLASSES[key].__name__
        raise PickleError(f"{key} cannot be built: {name}: {one_line(error)}") from None
    want = net.state_dict()
    lacking = {name for name, t in want.items() if name not in tensors and may_lack(name, t)}
    _refuse_misfit(key, {n: t for n, t in want.items() if n not in lacking}, tensors)
    return net


def constructed(key: str, args: Iterable[Any], kwargs: Mapping[str, Any], limit: int) -> Rebuilt:
    """Construct a network, as the methods made it; of no more layers than it has tensors."""
    cls = CLASSES[key]
    plain, made = _parted(key, kwargs)
    given = inspect.signature(cls).bind(*args, **plain).arguments
    for arguments in (given, given.get("mapping_kwargs") or {}):
        if isinstance(depth := arguments.get("num_layers"), int) and depth > limit:
            raise PickleError(f"num_layers is {depth}, but there are only {limit} tensors")
    net = cls(*args, **plain)
    for name, arguments in made.items():
        method = rebuilders()[name]
        for count in method.tensor_counts:
            if not 1 <= (number := arguments[count]) <= limit:
                raise PickleError(
                    f"{count} of the {name} is {number}, but there are only {limit} tensors"
                )
        method.rebuild(net, **arguments)
    return net


def _parted(key: str, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of a network's class, and by key those of the methods that made it."""
    keys = rebuilders() if CLASSES[key] is Generator else {}
    made = {name: value for name, value in kwargs.items() if name in keys}
    return {name: value for name, value in kwargs.items() if name not in made}, made


def _refuse_misfit(key: str, want: Mapping[str, Tensor], have: Mapping[str, Tensor]) -> None:
    if differ := sorted(want.keys() ^ have.keys()):
        name = differ[0]
        verb = "lacks" if name in want else "has an unknown"
        raise PickleError(f"{key} {verb} tensor {name[:80]!r} ({len(differ)} names differ)")
    for name, tensor in want.items():
        if tensor.shape != have[name].shape:
            shapes = f"{list(have[name].shape)}, its arguments give {list(tensor.shape)}"
            raise PickleError(f"{key} has {name} of shape {shapes}")
        if not have[name].is_floating_point():
            raise PickleError(f"{key} has {name} of type {have[name].dtype}, not floating-point")


def try_out(key: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Run a network of these arguments without memory or numbers.

    What its constructor only keeps, and would stop a training or a picture later, shows here.
    """
    own, _ = _parted(key, kwargs)
    try:
        with torch.device("meta"), torch.no_grad():
            net = CLASSES[key](*args, **own).eval()
            if isinstance(net, AugmentPipe):
                _refuse_words(own)
                return
            label, size = torch.empty(1, net.c_dim), net.img_resolution
            if isinstance(net, Generator):
                net(torch.empty(1, net.z_dim), label, noise_mode="const")
            else:
                net(torch.empty(1, net.img_channels, size, size), label)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise PickleError(f"{key} has arguments that do not run: {one_line(error)}") from None


def _refuse_words(kwargs: Mapping[str, Any]) -> None:
    for name, value in kwargs.items():
        if not all(
            isinstance(v, (int, float)) for v in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(f"{name} is not a number")
