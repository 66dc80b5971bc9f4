"""Network pickles, the exchange format of StyleGAN2-ADA: read without running them, and written.

A pickle is a program, and these hold Python text besides, which the original runs. `load` does
neither. It knows a dozen names, each standing for an inert record of ours, and fills the networks
of `training.networks` from the arguments and tensors in the records.
"""

from __future__ import annotations

import inspect
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stylegan2_fewshot.augment import AugmentPipe
from stylegan2_fewshot.files import printable, replacing
from stylegan2_fewshot.networks import makers

from . import formats, records, sources
from .networks import Discriminator, Generator, MappingNetwork
from .pickle_bytes import body as _body
from .rebuilding import CLASSES, arguments, constructed, plain, refuse_overlap, skeleton, try_out
from .records import Object, TensorView
from .unpickler import PickleError, one_line, unpickle

NEEDED = ("G", "D", "G_ema")
_Networks = tuple[dict[str, Any], dict[str, Any] | None]  # by key, and the data set's options
_MAX_MODULES = 10_000
_MAX_FILTER = 32 * 32


@dataclass(frozen=True, eq=False)
class NetworkPickle:
    """What a network pickle holds: networks on the CPU, in evaluation mode, without gradients.

    What `load` was told not to need, and did not find, is None.
    """

    G: Generator
    D: Discriminator
    G_ema: Generator
    augment_pipe: AugmentPipe | None = None
    training_set_kwargs: dict[str, Any] | None = None


def load(path_or_url: str | os.PathLike[str], *, needs: Sequence[str] = NEEDED) -> NetworkPickle:
    """Read a network pickle of the original, or of `save`; no code in it runs.

    Files of `training.formats` are told by their content and read as well.

    Args:
        path_or_url: A path, an http(s) URL, a short name such as `ffhq256`, or a run directory,
            whose newest network is read.
        needs: Networks that have to be there. To train takes all three; G_ema draws the images.

    Raises:
        PickleError: The file is damaged, is something else, asks for a name that no network needs,
            or holds networks that the classes of this project cannot represent.
        SourceError: The file is unavailable.
    """
    path = sources.fetch(path_or_url)
    try:
        data = path.read_bytes()
        if read := formats.reader_of(data):
            nets, options = _foreign_networks(read(data), limit=len(data))
        else:
            nets, options = _networks(unpickle(data, records.names()), limit=len(data))
        if missing := [key for key in needs if key not in nets]:
            hint = "; that is enough to draw images, not to train" if "G_ema" in nets else ""
            raise PickleError(f"holds no {', '.join(missing)}{hint}")
    except PickleError as error:
        raise PickleError(f"{printable(sources.shown(path_or_url))}: {error}") from None
    found: dict[str, Any] = {**dict.fromkeys(NEEDED), **nets}
    return NetworkPickle(**found, training_set_kwargs=options)


