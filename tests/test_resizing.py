"""Growing, cutting and recolouring networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from stylegan2_fewshot.ops import downsample2d, upsample2d
from tools import resize
from training import pickles, resizing
from training.networks import Discriminator, Generator
from training.pickles import NetworkPickle

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
FILTER = TAPS.outer(TAPS) / 64
WIDTHS = {"channel_base": 512, "channel_max": 16}


def build(
    path: Path,
    size: int = 16,
    c_dim: int = 0,
    channels: int = 3,
    architecture: str = "resnet",
    generator: str = "skip",
    **block: Any,
) -> Path:
    torch.manual_seed(1)
    shape = {"c_dim": c_dim, "img_resolution": size, "img_channels": channels}
    small = {"num_layers": 2}
    synthesis = {**WIDTHS, "architecture": generator}
    G, G_ema = (
        Generator(8, w_dim=8, **shape, mapping_kwargs=small, synthesis_kwargs=synthesis)
        for _ in range(2)
    )
    D = Discriminator(**shape, **WIDTHS, architecture=architecture, block_kwargs=block)
    for name, parameter in [
        *G.named_parameters(),
        *G_ema.named_parameters(),
        *D.named_parameters(),
    ]:
        if name.endswith(("bias", "noise_strength")):
            parameter.data += torch.randn_like(parameter) / 4
    pickles.save(path, G=G, D=D, G_ema=G_ema, training_set_kwargs={"resolution": size})
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(resize.main, [str(argument) for argument in arguments])


def resized(source: Path, *options: str) -> tuple[NetworkPickle, NetworkPickle]:
    target = source.with_name("out.pkl")
    result = run(source, target, *options)
    assert result.exit_code == 0, result.output
    return pickles.load(source), pickles.load(target)


def images(G: Any, count: int = 4, seed: int = 2) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 8, generator=rng)
    return G(z, labels(G, count), noise_mode="const")


def labels(net: Any, count: int) -> torch.Tensor:
    return torch.eye(max(net.c_dim, 1))[torch.arange(count) % max(net.c_dim, 1)][:, : net.c_dim]


@pytest.mark.parametrize("c_dim", [0, 3])
def test_a_grown_generator_makes_the_old_images_enlarged(tmp_path: Path, c_dim: int) -> None:
    old, new = resized(build(tmp_path / "net.pkl", c_dim=c_dim), "--size=64")
    for key in ("G", "G_ema"):
        wanted = upsample2d(upsample2d(images(getattr(old, key)), FILTER), FILTER)
        torch.testing.assert_close(images(getattr(new, key)), wanted)
    assert new.G.synthesis.b64.conv0.weight.equal(new.G_ema.synthesis.b64.conv0.weight)
    assert new.G.synthesis.b64.conv0.weight.std() > 0.9


@pytest.mark.parametrize("architecture", ["resnet", "skip", "orig"])
@pytest.mark.parametrize(("c_dim", "channels"), [(0, 3), (3, 1), (0, 4)])
def test_a_grown_discriminator_sees_the_image_shrunk(
    tmp_path: Path, architecture: str, c_dim: int, channels: int
) -> None:
    source = build(tmp_path / "net.pkl", c_dim=c_dim, channels=channels, architecture=architecture)
    old, new = resized(source, "--size=64")
    big = torch.randn(4, channels, 64, 64)
    small = downsample2d(downsample2d(big, FILTER), FILTER)
    c = labels(old.D, 4)
    torch.testing.assert_close(new.D(big, c), old.D(small, c), atol=1e-4, rtol=1e-4)


def test_every_new_layer_learns(tmp_path: Path) -> None:
    _, new = resized(build(tmp_path / "net.pkl"), "--size=32")
    for net in (new.G.requires_grad_(True), new.D.requires_grad_(True)):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
        for _ in range(2):  # the first step takes ToRGB and the like away from 0
            optimizer.zero_grad()
            img = images(new.G) if net is new.G else torch.randn(4, 3, 32, 32)
            new.D(img, labels(new.D, 4)).sum().backward()
            optimizer.step()
        block = net.synthesis.b32 if net is new.G else net.b32
        for name, parameter in block.named_parameters():
            assert parameter.grad.abs().max() > 0, name


def test_frozen_layers_are_free_after_resizing(tmp_path: Path) -> None:
    _, new = resized(build(tmp_path / "net.pkl", freeze_layers=3), "--size=32")
    assert "b16.conv0.weight" in dict(new.D.named_parameters())


def test_a_cut_network_is_fitted_to_the_whole_one(tmp_path: Path) -> None:
    source = build(tmp_path / "net.pkl", size=32)
    old, new = resized(source, "--size=16", "--fit-steps=10")
    wanted = downsample2d(images(old.G_ema, 32), FILTER)
    loss = (images(new.G_ema, 32) - wanted).square().mean()
    state = new.G_ema.state_dict()
    state["synthesis.b16.torgb.weight"] = old.G_ema.synthesis.b16.torgb.weight
    state["synthesis.b16.torgb.bias"] = old.G_ema.synthesis.b16.torgb.bias
    new.G_ema.load_state_dict(state)
    assert loss < 0.8 * (images(new.G_ema, 32) - wanted).square().mean()
    whole, cut = old.D(images(old.G_ema, 32), None), new.D(wanted, None)
    assert (whole - cut).square().mean() < 0.5 * (whole - new.D(-wanted, None)).square().mean()


def test_a_cut_discriminator_is_trained_to_see_what_the_whole_one_sees(tmp_path: Path) -> None:
    source = build(tmp_path / "net.pkl", size=16)
    nets = pickles.load(source)
    untrained, trained = (resizing.resized(nets, 8, fit_steps=n).D for n in (0, 30))
    img = images(nets.G_ema, 32)
    whole, small = nets.D(img, None), downsample2d(img, FILTER)
    errors = [(net(small, None) - whole).square().mean() for net in (untrained, trained)]
    assert errors[1] < 0.5 * errors[0]
    assert untrained.b4.conv.weight.equal(trained.b4.conv.weight)
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    again = resizing.resized(nets, 8, fit_steps=30).D
    assert again.b8.conv0.weight.equal(trained.b8.conv0.weight)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 4), (1, 3), (1, 4), (4, 3), (4, 1)])
def test_channels(tmp_path: Path, before: int, after: int) -> None:
    old, new = resized(build(tmp_path / "net.pkl", channels=before), f"--channels={after}")
    one, two = images(old.G_ema), images(new.G_ema)
    colour, other = one[:, :3], two[:, :3]
    grey = after == 1
    torch.testing.assert_close(
        other, colour.mean(1, keepdim=True) if grey else colour.expand_as(other)
    )
    if after == 4:
        assert (two[:, 3] == 1).all()
    # A grey image and an opaque one mean the same to D before and after.
    plain = torch.randn(4, 1, 16, 16)
    old_img, new_img = (_with_channels(plain, n) for n in (before, after))
    torch.testing.assert_close(new.D(new_img, None), old.D(old_img, None), atol=1e-4, rtol=1e-4)


def _with_channels(grey: torch.Tensor, channels: int) -> torch.Tensor:
    img = grey.expand(-1, min(channels, 3), -1, -1)
    return torch.cat([img, torch.ones_like(grey)], 1) if channels == 4 else img


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ({}, [], "give --size, --channels or both"),
        ({}, ["--size=48"], "--size=48: img_resolution must be a power of two"),
        ({}, ["--size=4"], "Invalid value for '--size'"),
        ({}, ["--size=256"], "needs 6 feature maps at that resolution"),
        ({"generator": "resnet"}, ["--size=32"], "only generators of architecture skip"),
        ({"activation": "relu"}, ["--size=32"], "only discriminators with lrelu"),
    ],
)
def test_what_cannot_be_resized(
    tmp_path: Path, kind: dict[str, Any], options: list[str], message: str
) -> None:
    result = run(build(tmp_path / "net.pkl", **kind), tmp_path / "out.pkl", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "out.pkl").exists()
