"""Network pickles, the exchange format of StyleGAN2-ADA: read without running them, and written.

A pickle is a program, and these hold Python text besides, which the original runs. `load` does
neither. It knows a dozen names, each standing for an inert record of ours, and fills the networks
of `training.networks` from the arguments and tensors in the records.
"""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegan2_fewshot.augment import AugmentPipe
from stylegan2_fewshot.files import replacing
from stylegan2_fewshot.methods.bank import filters as filter_bank

from . import formats, sources
from .networks import Discriminator, Generator
from .unpickler import Object, PickleError, TensorView, one_line, unpickle

_CLASSES: dict[str, type[torch.nn.Module]] = {
    "G": Generator,
    "D": Discriminator,
    "G_ema": Generator,
    "augment_pipe": AugmentPipe,
}
_MAX_MODULES = 10_000
_MAX_VALUES = 10_000
_MAX_INT = 1 << 31
_MAX_FILTER = 32 * 32


@dataclass(frozen=True, eq=False)
class NetworkPickle:
    """What a network pickle holds: networks on the CPU, in evaluation mode, without gradients."""

    G: Generator
    D: Discriminator
    G_ema: Generator
    augment_pipe: AugmentPipe | None = None
    training_set_kwargs: dict[str, Any] | None = None


def load(path_or_url: str | os.PathLike[str]) -> NetworkPickle:
    """Read a network pickle of the original, or of `save`; no code in it runs.

    Files of `training.formats` are told by their content and read as well.

    Args:
        path_or_url: A path, an http(s) URL, or a short name such as `ffhq256`.

    Raises:
        PickleError: The file is damaged, is something else, asks for a name that no network needs,
            or holds networks that the classes of this project cannot represent.
        SourceError: The file cannot be had.
    """
    path = sources.fetch(path_or_url)
    try:
        data = path.read_bytes()
        if read := formats.reader_of(data):
            return _foreign_networks(read(data), limit=len(data))
        return _networks(unpickle(data), limit=len(data))
    except PickleError as error:
        raise PickleError(f"{path_or_url}: {error}") from None


