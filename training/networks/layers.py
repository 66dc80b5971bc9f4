"""What both networks are made of. Learning rates are equalised: weights are stored with unit
variance and scaled at run time (Karras et al., ICLR 2018, arXiv 1710.10196)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from stylegan2_fewshot.ops import (
    bias_act,
    conv2d_resample,
    setup_filter,
)
from stylegan2_fewshot.ops.dispatch import SELECTED
from stylegan2_fewshot.ops.precision import reduced_dtype
from stylegan2_fewshot.ops.reference import ACTIVATIONS

TAPS = (1, 3, 3, 1)
HALF = math.sqrt(0.5)  # keeps the variance of a residual sum


class Network(nn.Module):
    """A module that remembers its constructor's arguments by name, as `init_kwargs`."""

    init_kwargs: dict[str, Any]
    precision = "auto"  # of blocks with `use_fp16`: see `ops.precision`

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
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


def is_reduced(resolution: int, img_resolution: int, num_fp16_res: int) -> bool:
    """Return whether a block is among the `num_fp16_res` finest; 4x4 never is."""
    ratio = img_resolution // resolution
    return resolution >= 8 and num_fp16_res >= ratio.bit_length()


def drawn_weight(outputs: int, inputs: int, kernel_size: int, channels_last: bool) -> Tensor:
    """Draw the weight `[outputs, inputs, k, k]` of a convolution."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.randn(outputs, inputs, kernel_size, kernel_size).to(memory_format=layout)


def activated(layer: Any, x: Tensor, gain: float) -> Tensor:
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

    resample_filter: Tensor
    weight: Tensor
    bias: Tensor | None

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
        weight = drawn_weight(out_channels, in_channels, kernel_size, channels_last)
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
        return activated(self, x, gain)


def set_precision(net: nn.Module, precision: str) -> None:
    """Let the blocks of reduced precision compute in auto, fp32, fp16 or bf16."""
    for module in net.modules():
        if isinstance(module, Network):
            module.precision = precision


def precision_of(
    block: Any, force_fp32: bool, device: torch.device, channels: int
) -> dict[str, Any]:
    """Return the arguments of `Tensor.to` for a block's activations."""
    is_reduced = block.use_fp16 and not force_fp32
    dtype = reduced_dtype(block.precision, device) if is_reduced else torch.float32
    if dtype is torch.float32:
        last = SELECTED.is_faster_channels_last(device, channels)
    else:  # on the CPU fast in this layout alone
        last = device.type == "cpu" or block.channels_last
    return dict(dtype=dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
