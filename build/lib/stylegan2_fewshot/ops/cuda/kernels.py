"""The CUDA kernels as operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..dispatch import Kernels
from ..reference import ACTIVATIONS, BiasActSettings

_NUMBER_OF = {act: number for number, act in enumerate(ACTIVATIONS)}


class CUDAKernels(Kernels):
    """Resampling and activations of every dtype; convolution is cuDNN's."""

    def __init__(self, extension: Any) -> None:
        self.extension = extension

    def takes_upfirdn2d(self, x: Tensor) -> bool:
        """Return True."""
        return True

    def takes_bias_act(self, x: Tensor, settings: BiasActSettings) -> bool:
        """Return True."""
        return True

    def upfirdn2d(self, x: Tensor, f: Tensor, *arguments: Any) -> Tensor:
        """As `reference.upfirdn2d`."""
        y: Tensor = self.extension.upfirdn2d(x, f, *arguments)
        return y

    def bias_act(self, x: Tensor, b: Tensor | None, settings: BiasActSettings) -> Tensor:
        """As `reference.bias_act`."""
        return self._bias_act(x, b, settings, None, None, False)

    def bias_act_gradient(
        self, dy: Tensor, x: Tensor, b: Tensor | None, settings: BiasActSettings
    ) -> Tensor:
        """Return the gradient by the input, from it or, where that suffices, the result `x`."""
        return self._bias_act(x, b, settings, dy, None, settings.gradient_reads_output)

    def bias_act_curvature(
        self, ddx: Tensor, dy: Tensor, x: Tensor, b: Tensor | None, settings: BiasActSettings
    ) -> Tensor:
        """Return `ddx * dy` times the second derivative at the input `x`."""
        return self._bias_act(x, b, settings, ddx, dy, False)

    def _bias_act(
        self, x: Tensor, b: Tensor | None, settings: BiasActSettings, *factors: Any
    ) -> Tensor:
        dim, act, *numbers = settings
        y: Tensor = self.extension.bias_act(x, b, dim, _NUMBER_OF[act], *numbers, *factors)
        return y
