"""Generator and discriminator of StyleGAN2, with the tensor names of the original's pickles.

Karras et al., CVPR 2020 (arXiv 1912.04958). Learning rates are equalised: weights are stored with
unit variance and scaled at run time.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_fewshot.ops import (
    bias_act,
    conv2d_resample,
    downsample2d,
    modulated_conv2d,
    setup_filter,
    upsample2d,
)
from stylegan2_fewshot.ops.activations import ACTIVATIONS
from stylegan2_fewshot.ops.backend import has_native, reduced_dtype
from stylegan2_fewshot.ops.native import LANES

TAPS = (1, 3, 3, 1)
WIDE = 64  # channels from which on PyTorch's float32 is faster channels-last on the CPU
_HALF = math.sqrt(0.5)  # keeps the variance of a residual sum


class Network(nn.Module):
    """A module that remembers its constructor's arguments by name, as `init_kwargs`."""

    init_kwargs: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Network:
        self = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        try:
            named = dict(signature.bind_partial(self, *args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}") from None
        del named["self"]
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                named.update(named.pop(name, {}))
        object.__setattr__(self, "init_kwargs", named)
        return self


def normalize_2nd_moment(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Scale vectors along `dim` to a mean square of 1."""
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + eps)


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Return the number of feature maps at a resolution."""
    return min(channel_base // resolution, channel_max)


def resolutions_up_to(img_resolution: int) -> list[int]:
    """Return 4, 8, ..., img_resolution; ValueError unless that is a power of two from 4 on."""
    levels = img_resolution.bit_length() - 1
    if img_resolution < 4 or 2**levels != img_resolution:
        raise ValueError(f"img_resolution must be a power of two >= 4, got {img_resolution}")
    return [2**level for level in range(2, levels + 1)]


def _is_reduced(resolution: int, img_resolution: int, num_fp16_res: int) -> bool:
    """Return whether a block is among the `num_fp16_res` finest; 4x4 never is."""
    return resolution >= 8 and resolution * 2**num_fp16_res > img_resolution


def _drawn(outputs: int, inputs: int, kernel_size: int, channels_last: bool) -> Tensor:
    """Draw the weight `[outputs, inputs, k, k]` of a convolution."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.randn(outputs, inputs, kernel_size, kernel_size).to(memory_format=layout)


def _activated(layer: Any, x: Tensor, gain: float) -> Tensor:
    """Return what a convolution's bias, activation and clamp make of its output."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    clamp = None if layer.conv_clamp is None else layer.conv_clamp * gain
    gain = ACTIVATIONS[layer.activation].gain * gain
    return bias_act(x, bias, act=layer.activation, gain=gain, clamp=clamp)


class FullyConnectedLayer(Network):
    """A dense layer `[N, in] -> [N, out]` with activation."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1,
        bias_init: float = 0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        start = torch.full([out_features], float(bias_init))
        self.bias = nn.Parameter(start) if bias else None
        self.bias_gain = lr_multiplier
        self.weight_gain = lr_multiplier / math.sqrt(in_features)

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        bias = self.bias if self.bias is None or self.bias_gain == 1 else self.bias * self.bias_gain
        bias = None if bias is None else bias.to(x.dtype)
        if self.activation == "linear":
            return nn.functional.linear(x, weight, bias)
        return bias_act(x @ weight.t(), bias, act=self.activation)


class Conv2dLayer(Network):
    """A convolution with optional resampling, activation and clamp."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] = TAPS,
        conv_clamp: float | None = None,
        channels_last: bool = False,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.register_buffer("resample_filter", setup_filter(list(resample_filter)))
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        weight = _drawn(out_channels, in_channels, kernel_size, channels_last)
        zeros = torch.zeros(out_channels) if bias else None
        if trainable:
            self.weight = nn.Parameter(weight)
            self.bias = None if zeros is None else nn.Parameter(zeros)
        else:  # a frozen layer's tensors are buffers, as in the original
            self.register_buffer("weight", weight)
            self.register_buffer("bias", zeros)

    def forward(self, x: Tensor, gain: float = 1) -> Tensor:
        x = conv2d_resample(
            x,
            (self.weight * self.weight_gain).to(x.dtype),
            f=self.resample_filter,
            up=self.up,
            down=self.down,
            padding=self.padding,
            flip_weight=self.up == 1,
        )
        return _activated(self, x, gain)


class MappingNetwork(Network):
    """Map latents `z [N, z_dim]` and labels `c [N, c_dim]` to `ws [N, num_ws, w_dim]`.

    Without `num_ws` the result is `[N, w_dim]`; with `z_dim` 0 the label alone is mapped.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = 0.995,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = num_layers, w_avg_beta
        embedded = 0
        if c_dim > 0:
            embedded = w_dim if embed_features is None else embed_features
            self.embed = FullyConnectedLayer(c_dim, embedded)
        hidden = w_dim if layer_features is None else layer_features
        widths = [z_dim + embedded, *[hidden] * (num_layers - 1), w_dim]
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            layer = FullyConnectedLayer(
                before, after, activation=activation, lr_multiplier=lr_multiplier
            )
            setattr(self, f"fc{index}", layer)
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,
    ) -> Tensor:
        x = torch.cat(list(self._inputs(z, c)), 1)
        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)
        if self.training and not skip_w_avg_update and hasattr(self, "w_avg"):
            self.w_avg.copy_(x.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        if self.num_ws is None:
            return x
        ws = x[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi == 1:
            return ws
        if not hasattr(self, "w_avg"):
            raise ValueError(
                "truncation_psi must be 1 for a network without a mean of w (w_avg_beta None), "
                f"got {truncation_psi}"
            )
        near = self.w_avg.lerp(ws[:, :truncation_cutoff], truncation_psi)
        return (
            near if truncation_cutoff is None else torch.cat([near, ws[:, truncation_cutoff:]], 1)
        )

    def _inputs(self, z: Tensor | None, c: Tensor | None) -> Iterator[Tensor]:
        for value, size, name in ((z, self.z_dim, "z"), (c, self.c_dim, "c")):
            if size == 0:
                continue
            if value is None or value.ndim != 2 or value.shape[1] != size:
                got = None if value is None else list(value.shape)
                raise ValueError(f"{name} must have shape [N, {size}], got {got}")
            value = value.float()
            yield normalize_2nd_moment(self.embed(value) if name == "c" else value)


class SynthesisLayer(Network):
    """A modulated convolution with noise, bias and activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = TAPS,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.resolution, self.up, self.padding = resolution, up, kernel_size // 2
        self.activation, self.use_noise, self.conv_clamp = activation, use_noise, conv_clamp
        self.register_buffer("resample_filter", setup_filter(list(resample_filter)))
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(_drawn(out_channels, in_channels, kernel_size, channels_last))
        if use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        noise_mode: str = "random",
        fused_modconv: bool = True,
        gain: float = 1,
    ) -> Tensor:
        x = modulated_conv2d(
            x,
            self.weight,
            self.affine(w),
            noise=self._noise(noise_mode, x),
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,
            fused_modconv=fused_modconv,
        )
        return _activated(self, x, gain)

    def _noise(self, mode: str, x: Tensor) -> Tensor | None:
        if mode not in ("random", "const", "none"):
            raise ValueError(f"noise_mode must be random, const or none, got {mode!r}")
        if not self.use_noise or mode == "none":
            return None
        if mode == "const":
            return self.noise_const * self.noise_strength
        shape = [x.shape[0], 1, self.resolution, self.resolution]
        return torch.randn(shape, device=x.device) * self.noise_strength


class ToRGBLayer(Network):
    """A modulated 1x1 convolution to image channels, not demodulated."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        kernel_size: int = 1,
        conv_clamp: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(_drawn(out_channels, in_channels, kernel_size, channels_last))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor, w: Tensor, fused_modconv: bool = True) -> Tensor:
        styles = self.affine(w) * self.weight_gain
        x = modulated_conv2d(x, self.weight, styles, demodulate=False, fused_modconv=fused_modconv)
        return bias_act(x, self.bias.to(x.dtype), clamp=self.conv_clamp)


def _precision(
    use_fp16: bool, force_fp32: bool, channels_last: bool, device: torch.device, channels: int
) -> dict[str, Any]:
    """Return the arguments of `Tensor.to` for a block's activations."""
    dtype = reduced_dtype(device) if use_fp16 and not force_fp32 else torch.float32
    reduced = dtype is not torch.float32
    if device.type == "cpu":  # reduced precision and our kernels are fast in this layout alone
        last = reduced or channels >= (LANES if has_native() else WIDE)
    else:
        last = reduced and channels_last
    return dict(dtype=dtype, memory_format=torch.channels_last if last else torch.contiguous_format)


class SynthesisBlock(Network):
    """One resolution of the generator: two layers and their contribution to the image."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: str = "skip",
        resample_filter: Sequence[float] = TAPS,
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        **layer_kwargs: Any,
    ) -> None:
        if architecture not in ("orig", "skip", "resnet"):
            raise ValueError(f"architecture must be orig, skip or resnet, got {architecture!r}")
        super().__init__()
        self.in_channels, self.architecture, self.is_last = in_channels, architecture, is_last
        self.resolution, self.img_channels = resolution, img_channels
        self.use_fp16, self.channels_last = use_fp16, use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", setup_filter(list(resample_filter)))
        common = dict(conv_clamp=conv_clamp, channels_last=self.channels_last)
        taps = dict(resample_filter=resample_filter)
        shared: dict[str, Any] = {**common, **taps, **layer_kwargs}
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, w_dim, resolution, up=2, **shared
            )
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, **shared)
        self.num_conv = 1 if in_channels == 0 else 2
        self.num_torgb = int(is_last or architecture == "skip")
        if self.num_torgb:
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, **common)
        if in_channels != 0 and architecture == "resnet":
            self.skip = Conv2dLayer(
                in_channels,
                out_channels,
                1,
                bias=False,
                up=2,
                channels_last=self.channels_last,
                **taps,
            )

    def forward(
        self,
        x: Tensor | None,
        img: Tensor | None,
        ws: Tensor,
        force_fp32: bool = False,
        fused_modconv: bool | None = None,
        **layer_kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        styles = iter(ws.unbind(1))
        channels = self.conv1.weight.shape[0]
        form = _precision(self.use_fp16, force_fp32, self.channels_last, ws.device, channels)
        if fused_modconv is None:  # on the CPU, a grouped convolution is slower than scaling
            exact = form["dtype"] is torch.float32 or ws.shape[0] == 1
            fused_modconv = ws.is_cuda and exact and not self.training
        layer_kwargs["fused_modconv"] = fused_modconv
        if x is None:
            start = self.const.expand(ws.shape[0], *self.const.shape).to(**form)
            x = self.conv1(start, next(styles), **layer_kwargs)
        elif self.architecture == "resnet":
            x = x.to(**form)
            shortcut = self.skip(x, gain=_HALF)
            x = self.conv0(x, next(styles), **layer_kwargs)
            x = shortcut + self.conv1(x, next(styles), gain=_HALF, **layer_kwargs)
        else:
            x = self.conv0(x.to(**form), next(styles), **layer_kwargs)
            x = self.conv1(x, next(styles), **layer_kwargs)
        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.num_torgb:
            rgb = self.torgb(x, next(styles), fused_modconv=fused_modconv)
            rgb = rgb.to(torch.float32, memory_format=torch.contiguous_format)
            img = rgb if img is None else img + rgb
        return x, img


class SynthesisNetwork(Network):
    """Turn `ws [N, num_ws, w_dim]` into images `[N, img_channels, R, R]`, about [-1, 1].

    Reduced precision in the `num_fp16_res` finest resolutions: float16 on CUDA, bfloat16 elsewhere.
    """

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        **block_kwargs: Any,
    ) -> None:
        super().__init__()
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.block_resolutions = resolutions_up_to(img_resolution)
        self.num_ws, before = 0, 0
        for resolution in self.block_resolutions:
            channels = channels_at(resolution, channel_base, channel_max)
            block = SynthesisBlock(
                before,
                channels,
                w_dim=w_dim,
                resolution=resolution,
                img_channels=img_channels,
                is_last=resolution == img_resolution,
                use_fp16=_is_reduced(resolution, img_resolution, num_fp16_res),
                **block_kwargs,
            )
            setattr(self, f"b{resolution}", block)
            self.num_ws += block.num_conv + block.num_torgb * block.is_last
            before = channels

    def forward(self, ws: Tensor, **block_kwargs: Any) -> Tensor:
        if ws.shape[1:] != (self.num_ws, self.w_dim):
            want = f"[N, {self.num_ws}, {self.w_dim}]"
            raise ValueError(f"ws must have shape {want}, got {list(ws.shape)}")
        ws = ws.float()
        x = img = None
        used = 0
        for resolution in self.block_resolutions:
            block = getattr(self, f"b{resolution}")
            own = ws[:, used : used + block.num_conv + block.num_torgb]
            x, img = block(x, img, own, **block_kwargs)
            used += block.num_conv
        return img


class Generator(Network):
    """Images from latents: `G(z, c) -> [N, img_channels, R, R]`."""

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: dict[str, Any] | None = None,
        synthesis_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.synthesis = SynthesisNetwork(
            w_dim, img_resolution, img_channels, **(synthesis_kwargs or {})
        )
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, **(mapping_kwargs or {}))

    def forward(
        self,
        z: Tensor,
        c: Tensor | None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        **synthesis_kwargs: Any,
    ) -> Tensor:
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff)
        return self.synthesis(ws, **synthesis_kwargs)


class DiscriminatorBlock(Network):
    """One resolution of the discriminator, halving it; layers below `freeze_layers` are frozen."""

    def __init__(
        self,
        in_channels: int,
        tmp_channels: int,
        out_channels: int,
        resolution: int,
        img_channels: int,
        first_layer_idx: int,
        architecture: str = "resnet",
        activation: str = "lrelu",
        resample_filter: Sequence[float] = TAPS,
        conv_clamp: float | None = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        freeze_layers: int = 0,
    ) -> None:
        if architecture not in ("orig", "skip", "resnet"):
            raise ValueError(f"architecture must be orig, skip or resnet, got {architecture!r}")
        if in_channels not in (0, tmp_channels):
            raise ValueError(f"in_channels must be 0 or {tmp_channels}, got {in_channels}")
        super().__init__()
        self.in_channels, self.resolution = in_channels, resolution
        self.img_channels, self.architecture = img_channels, architecture
        self.use_fp16, self.channels_last = use_fp16, use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", setup_filter(list(resample_filter)))
        self.num_layers = 0

        def layer(inputs: int, outputs: int, kernel: int, **kwargs: Any) -> Conv2dLayer:
            trainable = first_layer_idx + self.num_layers >= freeze_layers
            self.num_layers += 1
            last = self.channels_last
            return Conv2dLayer(
                inputs, outputs, kernel, trainable=trainable, channels_last=last, **kwargs
            )

        active = dict(activation=activation, conv_clamp=conv_clamp)
        taps = dict(resample_filter=resample_filter, down=2)
        if in_channels == 0 or architecture == "skip":
            self.fromrgb = layer(img_channels, tmp_channels, 1, **active)
        self.conv0 = layer(tmp_channels, tmp_channels, 3, **active)
        self.conv1 = layer(tmp_channels, out_channels, 3, **active, **taps)
        if architecture == "resnet":
            self.skip = layer(tmp_channels, out_channels, 1, bias=False, **taps)

    def forward(
        self, x: Tensor | None, img: Tensor | None, force_fp32: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        device, channels = self.resample_filter.device, self.conv0.weight.shape[0]
        form = _precision(self.use_fp16, force_fp32, self.channels_last, device, channels)
        x = None if x is None else x.to(**form)
        if self.in_channels == 0 or self.architecture == "skip":
            assert img is not None
            colours = self.fromrgb(img.to(**form))
            x = colours if x is None else x + colours
            img = downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture != "resnet":
            return self.conv1(self.conv0(x)), img
        shortcut = self.skip(x, gain=_HALF)
        return shortcut + self.conv1(self.conv0(x), gain=_HALF), img


class MinibatchStdLayer(Network):
    """Append the standard deviation over groups of samples as feature maps.

    Karras et al., ICLR 2018 (arXiv 1710.10196), section 3.
    """

    def __init__(self, group_size: int | None, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, x: Tensor) -> Tensor:
        count, _, high, wide = x.shape
        group = count if self.group_size is None else min(self.group_size, count)
        if count % group:
            raise ValueError(
                f"a batch must be a multiple of the minibatch-std group {group}, got {count}"
            )
        parts = x.reshape(group, count // group, self.num_channels, -1, high, wide)
        std = (parts.var(0, unbiased=False) + 1e-8).sqrt().mean([2, 3, 4])
        std = std.repeat(group, 1)[:, :, None, None].expand(-1, -1, high, wide)
        return torch.cat([x, std], 1)


class DiscriminatorEpilogue(Network):
    """The 4x4 end of the discriminator: `[N, 1]`, or `[N, cmap_dim]` projected on the label."""

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,
        resolution: int,
        img_channels: int,
        architecture: str = "resnet",
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,
        activation: str = "lrelu",
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.cmap_dim, self.architecture = cmap_dim, architecture
        active: dict[str, Any] = dict(activation=activation)
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, in_channels, 1, **active)
        self.mbstd = (
            MinibatchStdLayer(mbstd_group_size, mbstd_num_channels) if mbstd_num_channels else None
        )
        self.conv = Conv2dLayer(
            in_channels + mbstd_num_channels, in_channels, 3, conv_clamp=conv_clamp, **active
        )
        self.fc = FullyConnectedLayer(in_channels * resolution**2, in_channels, **active)
        self.out = FullyConnectedLayer(in_channels, cmap_dim or 1)

    def forward(
        self, x: Tensor, img: Tensor | None, cmap: Tensor | None, force_fp32: bool = False
    ) -> Tensor:
        x = x.float()
        if self.architecture == "skip":
            assert img is not None
            x = x + self.fromrgb(img.float())
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if self.cmap_dim == 0:
            return x
        return (x * cmap).sum(1, keepdim=True) / math.sqrt(self.cmap_dim)


class Discriminator(Network):
    """Logits `[N, 1]` of images `[N, C, R, R]` and labels `[N, c_dim]`; large where real."""

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        architecture: str = "resnet",
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        conv_clamp: float | None = None,
        cmap_dim: int | None = None,
        block_kwargs: dict[str, Any] | None = None,
        mapping_kwargs: dict[str, Any] | None = None,
        epilogue_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.block_resolutions = resolutions_up_to(img_resolution)[:0:-1]
        width = {r: channels_at(r, channel_base, channel_max) for r in (*self.block_resolutions, 4)}
        projected = (width[4] if cmap_dim is None else cmap_dim) if c_dim > 0 else 0
        common = dict(img_channels=img_channels, architecture=architecture, conv_clamp=conv_clamp)
        layers = 0
        for resolution in self.block_resolutions:
            channels = width[resolution]
            block = DiscriminatorBlock(
                0 if resolution == img_resolution else channels,
                channels,
                width[resolution // 2],
                resolution=resolution,
                first_layer_idx=layers,
                use_fp16=_is_reduced(resolution, img_resolution, num_fp16_res),
                **common,  # type: ignore[arg-type]
                **(block_kwargs or {}),
            )
            setattr(self, f"b{resolution}", block)
            layers += block.num_layers
        if c_dim > 0:
            mapping: dict[str, Any] = dict(z_dim=0, num_ws=None, w_avg_beta=None)
            mapping.update(mapping_kwargs or {})
            self.mapping = MappingNetwork(c_dim=c_dim, w_dim=projected, **mapping)
        self.b4 = DiscriminatorEpilogue(
            width[4],
            cmap_dim=projected,
            resolution=4,
            **common,
            **(epilogue_kwargs or {}),  # type: ignore[arg-type]
        )

    def forward(self, img: Tensor, c: Tensor | None, **block_kwargs: Any) -> Tensor:
        x, rest = None, img
        for resolution in self.block_resolutions:
            x, rest = getattr(self, f"b{resolution}")(x, rest, **block_kwargs)
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        return self.b4(x, rest, cmap, **block_kwargs)
