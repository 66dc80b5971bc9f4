"""A trained network for images of another size, or of other channels, that starts out the same.

Growing changes nothing: images are the old ones enlarged, logits those of the images shrunk.
Cutting and other channels change as little as the layers that are left allow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from stylegan2_fewshot.networks import rebuilders
from stylegan2_fewshot.ops import downsample2d
from stylegan2_fewshot.ops.reference import ACTIVATIONS

from .networks import Discriminator, Generator, resolutions_up_to
from .pickles import NetworkPickle

N = TypeVar("N", Generator, Discriminator)
Latents = list[tuple[Tensor, Tensor]]  # batches of z and c

SMALLEST = 8  # D has no layer for colours at 4x4
FIT_STEPS = 200
_SAMPLES = 32  # to fit a layer of colours to
_LESSONS = 128  # batches to train the first block of a cut D on
_LESSONS_PER_STEP = 4
_LR = 0.01
_LOGITS_WEIGHT = 0.1  # of logits, beside the last features; more of it learns the samples by heart
_BATCH = 4
_PIXELS = 1024  # of each sample
_ROUNDS = 20
_LRELU_SLOPE = 0.2
_LRELU_SPREAD = 1 + _LRELU_SLOPE  # lrelu(x) - lrelu(-x) is 1.2 x


@torch.no_grad()
def resized(
    nets: NetworkPickle,
    resolution: int,
    channels: int | None = None,
    *,
    conditions: Callable[[int], Tensor] | None = None,
    fit_steps: int = FIT_STEPS,
    show: Callable[[range], Iterable[int]] = iter,
) -> NetworkPickle:
    """Return networks for images `[channels, resolution, resolution]`.

    Growing adds blocks to G whose ToRGB is 0, and to D blocks that pass on what the layer of
    colours after them made of the shrunk image: both start out as the same function. Cutting drops
    the finest blocks; ToRGB of the last of those left and the layer of colours of D are fitted to
    images of G, so that images and features differ least from those of the whole network. Then the
    first block left of D is trained for some steps to do for shrunk images what the whole D does.

    Args:
        nets: Networks of one architecture; they stay as they are.
        resolution: A power of two from 8 on.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); as they are by default.
        conditions: Gives n labels `[n, c_dim]` of images to fit to; by default one-hot ones.
        fit_steps: Steps of that training; 0 for none.
        show: Takes the loop over them, as a progress bar does.

    Raises:
        ValueError: A network is of a kind that cannot be resized.
    """
    _refuse_unfit(nets, resolution)
    G, D, G_ema = copy.deepcopy(nets.G), copy.deepcopy(nets.D), copy.deepcopy(nets.G_ema)
    if resolution < G.img_resolution:
        latents = _latents(G_ema, conditions, _SAMPLES)
        cut = _cut_discriminator(D, resolution, G_ema, latents)
        if fit_steps:
            lessons = _latents(G_ema, conditions, _LESSONS * _BATCH)
            _teach(cut, D, G_ema, lessons, show(range(fit_steps)), fit_steps)
        D = cut
        G = _cut_generator(G, resolution, latents)
        G_ema = _cut_generator(G_ema, resolution, latents)
    while G.img_resolution < resolution:
        G, G_ema, D = _doubled(G), _doubled(G_ema), _with_first_block(_doubled(D), D)
    if channels is not None and channels != G.img_channels:
        G, D, G_ema = (
            _recoloured(G, channels),
            _recoloured(D, channels),
            _recoloured(G_ema, channels),
        )
    return replace(nets, G=G, D=D, G_ema=G_ema, training_set_kwargs=None)


def _refuse_unfit(nets: NetworkPickle, resolution: int) -> None:
    resolutions_up_to(resolution)
    if resolution < SMALLEST:
        raise ValueError(f"the size must be {SMALLEST} at least, got {resolution}")
    if resolution == nets.G.img_resolution:
        return
    if (architecture := nets.G.synthesis.b4.architecture) != "skip":
        raise ValueError(f"only generators of architecture skip can be resized, not {architecture}")
    activation = getattr(nets.D, f"b{nets.D.img_resolution}").conv0.activation
    if activation != "lrelu":
        raise ValueError(f"only discriminators with lrelu can be resized, not {activation}")


def _latents(G: Generator, conditions: Callable[[int], Tensor] | None, count: int) -> Latents:
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(count, G.z_dim, generator=rng)
    if conditions:
        c = conditions(count)
    else:  # one-hot, or empty
        classes = torch.randint(max(G.c_dim, 1), [count], generator=rng)
        c = torch.eye(max(G.c_dim, 1))[classes][:, : G.c_dim]
    return list(zip(z.split(_BATCH), c.split(_BATCH), strict=True))


def _rebuilt(net: N, **changed: Any) -> N:
    """Return a network with other arguments, and the tensors that have a place in it."""
    kwargs = {**net.init_kwargs, **changed}
    if isinstance(net, Discriminator):  # frozen layers are of the run that froze them
        blocks = {**(kwargs.get("block_kwargs") or {}), "freeze_layers": 0}
        kwargs["block_kwargs"] = blocks
    made = {key: kwargs.pop(key) for key in rebuilders() if key in kwargs}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # G and its average get the same new layers
        new = type(net)(**kwargs)
        for key, arguments in made.items():
            rebuilders()[key].rebuild(new, **arguments)
    kept = {name: t for name, t in net.state_dict().items() if _fits(new.state_dict(), name, t)}
    new.load_state_dict(kept, strict=False)
    return new.train(net.training).requires_grad_(False)


def _fits(state: dict[str, Tensor], name: str, tensor: Tensor) -> bool:
    return name in state and state[name].shape == tensor.shape


def _doubled(net: N) -> N:
    net = _rebuilt(net, img_resolution=2 * net.img_resolution)
    if isinstance(net, Generator):
        getattr(net.synthesis, f"b{net.img_resolution}").torgb.weight.zero_()
    return net


def _with_first_block(D: Discriminator, before: Discriminator) -> Discriminator:
    """Make the first block of D hand on what `before` makes of the colours of a shrunk image.

    Each colour x goes through the block as lrelu(x) and lrelu(-x), whose difference is linear in
    x, so that the block's last layer can do what `before.fromrgb` did, after the shrinking.
    """
    block, old = (getattr(net, f"b{net.img_resolution}") for net in (D, before))
    if block.architecture == "skip":  # colours go by the block
        block.conv1.weight.zero_()
        return D
    colours, width = D.img_channels, block.conv0.weight.shape[0]
    if width < 2 * colours:
        raise ValueError(
            f"growing to {D.img_resolution} pixels needs {2 * colours} feature maps at that "
            f"resolution, the network would have {width}"
        )
    sign = torch.cat([torch.eye(colours), -torch.eye(colours)])  # [2 colours, colours]
    difference = sign.t() / (_LRELU_SPREAD * ACTIVATIONS["lrelu"].gain)
    _set(block.fromrgb, sign)
    _set(block.conv0, sign @ difference)
    end_gain = math.sqrt(2) if block.architecture == "resnet" else 1  # of a residual sum
    effect = old.fromrgb.weight[:, :, 0, 0] * old.fromrgb.weight_gain
    block.conv1.weight.zero_()
    _set(block.conv1, effect @ difference * end_gain)
    block.conv1.bias.copy_(old.fromrgb.bias * end_gain)
    if block.architecture == "resnet":
        block.skip.weight.zero_()
    return D


def _set(layer: Any, matrix: Tensor) -> None:
    """Let the first outputs of a convolution be `matrix` times its first inputs."""
    outputs, inputs = matrix.shape
    layer.weight[:outputs] = 0
    middle = layer.weight.shape[2] // 2
    layer.weight[:outputs, :inputs, middle, middle] = matrix / layer.weight_gain
    layer.bias[:outputs] = 0


def _cut_generator(G: Generator, resolution: int, latents: Latents) -> Generator:
    """Drop the finest blocks of G, and fit the last ToRGB left to its shrunk images."""
    cut = _rebuilt(G, img_resolution=resolution)
    layer = getattr(cut.synthesis, f"b{resolution}").torgb
    batches = []
    for z, c in latents:
        with _inputs_of(layer) as inputs:
            image = cut(z, c, noise_mode="const")
        x, w = inputs
        styles = layer.affine(w) * layer.weight_gain
        error = _shrunk(G(z, c, noise_mode="const"), resolution) - image
        batches.append(_some_pixels(x.float() * styles[:, :, None, None], error))
    features, errors = map(torch.cat, zip(*batches, strict=True))
    rows = _with_constant(features)
    step = torch.linalg.solve(_damped(rows.t() @ rows), rows.t() @ errors.double()).t().float()
    layer.weight[:, :, 0, 0] += step[:, :-1]
    layer.bias += step[:, -1]
    return cut


def _cut_discriminator(
    D: Discriminator, resolution: int, G: Generator, latents: Latents
) -> Discriminator:
    """Drop the first blocks of D, and fit the new layer of colours to what came out of them.

    The layer is a linear map with an activation: Gauss-Newton, from 0.
    """
    cut = _rebuilt(D, img_resolution=resolution)
    batches = []
    for z, c in latents:
        images = G(z, c, noise_mode="const")
        with _inputs_of(getattr(D, f"b{resolution}").conv0) as inputs:
            D(images, c)
        batches.append(_some_pixels(_shrunk(images, resolution), inputs[0].float()))
    colours, wanted = map(torch.cat, zip(*batches, strict=True))
    layer = getattr(cut, f"b{resolution}").fromrgb
    gain = ACTIVATIONS["lrelu"].gain
    rows = _with_constant(colours)
    squares = (rows[:, :, None] * rows[:, None]).flatten(1)  # [M, I^2]
    matrix = torch.zeros(wanted.shape[1], rows.shape[1], dtype=torch.float64)
    for _ in range(_ROUNDS):
        y = rows @ matrix.t()
        slopes = torch.where(y >= 0, gain, gain * _LRELU_SLOPE).double()
        A = (slopes.square().t() @ squares).unflatten(1, [rows.shape[1]] * 2)
        b = (slopes * (wanted - slopes * y)).t() @ rows
        matrix += torch.linalg.solve(_damped(A), b[..., None])[..., 0]
    layer.weight[:, :, 0, 0] = matrix[:, :-1] / layer.weight_gain
    layer.bias.copy_(matrix[:, -1])
    return cut


def _teach(
    cut: Discriminator,
    D: Discriminator,
    G: Generator,
    latents: Latents,
    steps: Iterable[int],
    total: int,
) -> None:
    """Train the first block of a cut D until its last features and logits are near those of D.

    The layers behind it stay as they are: what they need of the block is what is asked of it.
    """
    block: Any = getattr(cut, f"b{cut.img_resolution}")
    adam = torch.optim.Adam(block.requires_grad_(True).parameters(), betas=(0.9, 0.99))
    lessons = [_lesson(cut.img_resolution, D, G(z, c, noise_mode="const"), c) for z, c in latents]
    features, logits = (torch.cat([lesson[i] for lesson in lessons]).var() for i in (2, 3))
    rng = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for step in steps:
            adam.param_groups[0]["lr"] = _LR * min(1, 2 * (1 - step / total))
            adam.zero_grad(set_to_none=True)
            for index in torch.randint(len(lessons), [_LESSONS_PER_STEP], generator=rng):
                img, c, *wanted = lessons[index]
                errors = [F.mse_loss(*p) for p in zip(_seen(cut, img, c), wanted, strict=True)]
                (errors[0] / features + _LOGITS_WEIGHT * errors[1] / logits).backward()
            adam.step()
    block.requires_grad_(False)


def _lesson(resolution: int, D: Discriminator, img: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """Return images shrunk, their labels, and what D sees in the whole ones."""
    return _shrunk(img, resolution), c, *_seen(D, img, c)


def _seen(D: Discriminator, img: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last features of D, before its epilogue, and its logits."""
    with _inputs_of(D.b4) as inputs:
        logits = D(img, c, force_fp32=True)
    return inputs[0].float(), logits


