"""The generator of StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_fewshot.ops import (
    bias_act,
    modulated_conv2d,
    setup_filter,
    upsample2d,
)

from .layers import (
    HALF,
    TAPS,
    Conv2dLayer,
    FullyConnectedLayer,
    Network,
    activated,
    channels_at,
    drawn_weight,
    is_reduced,
    precision_of,
    resolutions_up_to,
)
from .mapping import MappingNetwork


class SynthesisLayer(Network):
    """A modulated convolution with noise, bias and activation."""

    resample_filter: Tensor
    noise_const: Tensor  # missing without `use_noise`

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
        self.weight = nn.Parameter(
            drawn_weight(out_channels, in_channels, kernel_size, channels_last)
        )
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
        return activated(self, x, gain)

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
        self.weight = nn.Parameter(
            drawn_weight(out_channels, in_channels, kernel_size, channels_last)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor, w: Tensor, fused_modconv: bool = True) -> Tensor:
        styles = self.affine(w) * self.weight_gain
        x = modulated_conv2d(x, self.weight, styles, demodulate=False, fused_modconv=fused_modconv)
        return bias_act(x, self.bias.to(x.dtype), clamp=self.conv_clamp)


class SynthesisBlock(Network):
    """One resolution of the generator: two layers and their contribution to the image."""

    resample_filter: Tensor

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
        common: dict[str, Any] = dict(conv_clamp=conv_clamp, channels_last=self.channels_last)
        taps: dict[str, Any] = dict(resample_filter=resample_filter)
        shared = {**common, **layer_kwargs}
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, w_dim, resolution, up=2, **taps, **shared
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
        form = precision_of(self, force_fp32, ws.device, channels)
        if fused_modconv is None:  # on the CPU, a grouped convolution is slower than scaling
            exact = form["dtype"] is torch.float32 or ws.shape[0] == 1
            fused_modconv = ws.is_cuda and exact and not self.training
        layer_kwargs["fused_modconv"] = fused_modconv
        if x is None:
            start = self.const.expand(ws.shape[0], *self.const.shape).to(**form)
            x = self.conv1(start, next(styles), **layer_kwargs)
        elif self.architecture == "resnet":
            x = x.to(**form)
            shortcut = self.skip(x, gain=HALF)
            x = self.conv0(x, next(styles), **layer_kwargs)
            x = shortcut + self.conv1(x, next(styles), gain=HALF, **layer_kwargs)
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

    b4: SynthesisBlock  # and one for each further resolution

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
                use_fp16=is_reduced(resolution, img_resolution, num_fp16_res),
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
        x: Tensor | None = None
        img: Tensor | None = None
        used = 0
        for resolution in self.block_resolutions:
            block = getattr(self, f"b{resolution}")
            own = ws[:, used : used + block.num_conv + block.num_torgb]
            x, img = block(x, img, own, **block_kwargs)
            used += block.num_conv
        assert img is not None  # the last block always draws one
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
        img: Tensor = self.synthesis(ws, **synthesis_kwargs)
        return img
