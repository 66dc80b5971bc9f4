"""The operations by PyTorch's own: what every kernel must agree with, and what runs without one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(NamedTuple):
    """A function of (x, alpha), with the original's default alpha and gain.

    It is `curved` if its second derivative is not zero.
    """

    apply: Callable[[Tensor, float], Tensor]
    alpha: float
    gain: float
    curved: bool = True


ACTIVATIONS = {
    "linear": Activation(lambda x, alpha: x, 0.0, 1.0, False),
    "relu": Activation(lambda x, alpha: torch.relu(x), 0.0, math.sqrt(2), False),
    "lrelu": Activation(lambda x, alpha: F.leaky_relu(x, alpha), 0.2, math.sqrt(2), False),
    "tanh": Activation(lambda x, alpha: torch.tanh(x), 0.0, 1.0),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x), 0.0, 1.0),
    "elu": Activation(lambda x, alpha: F.elu(x), 0.0, 1.0),
    "selu": Activation(lambda x, alpha: F.selu(x), 0.0, 1.0),
    "softplus": Activation(lambda x, alpha: F.softplus(x), 0.0, 1.0),
    "swish": Activation(lambda x, alpha: x * torch.sigmoid(x), 0.0, math.sqrt(2)),
}
_HOMOGENEOUS = ("linear", "relu", "lrelu")  # gain * act(x) = act(gain * x) for gain >= 0
_REDUCED = (torch.float16, torch.bfloat16)


class BiasActSettings(NamedTuple):
    """The arguments of `bias_act` that are not tensors."""

    dim: int
    act: str
    alpha: float
    gain: float
    clamp: float | None

    @property
    def gradient_reads_output(self) -> bool:
        """Whether the derivative follows from the sign and size of the result.

        Then the input, which nothing else needs, can be freed.
        """
        return not ACTIVATIONS[self.act].curved and self.gain > 0 and self.alpha >= 0


def bias_act(x: Tensor, b: Tensor | None, settings: BiasActSettings) -> Tensor:
    """Return `clamp(act(x + b) * gain)`."""
    dim, name, alpha, gain, clamp = settings
    act = ACTIVATIONS[name].apply
    if b is not None:
        b = b.reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    if name in _HOMOGENEOUS and gain >= 0 and x.dtype in _REDUCED:  # in one pass
        x = x * gain if b is None else torch.add(b * gain, x, alpha=gain)
        y = act(x, alpha)
    else:  # the original's order: whether x + b rounds to above zero decides a gradient
        y = act(x if b is None else x + b, alpha)
        y = y if gain == 1 else y * gain
    return y if clamp is None else F.hardtanh(y, -clamp, clamp)


def bias_act_gradient(dy: Tensor, y: Tensor, b: Tensor | None, settings: BiasActSettings) -> Tensor:
    """Return the gradient by `x` from the result `y`, where `gradient_reads_output`."""
    _, act, alpha, gain, clamp = settings
    if clamp is not None:
        dy = torch.ops.aten.hardtanh_backward(dy, y, -clamp, clamp)
    dx = dy if gain == 1 else dy * gain
    if act == "linear":
        return dx
    slope = alpha if act == "lrelu" else 0.0
    result: Tensor = torch.ops.aten.leaky_relu_backward(dx, y, slope, True)
    return result


def convolve(x: Tensor, w: Tensor, sides: Sequence[int], groups: int = 1) -> Tensor:
    """Correlate images with weights, padded by `[left, right, top, bottom]`."""
    left, right, top, bottom = sides
    if left == right >= 0 and top == bottom >= 0:
        return F.conv2d(x, w, padding=(top, left), groups=groups)
    return F.conv2d(F.pad(x, [left, right, top, bottom]), w, groups=groups)


def upfirdn2d(
    x: Tensor,
    f: Tensor,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """Insert zeros, pad, filter, drop pixels: as a depthwise convolution."""
    f = f * gain ** (f.ndim / 2)
    f = (f if flip_filter else f.flip(list(range(f.ndim)))).to(x.dtype)
    if x.device.type == "cpu":  # where channels-last is faster
        x = x.contiguous(memory_format=torch.channels_last)
    if f.ndim == 2:
        return _resample(x, f, up, down, padding)
    left, right, top, bottom = padding
    x = _resample(x, f[None, :], (up[0], 1), (down[0], 1), (left, right, 0, 0))
    return _resample(x, f[:, None], (1, up[1]), (1, down[1]), (0, 0, top, bottom))


def _resample(
    x: Tensor, f: Tensor, up: tuple[int, int], down: tuple[int, int], padding: Sequence[int]
) -> Tensor:
    """Upsample, pad, correlate with a 2-D filter, and downsample."""
    channels = x.shape[1]
    x = _insert_zeros(x, *up)
    left, right, top, bottom = padding
    ahead = (top, left) if top == bottom >= 0 and left == right >= 0 else (0, 0)
    if ahead == (0, 0) and any(padding):
        x = F.pad(x, [left, right, top, bottom])
    if f.numel() == 1:
        x = F.pad(x, [ahead[1], ahead[1], ahead[0], ahead[0]]) if any(ahead) else x
        return x[:, :, :: down[1], :: down[0]] * f.reshape([])
    weight = f.repeat(channels, 1, 1, 1)
    return F.conv2d(x, weight, padding=ahead, stride=down[::-1], groups=channels)


def _insert_zeros(x: Tensor, upx: int, upy: int) -> Tensor:
    """Follow every pixel by `upx - 1` zeros to the right and `upy - 1` below."""
    if upx == upy == 1:
        return x
    count, channels, high, wide = x.shape
    x = x.permute(0, 2, 3, 1).reshape(count, high, 1, wide, 1, channels)
    x = F.pad(x, [0, 0, 0, upx - 1, 0, 0, 0, upy - 1])
    return x.reshape(count, high * upy, wide * upx, channels).permute(0, 3, 1, 2)
