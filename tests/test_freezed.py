"""Freeze-D: which layers are kept."""

from __future__ import annotations

import pytest
import torch

from stylegan2_fewshot.methods.freezed import FreezeD, layers_from_image
from stylegan2_fewshot.plugin import Run

RESNET = ["b16.fromrgb", "b16.conv0", "b16.conv1", "b16.skip", "b8.conv0", "b8.conv1", "b8.skip"]
SKIP = ["b16.fromrgb", "b16.conv0", "b16.conv1", "b8.fromrgb", "b8.conv0", "b8.conv1", "b4.fromrgb"]
ORIG = ["b16.fromrgb", "b16.conv0", "b16.conv1", "b8.conv0", "b8.conv1"]
ALWAYS = ["b4.conv", "b4.fc", "b4.out", "mapping.fc0", "mapping.embed"]


def discriminator(layers):
    """Build a module whose parameters are named like those of D, in reverse order."""
    net = torch.nn.Module()
    for name in reversed(layers + ALWAYS):
        block, layer = name.split(".")
        if not hasattr(net, block):
            net.add_module(block, torch.nn.Module())
            net.get_submodule(block).register_buffer("resample_filter", torch.ones(2))
        net.get_submodule(block).add_module(layer, torch.nn.Linear(1, 1))
    return net


def trained(D, freezed):
    plugin = FreezeD(freezed=freezed)
    plugin.setup(Run(torch.nn.Identity(), D))
    names = [name for name, _ in D.named_parameters()]
    return {name.rpartition(".")[0] for name in names if plugin.trainable("D", name)}


@pytest.mark.parametrize("layers", [RESNET, SKIP, ORIG])
def test_layers_are_counted_from_the_image(layers):
    D = discriminator(layers)
    counted = [name for name in layers if not name.startswith("b4.")]
    assert layers_from_image(D.state_dict()) == [f"{name}." for name in counted]
    for n in range(len(counted) + 1):
        assert trained(D, n) == set(layers + ALWAYS) - set(counted[:n])


def test_blocks_come_in_order_of_resolution_not_of_name():
    names = ["b8.conv0.weight", "b1024.conv0.weight", "b128.conv0.weight"]
    assert layers_from_image(names) == ["b1024.conv0.", "b128.conv0.", "b8.conv0."]


def test_layers_that_the_source_froze_count_although_they_are_buffers():
    D = discriminator(ORIG)
    frozen = D.b16.fromrgb
    for name, value in list(frozen.named_parameters()):
        delattr(frozen, name)
        frozen.register_buffer(name, value.detach())
    assert trained(D, 2) == set(ORIG + ALWAYS) - {"b16.fromrgb", "b16.conv0"}


def test_generator_is_never_frozen():
    plugin = FreezeD(freezed=5)
    plugin.setup(Run(torch.nn.Identity(), discriminator(ORIG)))
    assert plugin.trainable("G", "b16.conv0.weight")
    assert not plugin.trainable("D", "b16.conv0.weight")


def test_refuses_negative_and_too_many():
    with pytest.raises(ValueError, match="--freezed must not be negative, got -1"):
        FreezeD(freezed=-1)
    with pytest.raises(ValueError, match="--freezed=6: this D has 5 layers"):
        FreezeD(freezed=6).setup(Run(torch.nn.Identity(), discriminator(ORIG)))
