"""The discriminator of StyleGAN2 (Karras et al., CVPR 2020, arXiv 1912.04958)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stylegan2_fewshot.ops import (
    downsample2d,
    setup_filter,
)

from .layers import (
    HALF,
    TAPS,
    Conv2dLayer,
    FullyConnectedLayer,
    Network,
    channels_at,
    is_reduced,
    precision_of,
    resolutions_up_to,
)
from .mapping import MappingNetwork


class DiscriminatorBlock(Network):
    """One resolution of the discriminator, halving it; layers below `freeze_layers` are frozen."""

    resample_filter: Tensor

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
        form = precision_of(self, force_fp32, device, channels)
        x = None if x is None else x.to(**form)
        if self.in_channels == 0 or self.architecture == "skip":
            assert img is not None
            colours = self.fromrgb(img.to(**form))
            x = colours if x is None else x + colours
            img = downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        if self.architecture != "resnet":
            return self.conv1(self.conv0(x)), img
        shortcut = self.skip(x, gain=HALF)
        return shortcut + self.conv1(self.conv0(x), gain=HALF), img


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
        assert cmap is not None
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
        common: dict[str, Any] = dict(
            img_channels=img_channels, architecture=architecture, conv_clamp=conv_clamp
        )
        layers = 0
        for resolution in self.block_resolutions:
            channels = width[resolution]
            block = DiscriminatorBlock(
                0 if resolution == img_resolution else channels,
                channels,
                width[resolution // 2],
                resolution=resolution,
                first_layer_idx=layers,
                use_fp16=is_reduced(resolution, img_resolution, num_fp16_res),
                **common,
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
            **(epilogue_kwargs or {}),
        )

    def forward(self, img: Tensor, c: Tensor | None, **block_kwargs: Any) -> Tensor:
        x, rest = None, img
        for resolution in self.block_resolutions:
            x, rest = getattr(self, f"b{resolution}")(x, rest, **block_kwargs)
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        logits: Tensor = self.b4(x, rest, cmap, **block_kwargs)
        return logits
