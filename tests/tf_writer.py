"""Pickles in the layout of StyleGAN2's TensorFlow code, made from this project's networks."""

from __future__ import annotations

import io
import math
import pickle
import sys
import types
from unittest import mock

import numpy as np


class Network:
    """As much of `dnnlib.tflib.network.Network` as a pickle holds."""

    def __init__(self, static_kwargs, variables, components=()):
        self.__dict__ = {
            "version": 4,
            "name": "N",
            "static_kwargs": static_kwargs,
            "components": dict(components),
            "build_module_src": "raise SystemExit('the text of a module was run')",
            "build_func_name": "f",
            "variables": list(variables.items()),
        }


Network.__module__ = "dnnlib.tflib.network"


def dumps(networks, protocol=3):
    """Pickle `Network` objects under the module's name that TensorFlow files have."""
    names = ("dnnlib", "dnnlib.tflib", "dnnlib.tflib.network")
    modules = {name: types.ModuleType(name) for name in names}
    modules[names[-1]].Network = Network
    stream = io.BytesIO()
    with mock.patch.dict(sys.modules, modules):
        pickle.dump(networks, stream, protocol=protocol)
    return stream.getvalue()


def tf_pickle(nets, protocol=3):
    """Return a file with the tuple (G, D, Gs) of a `NetworkPickle`."""
    return dumps((generator(nets.G), discriminator(nets.D), generator(nets.G_ema)), protocol)


def arrays(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def hwio(weight):
    return weight.transpose(2, 3, 1, 0)


def generator(G):
    own, t = G.init_kwargs, arrays(G)
    synthesis, mapping = own["synthesis_kwargs"], own["mapping_kwargs"]
    kwargs = dict(
        latent_size=own["z_dim"],
        dlatent_size=own["w_dim"],
        label_size=own["c_dim"],
        resolution=own["img_resolution"],
        num_channels=own["img_channels"],
        mapping_layers=mapping["num_layers"],
        mapping_fmaps=own["w_dim"],
        label_fmaps=own["w_dim"],
        fmap_base=synthesis["channel_base"] // 2,
        fmap_max=synthesis["channel_max"],
        style_mixing_prob=0.9,
    )
    parts = {"mapping": {}, "synthesis": {}}
    for i in range(mapping["num_layers"]):
        parts["mapping"][f"Dense{i}/weight"] = t[f"mapping.fc{i}.weight"].T
        parts["mapping"][f"Dense{i}/bias"] = t[f"mapping.fc{i}.bias"]
    if own["c_dim"]:
        parts["mapping"]["LabelEmbed/weight"] = t["mapping.embed.weight"].T
        parts["mapping"]["LabelEmbed/bias"] = t["mapping.embed.bias"]
    parts["synthesis"]["4x4/Const/const"] = t["synthesis.b4.const"][None]
    names = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB"}
    for name in t:
        _, block, layer, *leaf = [*name.split("."), "", ""]
        if layer in names and leaf[0] == "weight":
            res = int(block[1:])
            place = "Conv" if (res, layer) == (4, "conv1") else names[layer]
            parts["synthesis"] |= layer_arrays(t, f"synthesis.{block}.{layer}", res, place)
    components = {name: Network({}, arrays) for name, arrays in parts.items()}
    return Network(kwargs, {"lod": np.float32(0), "dlatent_avg": t["mapping.w_avg"]}, components)


def layer_arrays(t, ours, res, place):
    weight = t[f"{ours}.weight"]
    flipped = weight[:, :, ::-1, ::-1] if place == "Conv0_up" else weight
    found = {
        "weight": hwio(flipped),
        "bias": t[f"{ours}.bias"],
        "mod_weight": t[f"{ours}.affine.weight"].T,
        "mod_bias": t[f"{ours}.affine.bias"] - np.float32(1),
    }
    named = {f"{res}x{res}/{place}/{leaf}": array for leaf, array in found.items()}
    if place != "ToRGB":
        named[f"{res}x{res}/{place}/noise_strength"] = t[f"{ours}.noise_strength"][()]  # a number
        number = 2 * int(math.log2(res)) - (5 if place == "Conv0_up" else 4)
        named[f"noise{number}"] = t[f"{ours}.noise_const"][None, None]
    return named


def discriminator(D):
    own, t = D.init_kwargs, arrays(D)
    epilogue, mapping = own.get("epilogue_kwargs", {}), own.get("mapping_kwargs", {})
    kwargs = dict(
        label_size=own["c_dim"],
        resolution=own["img_resolution"],
        num_channels=own["img_channels"],
        fmap_base=own["channel_base"] // 2,
        fmap_max=own["channel_max"],
        mbstd_group_size=epilogue.get("mbstd_group_size", 4),
        mbstd_num_features=1,
    )
    if own["c_dim"]:
        width = t["b4.out.bias"].size
        layers = mapping.get("num_layers", 8)
        kwargs |= dict(mapping_fmaps=width, mapping_layers=layers, mapping_lrmul=0.01)
    ends = {"b4.conv": "4x4/Conv", "b4.fc": "4x4/Dense0", "b4.out": "Output"}
    ends["mapping.embed"] = "LabelEmbed"
    places = {"fromrgb": "FromRGB", "conv0": "Conv0", "conv1": "Conv1_down", "skip": "Skip"}
    variables = {}
    for name, array in t.items():
        ours, _, leaf = name.rpartition(".")
        block, _, layer = ours.partition(".")
        if leaf == "resample_filter":
            continue
        if ours in ends:
            place = ends[ours]
        elif block == "mapping":
            place = layer.replace("fc", "Mapping")
        else:
            place = f"{block[1:]}x{block[1:]}/{places[layer]}"
        if leaf == "weight":
            array = hwio(array) if array.ndim == 4 else array.T
        variables[f"{place}/{leaf}"] = array
    return Network(kwargs, variables)
