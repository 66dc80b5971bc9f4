"""Checkpoints of rosinality/stylegan2-pytorch, the source networks of the few-shot literature.

A `.pt` file of `torch.save`: state dicts `g`, `d`, `g_ema`, and `latent_avg`, the mean of w. The
numbers are those of the original's networks under other names, with dimensions of size 1 around.
"""

from __future__ import annotations

import itertools
import os
import re
import reprlib
from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stylegan2_fewshot.files import replacing
from stylegan2_fewshot.ops import setup_filter

from ..networks import TAPS, Discriminator, Generator
from ..records import TensorView
from ..unpickler import PickleError
from . import torch_file
from .content import Content, Parts

KEYS = {"G": "g", "D": "d", "G_ema": "g_ema"}
_OWN = "init_kwargs"  # what `write` adds, so that reading its files restores every argument
_MAX_RESOLUTION = 1 << 16
_Network = Generator | Discriminator
_Names = Iterator[tuple[str, str, int, int]]  # ours, theirs, dimensions of 1 before and after


def _names(key: str, resolution: int, num_layers: int) -> _Names:
    if key == "D":
        return _discriminator_names(resolution)
    return _generator_names(resolution, num_layers)


def _depth(state: Mapping[str, Tensor]) -> int:
    return sum(bool(re.fullmatch(r"style\.\d+\.weight", name)) for name in state)