def _shrunk(images: Tensor, resolution: int) -> Tensor:
    """Shrink images by the networks' own filter."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    while images.shape[2] > resolution:
        images = downsample2d(images, taps.outer(taps) / 64)
    return images


@contextmanager
def _inputs_of(layer: torch.nn.Module) -> Iterator[list[Any]]:
    """Collect what a layer is called with in the meantime."""
    seen: list[Any] = []
    handle = layer.register_forward_pre_hook(lambda layer, args: seen.extend(args))
    try:
        yield seen
    finally:
        handle.remove()


def _some_pixels(*maps: Tensor) -> list[Tensor]:
    """Return the same few pixels of maps `[N, C, H, W]` as rows `[M, C]`."""
    high, wide = maps[0].shape[2:]
    rng = torch.Generator().manual_seed(0)
    chosen = torch.randperm(high * wide, generator=rng)[:_PIXELS]
    return [m.flatten(2)[:, :, chosen].transpose(1, 2).flatten(0, 1) for m in maps]


def _with_constant(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones(len(rows), 1)], 1).double()


def _damped(A: Tensor) -> Tensor:
    """Return normal equations `[..., I, I]` that hold back where inputs hardly differ."""
    mean = A.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return A + 1e-4 * mean * torch.eye(A.shape[-1])


def _recoloured(net: N, channels: int) -> N:
    """Return a network for images of other channels: colours are averaged or repeated.

    Transparency that is added is nowhere, and what is dropped counts as none.
    """
    new = _rebuilt(net, img_channels=channels)
    before = net.img_channels
    for name, layer in net.named_modules():
        other: Any = new.get_submodule(name)
        if name.endswith("torgb"):
            weight = _channel_matrix(before, channels) @ layer.weight[:, :, 0, 0]
            other.weight.copy_(weight[:, :, None, None])
            other.bias.copy_(_channel_matrix(before, channels) @ layer.bias)
        elif name.endswith("fromrgb"):
            weight = layer.weight[:, :, 0, 0] * layer.weight_gain
            if before == 4 and channels < 4:
                other.bias.copy_(layer.bias + weight[:, 3])
            weight = weight @ _channel_matrix(channels, before) / other.weight_gain
            other.weight.copy_(weight[:, :, None, None])
    if isinstance(new, Generator) and channels == 4:  # not earlier: enlarging darkens the border
        getattr(new.synthesis, f"b{new.img_resolution}").torgb.bias[3] = 1
    return new


def _channel_matrix(before: int, after: int) -> Tensor:
    """Return what turns the channels of an image into others, `[after, before]`."""
    colour = {1: torch.ones(3, 1), 3: torch.eye(3), 4: torch.eye(3, 4)}[before]
    if after == 1:
        return colour.mean(0, keepdim=True)
    return torch.cat([colour, torch.zeros(1, before)])[:after]
