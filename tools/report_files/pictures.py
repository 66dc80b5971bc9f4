"""Pictures of a run: its grids taken apart, what samples are near to, PNGs for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training import images

from .runs import Run

SMALL = 16  # side of the pictures that pixel distances are taken on
MOST_SAMPLES = 64
MOST_REALS = 1000  # training images, evenly chosen, that nearest ones are looked for among
MOST_FEATURES = 200  # training images whose features are computed without being asked for
DETECTOR = "mobilenetv2"  # that of the metric nn1k

Images = np.ndarray  # uint8 [N, R, R, 3]


def cells(path: Path) -> Images:
    """Return the pictures of a grid that training saved, in their order."""
    with images.opened(path, path) as grid:
        flat = grid.convert("RGBA" if grid.has_transparency_data else "RGB")
        if flat.mode == "RGBA":
            flat = Image.alpha_composite(Image.new("RGBA", flat.size, "white"), flat).convert("RGB")
    size = cell_size(flat.width, flat.height)
    pixels = np.asarray(flat)
    rows, columns = flat.height // size, flat.width // size
    split = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    return split.reshape(-1, size, size, 3)


def cell_size(width: int, height: int) -> int:
    """Return the side of a grid's pictures: training puts as many side by side as 1920 holds."""
    for size in (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        if max(min(1920 // size, 16), 3) * size == width and height % size == 0:
            return size
    raise ValueError(f"a grid of {width} x {height} pixels is not one that training saves")


def small(images: Images) -> np.ndarray:
    """Return images as vectors `[N, 768]` in [0, 1], averaged down to 16 x 16."""
    shrunk = [
        np.asarray(Image.fromarray(image).resize((SMALL, SMALL), Image.Resampling.BOX))
        for image in images
    ]
    return np.stack(shrunk).reshape(len(images), -1).astype(np.float32) / 255


def spread(vectors: np.ndarray) -> float:
    """Return the mean distance between two of the vectors `[N, F]`; 0 for a single one."""
    if len(vectors) < 2:
        return 0.0
    distances = _distances(vectors, vectors)
    return float(distances.sum() / (len(vectors) * (len(vectors) - 1)))


@dataclass(frozen=True)
class Nearest:
    """Samples beside their nearest training images.

    Attributes:
        pairs: Sample, nearest training image, and their distance; 1 is the median distance from a
            training image to the nearest other one.
        ratio: Median of such distances over all samples, by pixels: those forgive the blur of a
            network that features see first.
        how: By what they were compared, and with how many training images.
    """

    pairs: list[tuple[np.ndarray, np.ndarray, float]]
    ratio: float
    how: str


def nearest(run: Run, samples: Images, measure: str = "auto", shown: int = 8) -> Nearest | None:
    """Find the training images that samples are nearest to; None where there are none.

    Args:
        run: The run.
        samples: Pictures of the last snapshot.
        measure: `features`, `pixels`, or `auto`: features where their weights are at hand and
            training images are few.
        shown: How many pairs to return.

    Raises:
        ValueError: Features were asked for, and cannot be computed.
    """
    reals, where = _training_images(run, samples.shape[1])
    if len(_different(reals)) < 2:
        return None
    embed, by = _embedding(measure, len(reals))
    distances = _relative(embed(samples), embed(reals), reals)
    pixels = _relative(small(samples), small(reals), reals)
    order, own = distances.argmin(1), distances.min(1)
    pairs = [(samples[i], reals[order[i]], float(own[i])) for i in range(min(shown, len(samples)))]
    return Nearest(pairs, float(np.median(pixels.min(1))), f"{by}, among {where}")


def _relative(fake: np.ndarray, train: np.ndarray, reals: Images) -> np.ndarray:
    """Return distances `[N, M]`; 1 is that from a training image to the nearest other one."""
    between = _distances(*[train[_different(reals)]] * 2)
    np.fill_diagonal(between, np.inf)
    return _distances(fake, train) / max(float(np.median(between.min(1))), 1e-12)


def _different(images: Images) -> list[int]:
    """Return which images are left where of equal and of mirrored ones the first is kept."""
    first: dict[bytes, int] = {}
    for index, image in enumerate(images):
        first.setdefault(min(image.tobytes(), image[:, ::-1].tobytes()), index)
    return list(first.values())


def _training_images(run: Run, size: int) -> tuple[Images, str]:
    """Return training images from the data set, or those that the run has a picture of."""
    from training.dataset import ImageDataset

    arguments = run.options.get("dataset", {})
    try:
        dataset: Any = ImageDataset(**{**arguments, "use_labels": False})
        chosen = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), MOST_REALS)).round())
        found = np.stack([_rgb(dataset[int(i)][0]) for i in chosen])
        if found.shape[1] == size:
            number = "all" if len(found) == len(dataset) else f"{len(found)} of"
            return found, f"{number} {len(dataset)} training images"
    except (ValueError, OSError, TypeError):
        pass  # moved, deleted, or of another version
    if run.reals is None:
        return np.zeros((0, size, size, 3), np.uint8), ""
    shown = cells(run.reals)
    return shown, f"the {len(shown)} training images in reals.png, as the data set is not at hand"


def _rgb(image: np.ndarray) -> np.ndarray:
    """Return `[H, W, 3]` of an image `[C, H, W]`, grey or transparent ones too."""
    pixels = image.transpose(1, 2, 0)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:] / 255
        return (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _embedding(measure: str, count: int) -> tuple[Callable[[Images], np.ndarray], str]:
    if measure == "pixels" or (measure == "auto" and count > MOST_FEATURES):
        return small, "compared by pixels at 16 x 16"
    import torch

    from metrics import detectors, weights

    try:
        if measure == "auto" and weights.on_disk(detectors.MOBILENETV2) is None:
            return small, "compared by pixels at 16 x 16, as MobileNetV2's weights are not at hand"
        detector = detectors.load(DETECTOR)
    except ValueError:
        if measure == "auto":
            return small, "compared by pixels at 16 x 16, as MobileNetV2's weights are not at hand"
        raise

    def embed(images: Images) -> np.ndarray:
        features: np.ndarray = detector(
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        ).numpy()
        return features

    return embed, "compared by MobileNetV2's features, as nn1k does"


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return Euclidean distances `[N, M]`."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    distances: np.ndarray = np.sqrt(np.maximum(squares, 0))
    return distances


def tiled(images: Images, columns: int) -> Image.Image:
    """Lay images out row by row, none larger than 64 pixels."""
    side = min(images.shape[1], 64)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for index, image in enumerate(images):
        tile = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
        sheet.paste(tile, (index % columns * side, index // columns * side))
    return sheet


def data_uri(picture: Image.Image) -> str:
    """Return a picture as a PNG inside a URI."""
    stream = io.BytesIO()
    picture.save(stream, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
