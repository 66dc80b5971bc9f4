"""Which implementation of an operation runs: the reference, or the kernels of a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import reference, torch_internals
from .reference import BiasActSettings

FASTER_CHANNELS_LAST = 64  # channels from which on PyTorch's float32 is, on the CPU
_PLAIN = (Tensor, torch.nn.Parameter)


class Kernels:
    """What a device offers in place of the reference; a subclass has all or some of it.

    `takes_...` says which tensors an operation serves; nothing else is ever handed to it.
    """

    channels_last_from: int | None = None  # channels from which on it wants float32 channels-last

    def takes_upfirdn2d(self, x: Tensor) -> bool:
        """Return whether `upfirdn2d` serves these images."""
        return False

    def takes_bias_act(self, x: Tensor, settings: BiasActSettings) -> bool:
        """Return whether `bias_act` and its derivatives serve this function of these numbers."""
        return False

    def takes_convolution(self, x: Tensor, w: Tensor, sides: Sequence[int]) -> bool:
        """Return whether `convolve` and its gradients serve, and are faster than PyTorch."""
        return False

    def upfirdn2d(
        self,
        x: Tensor,
        f: Tensor,
        up: tuple[int, int],
        down: tuple[int, int],
        padding: Sequence[int],
        flip_filter: bool,
        gain: float,
    ) -> Tensor:
        """As `reference.upfirdn2d`."""
        raise NotImplementedError

    def bias_act(self, x: Tensor, b: Tensor | None, settings: BiasActSettings) -> Tensor:
        """As `reference.bias_act`."""
        raise NotImplementedError

    def bias_act_gradient(
        self, dy: Tensor, x: Tensor, b: Tensor | None, settings: BiasActSettings
    ) -> Tensor:
        """Return the gradient by the input, from it or, where that suffices, the result `x`."""
        raise NotImplementedError

    def bias_act_curvature(
        self, ddx: Tensor, dy: Tensor, x: Tensor, b: Tensor | None, settings: BiasActSettings
    ) -> Tensor:
        """Return `ddx * dy` times the second derivative at the input `x`."""
        raise NotImplementedError

    def convolve(self, x: Tensor, w: Tensor, sides: Sequence[int], turned: bool) -> Tensor:
        """Correlate padded images with weights, as they are or turned for the transposed one."""
        raise NotImplementedError

    def convolution_weight_gradient(self, x: Tensor, dy: Tensor, sides: Sequence[int]) -> Tensor:
        """Return the gradient by the weights of `convolve`."""
        raise NotImplementedError


class Dispatch:
    """What has been selected, by type of device: the only state of the operations.

    Empty until a command selects something; then the reference runs everywhere.
    """

    def __init__(self) -> None:
        self.kernels: dict[str, Kernels] = {}

    def kernels_for(self, x: Tensor, *others: Tensor | None) -> Kernels | None:
        """Return the kernels of the device of `x`, or None for the reference.

        A kernel reads memory. Tensors inside a transform of torch.func or an export have none.
        """
        kernels = self.kernels.get(x.device.type)
        if kernels is None or torch_internals.transforms_are_active():
            return None
        if any(tensor is not None and type(tensor) not in _PLAIN for tensor in (x, *others)):
            return None
        return None if torch_internals.is_traced() else kernels

    def upfirdn2d(self, x: Tensor, f: Tensor) -> Callable[..., Tensor]:
        """Return what resamples these images."""
        kernels = self.kernels_for(x, f)
        if kernels is None or not kernels.takes_upfirdn2d(x):
            return reference.upfirdn2d
        return kernels.upfirdn2d

    def bias_act(self, x: Tensor, b: Tensor | None, settings: BiasActSettings) -> Kernels | None:
        """Return the kernels that compute this function and its derivatives, if any."""
        kernels = self.kernels_for(x, b)
        return kernels if kernels is not None and kernels.takes_bias_act(x, settings) else None

    def convolution(self, x: Tensor, w: Tensor, sides: Sequence[int]) -> Kernels | None:
        """Return the kernels that convolve these images and compute its gradients, if any."""
        kernels = self.kernels_for(x, w)
        return kernels if kernels is not None and kernels.takes_convolution(x, w, sides) else None

    def is_faster_channels_last(self, device: torch.device, channels: int) -> bool:
        """Return whether images of float32 had better be channels-last."""
        kernels = self.kernels.get(device.type)
        if kernels is not None and kernels.channels_last_from is not None:
            return channels >= kernels.channels_last_from
        return device.type == "cpu" and channels >= FASTER_CHANNELS_LAST


SELECTED = Dispatch()
