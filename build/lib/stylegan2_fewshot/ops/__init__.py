"""The operations that StyleGAN2 is made of, twice differentiable on the CPU and on CUDA."""

from .activations import bias_act
from .convolution import conv2d_resample, modulated_conv2d
from .resample import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from .selection import select

__all__ = [
    "bias_act",
    "conv2d_resample",
    "downsample2d",
    "filter2d",
    "modulated_conv2d",
    "select",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
]
