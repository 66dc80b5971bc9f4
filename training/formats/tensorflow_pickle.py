"""Pickles of the TensorFlow code of StyleGAN2 and StyleGAN2-ADA, read without TensorFlow.

A tuple (G, D, Gs) of `dnnlib.tflib.network.Network`, whose state holds arguments, sub-networks and
variables, and the text of the module that built it, which is not looked at. Weights are stored as
`[height, width, in, out]`, mirrored where they come before upsampling; dense ones as `[in, out]`;
biases of styles less 1.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..records import MAX_DIMENSIONS, DType, names
from ..unpickler import Function, PickleError, Record, unpickle
from .content import Content, Parts

Array = NDArray[Any]


class _Network(Record):
    """A TensorFlow network: its attributes."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise PickleError("a TensorFlow network has no attributes")
        self.state = state


class _Array(Record):
    """A NumPy array of plain numbers, from its shape, type and bytes."""

    __slots__ = ("value",)

    def __init__(self, *_: object):
        self.value: Array = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if not (isinstance(dtype, DType) and isinstance(data, bytes)):
            raise PickleError("refused an array of what are no plain numbers")
        if not (isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS):
            raise PickleError("refused an array with a shape that is none")
        numbers = np.frombuffer(data, dtype.code)
        if math.prod(shape) != len(numbers):
            raise PickleError(f"an array of shape {list(shape)} has {len(numbers)} numbers")
        self.value = numbers.reshape(shape, order="F" if is_fortran else "C")


def _refused(*_: object) -> object:
    raise PickleError("refused to build an array in an unusual way")


_NAMES: dict[tuple[str, str], object] = {
    ("dnnlib.tflib.network", "Network"): _Network,
    ("numpy", "ndarray"): Function(_refused),
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): Function(_Array) for core in ("core", "_core")
    },
}

# Argument there: argument here, and the default there.
_SIZES = {
    "label_size": ("c_dim", 0),
    "resolution": ("img_resolution", 1024),
    "num_channels": ("img_channels", 3),
}
_WIDTHS = {
    "fmap_base": ("channel_base", 16384),  # doubled in `_arguments`
    "fmap_max": ("channel_max", 512),
    "num_fp16_res": ("num_fp16_res", 0),
    "conv_clamp": ("conv_clamp", None),
}
_Arguments = dict[str, dict[str, tuple[str, Any]]]
_OF_G: _Arguments = {
    "": {**_SIZES, "latent_size": ("z_dim", 512), "dlatent_size": ("w_dim", 512)},
    "mapping_kwargs": {
        "mapping_layers": ("num_layers", 8),
        "label_fmaps": ("embed_features", None),
        "mapping_fmaps": ("layer_features", None),
        "mapping_nonlinearity": ("activation", "lrelu"),
        "mapping_lrmul": ("lr_multiplier", 0.01),
        "w_avg_beta": ("w_avg_beta", 0.995),
    },
    "synthesis_kwargs": {
        **_WIDTHS,
        "architecture": ("architecture", "skip"),
        "resample_kernel": ("resample_filter", [1, 3, 3, 1]),
        "use_noise": ("use_noise", True),
        "nonlinearity": ("activation", "lrelu"),
    },
}
_OF_D: _Arguments = {
    "": {
        **_SIZES,
        **_WIDTHS,
        "architecture": ("architecture", "resnet"),
        "mapping_fmaps": ("cmap_dim", None),
    },
    "block_kwargs": {
        "nonlinearity": ("activation", "lrelu"),
        "resample_kernel": ("resample_filter", [1, 3, 3, 1]),
        "freeze_layers": ("freeze_layers", 0),
    },
    "mapping_kwargs": {
        "mapping_layers": ("num_layers", 0),
        "mapping_fmaps": ("layer_features", None),
        "mapping_lrmul": ("lr_multiplier", 0.1),
        "nonlinearity": ("activation", "lrelu"),
    },
    "epilogue_kwargs": {
        "mbstd_group_size": ("mbstd_group_size", 4),
        "mbstd_num_features": ("mbstd_num_channels", 1),
        "nonlinearity": ("activation", "lrelu"),
    },
}
_COMPONENTS = {"mapping", "synthesis"}
_UNUSED = {"lod"}  # how far progressive growing has come, which StyleGAN2 does not do
_ELSEWHERE = {"truncation_psi", "truncation_cutoff", "style_mixing_prob", "structure"}


def is_one(data: bytes) -> bool:
    """Return whether this is a pickle that starts with a TensorFlow network."""
    return data[:1] == b"\x80" and b"dnnlib.tflib.network" in data[:64]


def read(data: bytes) -> Content:
    """Return the networks of a pickle.

    Raises:
        PickleError: The file is damaged or of StyleGAN1, or has an argument or a variable without
            a counterpart here; the message names it.
    """
    try:
        networks = unpickle(data, names() | _NAMES)
        if not (isinstance(networks, tuple) and [type(n) for n in networks] == [_Network] * 3):
            raise PickleError("is a TensorFlow pickle, but none of three networks G, D, Gs")
        keys = ("G", "D", "G_ema")
        named = zip(keys, networks, strict=True)
        return Content({key: _parts(key, net.state, limit=len(data)) for key, net in named})
    except (PickleError, MemoryError):
        raise
    except Exception as error:  # as above: what a file holds makes our code raise anything
        raise PickleError(f"is a damaged TensorFlow pickle ({type(error).__name__})") from None