def save(
    path: str | os.PathLike[str],
    *,
    G: Generator,
    D: Discriminator,
    G_ema: Generator,
    augment_pipe: torch.nn.Module | None = None,
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
    options = plain(training_set_kwargs)
    with replacing(path) as file:
        file.write(pickle.PROTO + b"\x03" + pickle.EMPTY_DICT)
        file.write(_body("training_set_kwargs") + _body(_of_original(options)) + pickle.SETITEM)
        for key, net in networks.items():
            call = _body(None) if net is None else _reconstruction(key, net)
            file.write(_body(key) + call + pickle.SETITEM)
        file.write(pickle.STOP)


def _networks(content: object, limit: int) -> _Networks:
    if not isinstance(content, dict):
        raise PickleError(f"holds a {type(content).__name__} instead of the dict of a snapshot")
    nets = {k: _build(k, content[k], limit) for k in CLASSES if content.get(k) is not None}
    return nets, _options(content.get("training_set_kwargs"))


def _options(value: object) -> dict[str, Any] | None:
    options = plain(value)
    if not isinstance(options, (dict, type(None))):
        raise PickleError(f"training_set_kwargs is a {type(options).__name__} instead of a dict")
    return options


def _of_original(options: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a data set's options as the original's calc_metrics.py constructs it from them."""
    if not options or "class_name" in options or "use_labels" not in options:
        return options
    seed = {"random_seed": options["seed"]} if "seed" in options else {}
    others = {key: value for key, value in options.items() if key != "seed"}
    return {"class_name": "training.dataset.ImageFolderDataset", **others, **seed}


def _foreign_networks(content: formats.Content, limit: int) -> _Networks:
    nets = {k: _foreign(k, content.networks[k], limit) for k in CLASSES if k in content.networks}
    return nets, _options(content.training_set_kwargs)


def _foreign(key: str, parts: formats.Parts, limit: int) -> Any:
    """Build a network from a format that knows no strides, and may leave out some buffers."""

    def may_lack(name: str, tensor: Tensor) -> bool:
        is_filter = name.endswith("resample_filter") and tensor.numel() <= _MAX_FILTER
        return is_filter or (parts.lacks_mean and name == "mapping.w_avg")

    refuse_overlap(key, parts.tensors, limit)
    kwargs = arguments(key, parts.kwargs)
    skeleton(key, (), kwargs, parts.tensors, may_lack)
    try_out(key, (), kwargs)
    with torch.random.fork_rng(devices=[]):
        net = constructed(
            key, (), kwargs, len(parts.tensors)
        )  # brings the filters, and weights in the right layout
    net.load_state_dict(parts.tensors, strict=False)
    net.eval().requires_grad_(False)
    if parts.lacks_mean and isinstance(net, Generator):
        net.mapping.w_avg.copy_(_mean_w(key, net.mapping))
    return net


def _mean_w(key: str, mapping: MappingNetwork) -> Tensor:
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
    if record.class_name != CLASSES[key].__name__:
        raise PickleError(f"{key} is a {record.class_name[:80]!r}, not a {CLASSES[key].__name__}")
    layers = list(_layers(record))
    tensors = _tensors(layers)
    refuse_overlap(key, tensors, limit)
    args = plain(record.state.get("_init_args", ()))
    kwargs = arguments(key, record.state.get("_init_kwargs", {}))
    if any("in_features" in layer.state for _, layer in layers):  # only stylegan3's keep that
        kwargs = _from_stylegan3(key, kwargs)
    net = skeleton(key, args, kwargs, tensors)
    try_out(key, args, kwargs)
    copies = {k: tensors[k].to(t.dtype, copy=True) for k, t in net.state_dict().items()}
    net.load_state_dict(copies, assign=True)  # keeps strides
    return net.eval().requires_grad_(False)


def _from_stylegan3(key: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments for the classes here; in stylegan3 defaults and nesting differ."""
    kwargs = {"num_fp16_res": 4, "conv_clamp": 256, **kwargs}
    if key == "D":
        return kwargs
    kwargs.pop("fused_modconv_default", None)  # tells how to compute, not what
    mapping = arguments(key, kwargs.pop("mapping_kwargs", {}))
    own = inspect.signature(Generator).parameters
    return {
        **{name: value for name, value in kwargs.items() if name in own},
        "mapping_kwargs": {"w_avg_beta": 0.998, **mapping},
        "synthesis_kwargs": {name: value for name, value in kwargs.items() if name not in own},
    }


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
        raise PickleError(f"{kind} of a {record.class_name[:80]!r} is not a dict")
    for name, value in members.items():
        if value is None:  # registered, but absent
            continue
        if not (isinstance(name, str) and isinstance(value, cls)):
            what = f"{type(value).__name__} in {kind}"
            raise PickleError(f"a {record.class_name[:80]!r} has a {what}")
        yield name, value


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
_HOSTS = {
    "Generator": "training.networks_stylegan2 training.networks",
    "Discriminator": "training.networks_stylegan2 training.networks",
    "AugmentPipe": "training.augment",
}


def _reconstruction(key: str, net: torch.nn.Module) -> bytes:
    """Return the opcodes that call the original's persistence module, which need not be here."""
    name, kwargs = CLASSES[key].__name__, _describe(key, net)
    state = {
        "_init_args": (),
        "_init_kwargs": kwargs,
        "_parameters": {k: _on_cpu(t) for k, t in net.named_parameters()},
        "_buffers": {k: _on_cpu(t) for k, t in net.named_buffers()},
    }
    meta = {
        "type": "class",
        "version": 6,
        "module_src": _source(name, net),
        "class_name": name,
        "state": state,
    }
    function = b"torch_utils.persistence\n_reconstruct_persistent_obj\n"
    return pickle.GLOBAL + function + _body(meta) + pickle.TUPLE1 + pickle.REDUCE


def _source(name: str, net: torch.nn.Module) -> str:
    for method in makers(net):
        text = f"this generator was made by the method {method.name} of stylegan2-fewshot"
        return f"raise ImportError({'; '.join([text, *filter(None, [method.ordinary])])!r})\n"
    return _SOURCE.format(name=name, hosts=_HOSTS[name])


def _describe(key: str, net: torch.nn.Module) -> dict[str, Any]:
    cls = CLASSES[key]
    if not isinstance(net, cls):
        raise ValueError(f"{key} must be a {cls.__name__}, got a {type(net).__name__}")
    kwargs: dict[str, Any] = plain(net.init_kwargs)
    skeleton(key, (), kwargs, net.state_dict())
    return kwargs


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)  # without the rest of a shared storage