def save(
    path: str | os.PathLike[str],
    *,
    G: Generator,
    D: Discriminator,
    G_ema: Generator,
    augment_pipe: AugmentPipe | None = None,
    training_set_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write a network pickle that the original, and the tools built on it, can load.

    Each network goes as its class name, its constructor's arguments and its tensors, with a short
    text that lets the loading codebase fill a class of its own. Optimizers and plugins stay out.

    Raises:
        ValueError: A network is of another class, or its tensors are not those that its
            `init_kwargs` give, so that nobody could rebuild it.
    """
    networks = {"G": G, "D": D, "G_ema": G_ema, "augment_pipe": augment_pipe}
    with replacing(path) as file:
        file.write(pickle.PROTO + b"\x03" + pickle.EMPTY_DICT)
        file.write(
            _body("training_set_kwargs") + _body(_plain(training_set_kwargs)) + pickle.SETITEM
        )
        for key, net in networks.items():
            call = _body(None) if net is None else _reconstruction(key, net)
            file.write(_body(key) + call + pickle.SETITEM)
        file.write(pickle.STOP)


def _networks(content: object, limit: int) -> NetworkPickle:
    if not isinstance(content, dict):
        raise PickleError(f"holds a {type(content).__name__} instead of the dict of a snapshot")
    if missing := [key for key in ("G", "D", "G_ema") if content.get(key) is None]:
        raise PickleError(f"holds no {', '.join(missing)}")
    nets = {k: _build(k, content[k], limit) for k in _CLASSES if content.get(k) is not None}
    return NetworkPickle(**nets, training_set_kwargs=_options(content.get("training_set_kwargs")))


def _options(value: object) -> dict[str, Any] | None:
    options = _plain(value)
    if not isinstance(options, (dict, type(None))):
        raise PickleError(f"training_set_kwargs is a {type(options).__name__} instead of a dict")
    return options


def _foreign_networks(content: formats.Content, limit: int) -> NetworkPickle:
    if missing := [key for key in ("G", "D", "G_ema") if key not in content.networks]:
        raise PickleError(f"holds no {', '.join(missing)}")
    nets = {k: _foreign(k, content.networks[k], limit) for k in _CLASSES if k in content.networks}
    return NetworkPickle(**nets, training_set_kwargs=_options(content.training_set_kwargs))


def _foreign(key: str, parts: formats.Parts, limit: int) -> Any:
    """Build a network from a format that knows no strides, and may leave out some buffers."""

    def may_lack(name: str, tensor: Tensor) -> bool:
        is_filter = name.endswith("resample_filter") and tensor.numel() <= _MAX_FILTER
        return is_filter or (parts.lacks_mean and name == "mapping.w_avg")

    _refuse_overlap(key, parts.tensors, limit)
    kwargs = _arguments(key, parts.kwargs)
    _skeleton(key, (), kwargs, parts.tensors, may_lack)
    with torch.random.fork_rng(devices=[]):
        net = _constructed(
            key, (), kwargs, len(parts.tensors)
        )  # brings the filters, and weights in the right layout
    net.load_state_dict(parts.tensors, strict=False)
    net.eval().requires_grad_(False)
    if parts.lacks_mean:
        net.mapping.w_avg.copy_(_mean_w(key, net.mapping))
    return net


def _mean_w(key: str, mapping: Any) -> Tensor:
    """Return the mean of w over 4096 latents, the same ones at every call."""
    rng = torch.Generator().manual_seed(0)
    latents = (torch.randn(64, mapping.z_dim, generator=rng) for _ in range(64))
    try:
        return torch.stack([mapping(z, None)[:, 0].mean(0) for z in latents]).mean(0)
    except Exception as error:  # as above: the arguments are a file's
        raise PickleError(f"{key} has no working mapping network: {one_line(error)}") from None


def _build(key: str, record: object, limit: int) -> Any:
    if not isinstance(record, Object):
        raise PickleError(f"{key} is a {type(record).__name__} instead of a network")
    if record.class_name != _CLASSES[key].__name__:
        raise PickleError(f"{key} is a {record.class_name[:80]!r}, not a {_CLASSES[key].__name__}")
    layers = list(_layers(record))
    tensors = _tensors(layers)
    _refuse_overlap(key, tensors, limit)
    args = _plain(record.state.get("_init_args", ()))
    kwargs = _arguments(key, record.state.get("_init_kwargs", {}))
    if any("in_features" in layer.state for _, layer in layers):  # only stylegan3's keep that
        kwargs = _from_stylegan3(key, kwargs)
    net = _skeleton(key, args, kwargs, tensors)
    copies = {k: tensors[k].to(t.dtype, copy=True) for k, t in net.state_dict().items()}
    net.load_state_dict(copies, assign=True)  # keeps strides
    return net.eval().requires_grad_(False)


def _arguments(key: str, value: object) -> dict[str, Any]:
    if not isinstance(kwargs := _plain(value), dict):
        raise PickleError(f"{key} cannot be built: its arguments are a {type(kwargs).__name__}")
    return kwargs


def _from_stylegan3(key: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments for the classes here; in stylegan3 defaults and nesting differ."""
    kwargs = {"num_fp16_res": 4, "conv_clamp": 256, **kwargs}
    if key == "D":
        return kwargs
    kwargs.pop("fused_modconv_default", None)  # tells how to compute, not what
    mapping = _arguments(key, kwargs.pop("mapping_kwargs", {}))
    own = inspect.signature(Generator).parameters
    return {
        **{name: value for name, value in kwargs.items() if name in own},
        "mapping_kwargs": {"w_avg_beta": 0.998, **mapping},
        "synthesis_kwargs": {name: value for name, value in kwargs.items() if name not in own},
    }


def _refuse_overlap(key: str, tensors: Mapping[str, Tensor], limit: int) -> None:
    if sum(tensor.nbytes for tensor in tensors.values()) > limit:
        raise PickleError(f"{key} has tensors that overlap")


def _skeleton(
    key: str,
    args: Iterable[Any],
    kwargs: dict[str, Any],
    tensors: Mapping[str, Tensor],
    may_lack: Callable[[str, Tensor], bool] = lambda name, tensor: False,
) -> torch.nn.Module:
    """Construct a network without memory, and see that `tensors` are just the ones it takes."""
    try:
        with torch.device("meta"):
            net = _constructed(key, args, kwargs, len(tensors))
    except PickleError:
        raise
    except Exception as error:  # arguments from a file make a constructor raise anything
        name = _CLASSES[key].__name__
        raise PickleError(f"{key} cannot be built: {name}: {one_line(error)}") from None
    want = net.state_dict()
    lacking = {name for name, t in want.items() if name not in tensors and may_lack(name, t)}
    _refuse_misfit(key, {n: t for n, t in want.items() if n not in lacking}, tensors)
    return net


def _constructed(
    key: str, args: Iterable[Any], kwargs: Mapping[str, Any], limit: int
) -> torch.nn.Module:
    """Construct a network, with its banks; it may ask for no more layers than it has tensors."""
    cls = _CLASSES[key]
    plain = {k: v for k, v in kwargs.items() if k != filter_bank.KEY or cls is not Generator}
    given = inspect.signature(cls).bind(*args, **plain).arguments
    for arguments in (given, given.get("mapping_kwargs") or {}):
        if isinstance(depth := arguments.get("num_layers"), int) and depth > limit:
            raise PickleError(f"num_layers is {depth}, but there are only {limit} tensors")
    net = cls(*args, **plain)
    if plain != kwargs:
        if not 1 <= (size := kwargs[filter_bank.KEY]["size"]) <= limit:
            raise PickleError(f"a bank has {size} filter sets, but there are only {limit} tensors")
        filter_bank.install(net, **kwargs[filter_bank.KEY])
    return net


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


def _layers(root: Object) -> Iterator[tuple[str, Object]]:
    """Yield a network and its layers, each with the start of its tensors' dotted names."""
    todo = [("", root)]
    for _ in range(_MAX_MODULES):
        if not todo:
            return
        prefix, record = todo.pop()
        yield prefix, record
        todo += [
            (f"{prefix}{name}.", layer) for name, layer in _members(record, "_modules", Object)
        ]
    raise PickleError(f"refused more than {_MAX_MODULES} layers in a network")


def _tensors(layers: Iterable[tuple[str, Object]]) -> dict[str, Tensor]:
    return {
        prefix + name: tensor.value
        for prefix, record in layers
        for kind in ("_parameters", "_buffers")
        for name, tensor in _members(record, kind, TensorView)
    }


def _members(record: Object, kind: str, cls: type[Any]) -> Iterator[tuple[str, Any]]:
    members = record.state.get(kind, {})
    if not isinstance(members, dict):
        raise PickleError(f"{kind} of a {record.class_name[:80]!r} is no dict")
    for name, value in members.items():
        if value is None:  # registered, but absent
            continue
        if not (isinstance(name, str) and isinstance(value, cls)):
            what = f"{type(value).__name__} in {kind}"
            raise PickleError(f"a {record.class_name[:80]!r} has a {what}")
        yield name, value


def _plain(value: object, fuel: Iterator[int] | None = None, depth: int = 0) -> Any:
    """Copy arguments as plain Python values; `fuel` bounds what a nest of references unfolds to."""
    fuel = fuel or iter(range(_MAX_VALUES))
    if next(fuel, None) is None or depth > 16:
        raise PickleError("refused arguments that are nested or numerous beyond reason")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, fuel, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, fuel, depth + 1) for item in value)
    if isinstance(value, (bool, float, str, type(None))):
        return value
    if isinstance(value, int) and abs(value) <= _MAX_INT:
        return value
    raise PickleError(f"refused {type(value).__name__} among the arguments")


