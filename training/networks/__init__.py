"""Generator and discriminator of StyleGAN2, with the tensor names of the original's pickles."""

from .discriminator import (
    Discriminator,
    DiscriminatorBlock,
    DiscriminatorEpilogue,
    MinibatchStdLayer,
)
from .generator import Generator, SynthesisBlock, SynthesisLayer, SynthesisNetwork, ToRGBLayer
from .layers import (
    TAPS,
    Conv2dLayer,
    FullyConnectedLayer,
    Network,
    channels_at,
    normalize_2nd_moment,
    resolutions_up_to,
    set_precision,
)
from .mapping import MappingNetwork

__all__ = [
    "TAPS",
    "Conv2dLayer",
    "Discriminator",
    "DiscriminatorBlock",
    "DiscriminatorEpilogue",
    "FullyConnectedLayer",
    "Generator",
    "MappingNetwork",
    "MinibatchStdLayer",
    "Network",
    "SynthesisBlock",
    "SynthesisLayer",
    "SynthesisNetwork",
    "ToRGBLayer",
    "channels_at",
    "normalize_2nd_moment",
    "resolutions_up_to",
    "set_precision",
]