def _generator_names(resolution: int, num_layers: int) -> _Names:
    for i in range(num_layers):
        for leaf in ("weight", "bias"):
            yield f"mapping.fc{i}.{leaf}", f"style.{i + 1}.{leaf}", 0, 0
    yield "synthesis.b4.const", "input.input", 1, 0
    yield from _layer_names("synthesis.b4.conv1", "conv1", 0)
    yield from _rgb_names("synthesis.b4.torgb", "to_rgb1")
    for k in range((resolution // 8).bit_length()):
        block = f"synthesis.b{8 << k}"
        yield from _layer_names(f"{block}.conv0", f"convs.{2 * k}", 2 * k + 1)
        yield from _layer_names(f"{block}.conv1", f"convs.{2 * k + 1}", 2 * k + 2)
        yield from _rgb_names(f"{block}.torgb", f"to_rgbs.{k}")


def _layer_names(ours: str, theirs: str, number: int) -> _Names:
    yield from _modulated_names(ours, theirs)
    yield f"{ours}.bias", f"{theirs}.activate.bias", 0, 0
    yield f"{ours}.noise_strength", f"{theirs}.noise.weight", 1, 0
    yield f"{ours}.noise_const", f"noises.noise_{number}", 2, 0


def _rgb_names(ours: str, theirs: str) -> _Names:
    yield from _modulated_names(ours, theirs)
    yield f"{ours}.bias", f"{theirs}.bias", 1, 2


def _modulated_names(ours: str, theirs: str) -> _Names:
    yield f"{ours}.weight", f"{theirs}.conv.weight", 1, 0
    for leaf in ("weight", "bias"):
        yield f"{ours}.affine.{leaf}", f"{theirs}.conv.modulation.{leaf}", 0, 0


def _discriminator_names(resolution: int) -> _Names:
    pairs = {f"b{resolution}.fromrgb": ("convs.0.0", "convs.0.1")}
    for k in range(1, (resolution // 8).bit_length() + 1):
        block, theirs = f"b{resolution * 2 >> k}", f"convs.{k}"
        pairs[f"{block}.conv0"] = (f"{theirs}.conv1.0", f"{theirs}.conv1.1")
        pairs[f"{block}.conv1"] = (f"{theirs}.conv2.1", f"{theirs}.conv2.2")
        yield f"{block}.skip.weight", f"{theirs}.skip.1.weight", 0, 0
    pairs["b4.conv"] = ("final_conv.0", "final_conv.1")
    pairs["b4.fc"] = ("final_linear.0",) * 2
    pairs["b4.out"] = ("final_linear.1",) * 2
    for ours, (weight, bias) in pairs.items():
        yield f"{ours}.weight", f"{weight}.weight", 0, 0
        yield f"{ours}.bias", f"{bias}.bias", 0, 0


def _kernel_names(key: str, resolution: int) -> Iterator[tuple[str, int]]:
    """Yield the names of their resampling filters, and the factor in each."""
    for k in range((resolution // 8).bit_length()):
        if key == "D":
            yield f"convs.{k + 1}.conv2.0.kernel", 1
            yield f"convs.{k + 1}.skip.0.kernel", 1
        else:
            yield f"convs.{2 * k}.conv.blur.kernel", 4
            yield f"to_rgbs.{k}.upsample.kernel", 4


def read(data: bytes) -> Content:
    """Return the networks of a checkpoint.

    Raises:
        PickleError: The file is damaged, or holds something else; the message says what.
    """
    content = torch_file.read(data)
    if not (isinstance(content, dict) and isinstance(content.get("g_ema"), dict)):
        raise PickleError("is a file of torch.save without the state dict g_ema of rosinality's")
    states = {"G_ema": content["g_ema"]}
    if isinstance(content.get("d"), dict):
        states |= {"G": content.get("g", content["g_ema"]), "D": content["d"]}
    given = content.get(_OWN)
    given = given if isinstance(given, dict) else {}
    mean = content.get("latent_avg")
    means = {"G": content.get("latent_avg_g", mean), "D": None, "G_ema": mean}
    return Content({k: _read(k, s, given.get(k), means[k], len(data)) for k, s in states.items()})


def _read(key: str, state: object, given: object, mean: object, limit: int) -> Parts:
    if not isinstance(state, dict) or not all(isinstance(t, TensorView) for t in state.values()):
        raise PickleError(f"{KEYS[key]} is not a state dict of tensors")
    state = {str(name).removeprefix("module."): view.value for name, view in state.items()}
    if sum(tensor.nbytes for tensor in state.values()) > limit:  # before any is copied
        raise PickleError(f"{KEYS[key]} has tensors that overlap")
    kwargs = given if isinstance(given, dict) else _guess(key, state)
    resolution = kwargs.get("img_resolution")
    if not (isinstance(resolution, int) and 4 <= resolution <= _MAX_RESOLUTION):
        raise PickleError(f"{KEYS[key]}: img_resolution is {reprlib.repr(resolution)}")
    names = _names(key, resolution, _depth(state))
    tensors = {
        ours: _take(key, state, theirs, before, after) for ours, theirs, before, after in names
    }
    for name, factor in _kernel_names(key, resolution):
        _check_kernel(key, name, state.pop(name, None), factor)
    if state:
        raise PickleError(f"{KEYS[key]} has an unknown tensor {next(iter(state))[:80]!r}")
    if isinstance(mean, TensorView):
        tensors["mapping.w_avg"] = mean.value.reshape(-1)
    return Parts(kwargs, tensors, lacks_mean=key != "D" and not isinstance(mean, TensorView))


def _take(key: str, state: dict[str, Tensor], theirs: str, before: int, after: int) -> Tensor:
    tensor = state.pop(theirs, None)
    if tensor is None:
        raise PickleError(f"{KEYS[key]} lacks tensor {theirs!r}")
    shape = list(tensor.shape)
    end = len(shape) - after
    if end < before or shape[:before] + shape[end:] != [1] * (before + after):
        raise PickleError(f"{KEYS[key]} has {theirs} of shape {shape}, with too few 1s around")
    return tensor.reshape(shape[before:end])


def _check_kernel(key: str, name: str, kernel: Tensor | None, factor: int) -> None:
    want = setup_filter(list(TAPS)) * factor
    if kernel is not None and (
        kernel.shape != want.shape or not torch.allclose(kernel.float(), want)
    ):
        raise PickleError(f"{KEYS[key]} has another filter than {list(TAPS)} in {name}")


def _guess(key: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Find a network's arguments from the shapes of its tensors."""
    try:
        return _guess_discriminator(state) if key == "D" else _guess_generator(state)
    except (KeyError, IndexError) as error:
        raise PickleError(f"{KEYS[key]} is not a network of rosinality's: no {error}") from None


def _levels(pattern: str, state: Mapping[str, Tensor]) -> int:
    levels = sum(bool(re.fullmatch(pattern, name)) for name in state)
    if 4 << min(levels, 64) > _MAX_RESOLUTION:
        raise PickleError(f"refused a network of {levels + 1} resolutions")
    return levels


def _guess_generator(state: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = _levels(r"to_rgbs\.\d+\.bias", state)
    widths = {4: state["conv1.conv.weight"].shape[1]}
    for k in range(levels):
        widths[8 << k] = state[f"convs.{2 * k + 1}.conv.weight"].shape[1]
    w_dim = state["style.1.weight"].shape[0]
    return {
        **dict(z_dim=state["style.1.weight"].shape[1], c_dim=0, w_dim=w_dim),
        **dict(img_resolution=4 << levels, img_channels=state["to_rgb1.conv.weight"].shape[1]),
        "mapping_kwargs": {"num_layers": _depth(state)},
        "synthesis_kwargs": _channels("g", widths),
    }


def _guess_discriminator(state: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = _levels(r"convs\.\d+\.skip\.1\.weight", state)
    widths = {4 << levels: state["convs.0.0.weight"].shape[0]}
    for k in range(1, levels + 1):
        widths[4 << levels >> k] = state[f"convs.{k}.conv2.1.weight"].shape[0]
    shape = dict(c_dim=0, img_resolution=4 << levels)
    return {
        **shape,
        "img_channels": state["convs.0.0.weight"].shape[1],
        **_channels("d", widths),
        "epilogue_kwargs": {"mbstd_group_size": 4},
    }


def _channels(key: str, widths: Mapping[int, int]) -> dict[str, int]:
    """Return the two numbers that the feature maps at all resolutions follow from."""
    most, base = max(widths.values()), max(res * width for res, width in widths.items())
    if any(width != min(base // res, most) for res, width in widths.items()):
        raise PickleError(f"{key} has feature maps {list(widths.values())}, which fall irregularly")
    return {"channel_base": base, "channel_max": most}


def write(path: str | os.PathLike[str], networks: Mapping[str, _Network]) -> str:
    """Write G, D and G_ema as a checkpoint; return what its own code will not know of them.

    Raises:
        ValueError: An option has no counterpart there; the message says which.
    """
    content: dict[str, Any] = {}
    for key, net in networks.items():
        _refuse(key, net)
        content[KEYS[key]] = _written(key, net)
    content["latent_avg"] = networks["G_ema"].mapping.w_avg.detach().cpu().clone()
    content["latent_avg_g"] = networks["G"].mapping.w_avg.detach().cpu().clone()
    content[_OWN] = {key: net.init_kwargs for key, net in networks.items()}
    with replacing(path) as file:
        torch.save(content, file)
    return ", ".join(_unknown_there(networks))


def _written(key: str, net: _Network) -> dict[str, Tensor]:
    have = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    resolution = net.init_kwargs["img_resolution"]
    names = _names(key, resolution, 0 if key == "D" else net.mapping.num_layers)
    state = {
        theirs: have[ours].reshape([1] * before + list(have[ours].shape) + [1] * after).clone()
        for ours, theirs, before, after in names
    }
    kernel = setup_filter(list(TAPS))
    return state | {name: kernel * factor for name, factor in _kernel_names(key, resolution)}


def _arguments(net: _Network) -> Iterator[dict[str, Any]]:
    """Yield the arguments of a network, then those of its parts."""
    yield net.init_kwargs
    for part in ("synthesis_kwargs", "block_kwargs", "mapping_kwargs", "epilogue_kwargs"):
        yield net.init_kwargs.get(part) or {}


def _refuse(key: str, net: _Network) -> None:
    """Raise unless rosinality's networks can hold this one's tensors and compute what it does."""
    wanted: dict[str, Any] = dict(c_dim=0, img_channels=3, activation="lrelu")
    wanted |= dict(resample_filter=list(TAPS), architecture="resnet", mbstd_num_channels=1)
    if isinstance(net, Generator):
        width = dict(w_dim=net.z_dim, layer_features=net.w_dim)
        wanted |= dict(**width, architecture="skip", lr_multiplier=0.01, use_noise=True)
    for arguments, (name, only) in itertools.product(_arguments(net), wanted.items()):
        have = arguments.get(name)
        if have is not None and (list(have) if isinstance(have, tuple) else have) != only:
            raise ValueError(
                f"{key} has {name} {have!r}; rosinality's networks know {only!r} alone, "
                "so write .pkl or .safetensors"
            )
    if key != "D" and not hasattr(net.mapping, "w_avg"):
        raise ValueError(f"{key} has no mean of w (w_avg_beta None), which latent_avg takes")


def _unknown_there(networks: Mapping[str, _Network]) -> Iterator[str]:
    """Yield the settings that the tensors do not tell, and the classes there do not take."""
    G, D = (ChainMap(*_arguments(networks[key])) for key in ("G_ema", "D"))
    if G.get("conv_clamp") or D.get("conv_clamp"):
        yield "conv_clamp"
    if (group := D.get("mbstd_group_size", 4)) != 4:
        yield f"mbstd_group_size {group} (4 there)"
    if G.get("channel_max", 512) != 512 or G.get("channel_base", 32768) % 16384:
        yield "feature maps other than its classes' 512 up to 32x32"
