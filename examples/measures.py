"""What the experiments measure beside `python -m metrics`: images as a generator, blur, copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.optimize
import torch
from torch import Tensor, nn
from trials import ROOT

import metrics
from metrics import detectors, memorisation
from stylegan2_fewshot.pixels import to_float, to_uint8
from training import pickles
from training.dataset import ImageDataset

DETECTOR = "mobilenetv2"
COUNT = 1000  # fakes, and held-out images, that copies are looked for with


class Replay(nn.Module):
    """A generator that returns given images, over and over, so that metrics can measure them.

    Args:
        images: uint8 `[N, C, H, W]`.
    """

    c_dim, z_dim = 0, 1

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images, self.img_resolution = images, images.shape[-1]
        self.next = 0

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        chosen = (torch.arange(len(z)) + self.next) % len(self.images)
        self.next += len(z)
        return to_float(self.images[chosen])


@torch.no_grad()
def samples(
    network: Path, seeds: Iterable[int], psi: float = 1.0, label: Tensor | None = None
) -> Tensor:
    """Return images `[N, C, H, W]` in [-1, 1] of a network's G_ema; `generate.py` draws the same.

    Args:
        network: Network pickle.
        seeds: One image each.
        psi: Truncation.
        label: Labels `[N, c_dim]`, or one `[c_dim]` for all, where the network is conditional.
    """
    G = pickles.load(network).G_ema
    z = np.concatenate([np.random.RandomState(seed).randn(1, G.z_dim) for seed in seeds])
    latents = torch.from_numpy(z).float()
    c = torch.zeros(len(z), 0) if label is None else label.expand(len(z), -1)
    images = [
        G(*part, truncation_psi=psi, noise_mode="const")
        for part in zip(latents.split(64), c.split(64), strict=True)
    ]
    return torch.cat(images).clamp(-1, 1)


def real_images(archive: Path, count: int | None = None) -> Tensor:
    """Return the first images of a data set, or all of them: uint8 `[N, C, H, W]`."""
    dataset = ImageDataset(ROOT / archive)
    return torch.from_numpy(np.stack([dataset[i][0] for i in range(len(dataset))[:count]]))


def of_images(images: Tensor, names: Sequence[str], train: Path, heldout: Path) -> dict[str, float]:
    """Return metrics of given images, as if a generator had made them.

    Args:
        images: uint8 `[N, C, H, W]`.
        names: Metrics.
        train: Archive of the training images.
        heldout: Archive of the images to measure against.
    """
    data = ImageDataset(ROOT / train), ImageDataset(ROOT / heldout)
    lines = metrics.compute(names, Replay(images), *data, show=False)
    return {key: value for line in lines for key, value in line["results"].items()}


def sharpness(images: Tensor) -> float:
    """Return the mean absolute difference of neighbouring pixels, of 255."""
    pixels = images.float()
    return float(pixels.diff(dim=2).abs().mean() + pixels.diff(dim=3).abs().mean()) / 2


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return uint8 images after a Gaussian of `sigma` pixels; 0 leaves them as they are."""
    soft = scipy.ndimage.gaussian_filter(
        images.numpy().astype(np.float32), (0, 0, sigma, sigma), mode="nearest"
    )
    return torch.from_numpy(np.rint(soft).astype(np.uint8))


def blurred_to(images: Tensor, wanted: float) -> Tensor:
    """Return uint8 images, blurred until their sharpness is `wanted`, if they are sharper."""
    few = images[:200]
    if sharpness(few) <= wanted:
        return images
    sigma = scipy.optimize.brentq(lambda s: sharpness(blurred(few, s)) - wanted, 0, 20, xtol=0.01)
    return blurred(images, sigma)


def copies(fakes: Tensor, train: Tensor, heldout: Tensor) -> dict[str, float]:
    """Return whether fakes repeat training images, all blurred until they are equally sharp.

    Without that, blurred copies go unseen: what is blurred is far from everything sharp.

    Args:
        fakes: uint8 `[N, C, H, W]`, as the others.
        train: Training images; their mirror images count as well.
        heldout: Images that were not trained with.
    """
    level = min(map(sharpness, (fakes, train, heldout)))
    fakes, train, heldout = (blurred_to(images, level) for images in (fakes, train, heldout))
    features = detectors.load(DETECTOR, torch.device("cpu"))
    real = features(torch.cat([train, train.flip(3)]))
    near = (memorisation.nearest(features(images), real) for images in (fakes, heldout))
    found = memorisation.nearness(*near)
    return {"nearness": found.ratio, "copies": found.copies}


def further(network: Path, train: Path, heldout: Path) -> dict[str, float]:
    """Return sharpness and copies of a network's first fakes."""
    fakes = to_uint8(samples(network, range(COUNT)))
    found = copies(fakes, real_images(train), real_images(heldout, COUNT))
    return {"sharpness": sharpness(fakes), **found}


def kept(
    run_dir: Path, name: str, networks: Iterable[Path], make: Callable[[Path], dict[str, Any]]
) -> None:
    """Add what `make` returns of snapshots to a run's metrics, where it is not there yet."""
    known = {line["snapshot_pkl"] for line in metrics.read(run_dir).get(name, [])}
    for path in networks:
        if path.name not in known:
            kimg = int(path.stem.rpartition("-")[2])
            line = {"metric": name, "results": make(path), "better": "lower", "kimg": kimg}
            metrics.append(run_dir, {**line, "snapshot_pkl": path.name, "nimg": kimg * 1000})