# The text that the loading codebase runs. It is handed either what `save` wrote, or what the
# codebase itself made when it copied or saved the network: a whole module's attributes.
_SOURCE = '''\
"""Written by stylegan2-fewshot: {name} of the codebase at hand, filled with given tensors."""
from importlib import import_module

def find(*modules):
    for module in modules:
        try:
            return import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    raise ImportError('needs one of these modules beside it: {hosts}')

host = find(*'{hosts}'.split())

class {name}(host.{name}):
    def __setstate__(self, state):
        if 'training' in state:
            super().__setstate__(state)
            return
        kwargs = dict(state['_init_kwargs'])
        if host.__name__.endswith('_stylegan2'):  # of stylegan3: flat arguments, other defaults
            kwargs.update(kwargs.pop('synthesis_kwargs', {{}}))
            kwargs = {{'num_fp16_res': 0, 'conv_clamp': None, **kwargs}}
        self.__init__(**kwargs)
        self.load_state_dict({{**state['_parameters'], **state['_buffers']}})
        self.eval().requires_grad_(False)
'''
_BANKED_SOURCE = """\
raise ImportError('this generator has several filter sets in a layer, which needs stylegan2-'
    'fewshot; make an ordinary network of one route with: '
    'python -m tools.bank_export IN.pkl OUT.pkl --route=mean')
"""
_HOSTS = {
    "Generator": "training.networks_stylegan2 training.networks",
    "Discriminator": "training.networks_stylegan2 training.networks",
    "AugmentPipe": "training.augment",
}


def _reconstruction(key: str, net: torch.nn.Module) -> bytes:
    """Return the opcodes that call the original's persistence module, which need not be here."""
    name, kwargs = _CLASSES[key].__name__, _describe(key, net)
    state = {
        "_init_args": (),
        "_init_kwargs": kwargs,
        "_parameters": {k: _on_cpu(t) for k, t in net.named_parameters()},
        "_buffers": {k: _on_cpu(t) for k, t in net.named_buffers()},
    }
    source = _BANKED_SOURCE if filter_bank.KEY in kwargs else _SOURCE
    meta = {
        "type": "class",
        "version": 6,
        "module_src": source.format(name=name, hosts=_HOSTS[name]),
        "class_name": name,
        "state": state,
    }
    function = b"torch_utils.persistence\n_reconstruct_persistent_obj\n"
    return pickle.GLOBAL + function + _body(meta) + pickle.TUPLE1 + pickle.REDUCE


def _describe(key: str, net: torch.nn.Module) -> dict[str, Any]:
    cls = _CLASSES[key]
    if not isinstance(net, cls):
        raise ValueError(f"{key} must be a {cls.__name__}, got a {type(net).__name__}")
    kwargs: dict[str, Any] = _plain(net.init_kwargs)
    _skeleton(key, (), kwargs, net.state_dict())
    return kwargs


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)  # without the rest of a shared storage


def _body(value: object) -> bytes:
    """Return the opcodes of `value` alone; protocol 3 numbers its memo, so bodies can be joined."""
    return pickle.dumps(value, protocol=3)[2:-1]