def _parts(key: str, state: dict[str, Any], limit: int) -> Parts:
    version = state.get("version")
    if not isinstance(version, int) or version < 4:
        raise PickleError(
            f"{key} is a TensorFlow network of version {reprlib.repr(version)}; 4 is needed"
        )
    kwargs = _arguments(key, dict(state["static_kwargs"]))
    tensors: dict[str, Tensor] = {}
    for name, array in _variables(state):
        if name in _UNUSED:
            continue
        limit -= array.nbytes
        if limit < 0:
            raise PickleError(f"{key} has tensors that overlap")
        ours, convert = _place(key, name)
        tensors[ours] = torch.from_numpy(np.array(convert(array), order="C"))
    return Parts(kwargs, tensors)


def _arguments(key: str, given: dict[str, Any]) -> dict[str, Any]:
    tables = _OF_D if key == "D" else _OF_G
    known = {name for table in tables.values() for name in table} | _ELSEWHERE
    if unknown := [name for name in given if name not in known]:
        raise PickleError(
            f"{key} has the TensorFlow argument {reprlib.repr(unknown[0])}, unknown here"
        )
    kwargs: dict[str, Any] = {}
    for group, table in tables.items():
        values: dict[str, Any] = {
            ours: given.get(name, default) for name, (ours, default) in table.items()
        }
        if "channel_base" in values:
            values["channel_base"] = int(values["channel_base"]) * 2
        kwargs |= {group: values} if group else values
    if key != "D" and kwargs["mapping_kwargs"]["w_avg_beta"] is None:
        kwargs["mapping_kwargs"]["w_avg_beta"] = 1  # the mean is there, and stays as it is
    if key == "D":
        kwargs["mapping_kwargs"]["embed_features"] = kwargs["cmap_dim"]
    return kwargs


def _variables(state: dict[str, Any]) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of a network, then those of its components under their names."""
    todo = [("", state)]
    while todo:
        prefix, part = todo.pop(0)
        for name, value in part["variables"]:
            if not isinstance(value, (_Array, float)):
                raise PickleError(f"the TensorFlow variable {reprlib.repr(name)} is not an array")
            array = value.value if isinstance(value, _Array) else np.asarray(value, np.float32)
            yield f"{prefix}{name}", array
        components = dict(part["components"])
        if unknown := [name for name in components if prefix or name not in _COMPONENTS]:
            raise PickleError(
                f"has a TensorFlow network {prefix}{reprlib.repr(unknown[0])}, unknown here"
            )
        todo += [(f"{name}/", component.state) for name, component in components.items()]


_Place = tuple[str, Callable[[Array], Array]]
_LAYERS = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb", "Skip": "skip"}
_LAYERS_OF_D = {"FromRGB": "fromrgb", "Conv0": "conv0", "Conv1_down": "conv1", "Skip": "skip"}
_LEAVES: dict[str, _Place] = {
    "bias": ("bias", lambda a: a),
    "noise_strength": ("noise_strength", lambda a: a),
    "mod_weight": ("affine.weight", lambda a: a.T),
    "mod_bias": ("affine.bias", lambda a: a + a.dtype.type(1)),
}


def _plain(a: Array) -> Array:
    """Bring a weight into this project's order."""
    return a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T


def _mirrored(a: Array) -> Array:
    return a[::-1, ::-1].transpose(3, 2, 0, 1)


def _place(key: str, name: str) -> _Place:
    """Return the name of a variable here, and how its numbers are brought there."""
    place = _place_in_d(name) if key == "D" else _place_in_g(name)
    if place is None:
        raise PickleError(f"{key} has the TensorFlow variable {name[:80]!r}, unknown here")
    return place


def _place_in_g(name: str) -> _Place | None:
    if name == "dlatent_avg":
        return "mapping.w_avg", lambda a: a
    if name == "synthesis/4x4/Const/const":
        return "synthesis.b4.const", lambda a: a[0]
    if m := re.fullmatch(r"mapping/(LabelEmbed|Dense(\d+))/(weight|bias)", name):
        layer = "embed" if m[2] is None else f"fc{m[2]}"
        return f"mapping.{layer}.{m[3]}", _plain if m[3] == "weight" else lambda a: a
    if m := re.fullmatch(r"synthesis/noise(\d{1,2})", name):
        index = int(m[1])
        layer = "conv0" if index % 2 else "conv1"
        return f"synthesis.b{2 ** ((index + 5) // 2)}.{layer}.noise_const", lambda a: a[0, 0]
    m = re.fullmatch(r"synthesis/(\d+)x\1/(\w+)/(\w+)", name)
    if m is None or m[2] not in _LAYERS:
        return None
    where = f"synthesis.b{m[1]}.{_LAYERS[m[2]]}"
    if m[3] == "weight":
        return f"{where}.weight", _mirrored if m[2] in ("Conv0_up", "Skip") else _plain
    if m[3] not in _LEAVES:
        return None
    leaf, convert = _LEAVES[m[3]]
    return f"{where}.{leaf}", convert


def _place_in_d(name: str) -> _Place | None:
    m = re.fullmatch(r"(.*)/(weight|bias)", name)
    if m is None:
        return None
    convert = _plain if m[2] == "weight" else _LEAVES["bias"][1]
    ends = {"4x4/Conv": "b4.conv", "4x4/Dense0": "b4.fc", "Output": "b4.out"}
    ends["LabelEmbed"] = "mapping.embed"
    if m[1] in ends:
        return f"{ends[m[1]]}.{m[2]}", convert
    if mapping := re.fullmatch(r"Mapping(\d+)", m[1]):
        return f"mapping.fc{mapping[1]}.{m[2]}", convert
    block = re.fullmatch(r"(\d+)x\1/(\w+)", m[1])
    if block is None or block[2] not in _LAYERS_OF_D:
        return None
    return f"b{block[1]}.{_LAYERS_OF_D[block[2]]}.{m[2]}", convert
