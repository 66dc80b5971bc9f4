"""Bias, activation, gain and clamp: one kernel, or as few passes as PyTorch allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backend


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


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """Return `clamp(act(x + b) * gain)`, with the dtype and memory format of `x`.

    Args:
        x: Any shape.
        b: Bias, one value for every index of `dim`.
        dim: The dimension of `x` that the bias runs along.
        act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: Slope of lrelu below zero; default 0.2.
        gain: Factor after the activation; default sqrt(2) for relu, lrelu and swish, else 1.
        clamp: Bound of the result's magnitude, after the gain.

    Raises:
        ValueError: `act` is none of these, or `b` does not fit `x`.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
    if b is not None and b.shape != (x.shape[dim],):
        raise ValueError(f"b must have shape [{x.shape[dim]}], got {list(b.shape)}")
    kind = ACTIVATIONS[act]
    alpha = kind.alpha if alpha is None else alpha
    gain = kind.gain if gain is None else gain
    settings = _Settings(dim, act, alpha, gain, clamp)
    by_kernels = backend.kernels(x, b) is not None
    if torch._C._are_functorch_transforms_active() or not (by_kernels or settings.reads_output):
        return settings.plain(x, b)
    result: Tensor = _BiasAct.apply(x, b, settings)  # type: ignore[no-untyped-call]
    return result


class _Settings(NamedTuple):
    """The arguments of `bias_act` that are no tensors."""

    dim: int
    act: str
    alpha: float
    gain: float
    clamp: float | None

    @property
    def reads_output(self) -> bool:
        """Whether the derivative follows from the sign and size of the result.

        Then the input, which nothing else needs, can be freed.
        """
        return not ACTIVATIONS[self.act].curved and self.gain > 0 and self.alpha >= 0

    def plain(self, x: Tensor, b: Tensor | None) -> Tensor:
        """Return the function by PyTorch's own operations."""
        act, gain, clamp = ACTIVATIONS[self.act].apply, self.gain, self.clamp
        if b is not None:
            b = b.reshape([-1 if i == self.dim % x.ndim else 1 for i in range(x.ndim)])
        if self.act in _HOMOGENEOUS and gain >= 0 and x.dtype in _REDUCED:  # in one pass
            x = x * gain if b is None else torch.add(b * gain, x, alpha=gain)
            y = act(x, self.alpha)
        else:  # the original's order: whether x + b rounds to above zero decides a gradient
            y = act(x if b is None else x + b, self.alpha)
            y = y if gain == 1 else y * gain
        return y if clamp is None else F.hardtanh(y, -clamp, clamp)

    def plain_gradient(self, dy: Tensor, y: Tensor) -> Tensor:
        """Return the gradient by the input from that by the output `y`, where that suffices."""
        if self.clamp is not None:
            dy = torch.ops.aten.hardtanh_backward(dy, y, -self.clamp, self.clamp)
        dx = dy if self.gain == 1 else dy * self.gain
        if self.act == "linear":
            return dx
        slope = self.alpha if self.act == "lrelu" else 0.0
        result: Tensor = torch.ops.aten.leaky_relu_backward(dx, y, slope, True)
        return result

    def native(self, library: Any, x: Tensor, b: Tensor | None, dy: Tensor | None = None) -> Tensor:
        """Return the function, or from its result `x` and `dy` the gradient, by C++ on the CPU."""
        dim = self.dim % x.ndim
        is_last = x.ndim == 4 and dim == 1 and x.is_contiguous(memory_format=torch.channels_last)
        if not is_last:
            x = x.contiguous()
        y, inner = torch.empty_like(x), 1 if is_last else x.shape[dim + 1 :].numel()
        slope = {"linear": 1.0, "relu": 0.0, "lrelu": self.alpha}[self.act]
        numbers = slope, self.gain, math.inf if self.clamp is None else self.clamp
        result, reduced, threads = y.data_ptr(), x.dtype is torch.bfloat16, torch.get_num_threads()
        if dy is not None:
            if dy.stride() != x.stride():
                dy = torch.empty_like(x).copy_(dy)
            tensors = dy.data_ptr(), x.data_ptr(), x.numel()
            library.bias_act_gradient(reduced, *tensors, *numbers, result, threads)
            return y
        channels = x.shape[dim]
        outer = x.numel() // max(channels * inner, 1)
        bias = None if b is None else b.to(x.dtype).contiguous()
        address = None if bias is None else bias.data_ptr()
        sizes = outer, channels, inner
        library.bias_act_forward(reduced, x.data_ptr(), address, *sizes, *numbers, result, threads)
        return y

    def run(self, x: Tensor, b: Tensor | None, *factors: Tensor, from_output: bool = False) -> Any:
        """Return the function, or with one or two factors its derivatives' product with them."""
        kernels = backend.kernels(x)
        if kernels is None and self.reads_output and (library := backend.native(x)) is not None:
            return self.native(library, x, b, *factors)
        if kernels is None:
            return self.plain_gradient(factors[0], x) if factors else self.plain(x, b)
        first, other, *_ = (*factors, None, None)
        index = list(ACTIVATIONS).index(self.act)
        return kernels.bias_act(x, b, self.dim, index, *self[2:], first, other, from_output)

    def sum_for_bias(self, dx: Tensor, like: Tensor) -> Tensor:
        return dx.sum([i for i in range(dx.ndim) if i != self.dim % dx.ndim]).to(like.dtype)


class _BiasAct(torch.autograd.Function):
    """The operation, by our kernels or where the result is all that its gradient needs."""

    @staticmethod
    def forward(ctx, x, b, settings):  # type: ignore[no-untyped-def]
        y = settings.run(x, b)
        ctx.settings = settings
        ctx.save_for_backward(*((y, None) if settings.reads_output else (x, b)), b)
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        reference, added, b = ctx.saved_tensors
        dx = _BiasActGradient.apply(dy, reference, added, ctx.settings)  # type: ignore[no-untyped-call]
        db = ctx.settings.sum_for_bias(dx, b) if ctx.needs_input_grad[1] else None
        return dx, db, None


class _BiasActGradient(torch.autograd.Function):
    """The gradient by `x` from the operation's input or result; itself differentiable once."""

    @staticmethod
    def forward(ctx, dy, reference, b, settings):  # type: ignore[no-untyped-def]
        ctx.settings = settings
        ctx.save_for_backward(dy, reference, b)
        return settings.run(reference, b, dy, from_output=settings.reads_output)

    @staticmethod
    def backward(ctx, ddx):  # type: ignore[no-untyped-def]
        dy, reference, b = ctx.saved_tensors
        settings = ctx.settings
        ddy = _BiasActGradient.apply(ddx, reference, b, settings)  # type: ignore[no-untyped-call]
        if not ACTIVATIONS[settings.act].curved or not any(ctx.needs_input_grad[1:3]):
            return ddy, None, None, None
        x_gradient = settings.run(reference, b, ddx, dy)
        b_gradient = settings.sum_for_bias(x_gradient, b) if ctx.needs_input_grad[2] else None
        return ddy, x_gradient, b_gradient, None
