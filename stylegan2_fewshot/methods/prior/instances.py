"""The files of the data instance prior: features of a data set, and conditions of a network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ... import tensor_file
from ...files import refusing
from .clusters import Clusters

MOST_CONDITIONS = 1000
_COMMAND = "python -m tools.features"


@dataclass(frozen=True)
class Instances:
    """Feature vectors of unit length, and the backbone that they come from.

    Attributes:
        vectors: Float32: `[2, N, F]` of the images of a data set and of their mirror images, or
            `[M, F]`, conditions to sample from.
        meta: `backbone`, `backbone_sha256` and `resize`, and, of a data set, `files`: the SHA-256
            of each file by name, in the order of the vectors.
        center: `[F]`, what was subtracted to make conditions of features; None: they are features.
        clusters: Those of all conditions of a training, of which `vectors` may be a part.
    """

    vectors: Tensor
    meta: dict[str, Any]
    center: Tensor | None = None
    clusters: Clusters | None = None

    def as_conditions(
        self, rows: Sequence[int] | None = None, *, mirrored: bool = True, centered: bool = True
    ) -> Instances:
        """Return the conditions that these features give, of unit length.

        Features of different images share most of their direction (a mean cosine of 0.7 with
        MobileNetV2 on drawings), and what they share tells no image from another.

        Args:
            rows: Images in use; None for all.
            mirrored: Whether their mirror images are in use as well.
            centered: Whether to take away the mean of those in use, which the paper does not do.
        """
        used = self.vectors if rows is None else self.vectors[:, list(rows)]
        used = used if mirrored else used[:1]
        mean = used.flatten(0, -2).mean(0)
        center = mean if centered else torch.zeros_like(mean)
        return Instances(unit(self.vectors - center), self.meta, center)

    def condition_of(self, features: Tensor) -> Tensor:
        """Return the conditions `[N, F]` of other images, of their features `[N, F]`."""
        features = unit(features)
        return features if self.center is None else unit(features - self.center)


def unit(vectors: Tensor) -> Tensor:
    """Return vectors `[..., F]` scaled to length 1."""
    return F.normalize(vectors, dim=-1)


def save(path: Path, instances: Instances) -> None:
    """Write features or conditions; the file is complete or absent."""
    tensors = {"vectors": instances.vectors, "center": instances.center}
    tensors |= vars(instances.clusters) if instances.clusters else {}
    tensor_file.write(path, {k: v for k, v in tensors.items() if v is not None}, instances.meta)


def load(path: Path) -> Instances:
    """Read features or conditions; nothing in the file is executed.

    Raises:
        ValueError: It is another kind of file, truncated, or its numbers were altered.
    """
    remedy = f"make it with {_COMMAND}"
    tensors, meta = tensor_file.read(path, "file of features", remedy)
    with refusing(path, "not a file of features", remedy):
        parts = {part.name: tensors[part.name] for part in fields(Clusters) if part.name in tensors}
        clusters = Clusters(**parts) if parts else None
        found = Instances(tensors["vectors"], meta, tensors.get("center"), clusters)
        _check(found)
    return found


def _check(found: Instances) -> None:
    """Raise ValueError unless shapes, types and names are such as `save` writes."""
    for key in ("backbone", "backbone_sha256"):
        if not isinstance(found.meta[key], str):
            raise ValueError(f"{key} is not a text")
    files = found.meta.get("files")
    count = found.vectors.shape[1] if found.vectors.dim() == 3 else None
    if files is None:
        fits = found.vectors.dim() == 2 and len(found.vectors) > 0
    else:
        fits = isinstance(files, dict) and len(files) == count and len(found.vectors) == 2
    width = found.vectors.shape[-1:]
    if not fits or not all(width) or (found.center is not None and found.center.shape != width):
        raise ValueError(f"its vectors are of shape {list(found.vectors.shape)}")
    clusters = vars(found.clusters) if found.clusters else {}
    if clusters and not _fit(found.clusters, width):
        raise ValueError("its clusters are not of its conditions")
    for tensor in (found.vectors, found.center, *clusters.values()):
        if tensor is not None and not (tensor.dtype is torch.float32 and tensor.isfinite().all()):
            raise ValueError("its numbers are not finite, or not of type float32")


def _fit(clusters: Clusters | None, width: torch.Size) -> bool:
    """Return whether clusters are such as `clusters.fitted` gives, of vectors `[..., width]`."""
    if clusters is None:
        return True
    count = clusters.weights.shape
    shapes = (clusters.means.shape, clusters.variances.shape)
    return (
        len(count) == 1
        and shapes == ((*count, *width),) * 2
        and clusters.centres.dim() == 2
        and clusters.centres.shape[1:] == width
        and len(clusters.centres) > 0
        and bool((clusters.variances >= 0).all() and (clusters.weights >= 0).all())
        and bool(clusters.weights.sum() > 0)
    )


def companion(network: Path) -> Path:
    """Return where the conditions of a network pickle belong, beside it."""
    return network.with_suffix(".prior.npz")


def load_beside(network: Path) -> Instances | None:
    """Return the conditions that lie beside a network pickle, or None if it has none."""
    path = companion(network)
    return load(path) if path.is_file() else None


def digest(data: bytes) -> str:
    """Return what an image file is recognised by."""
    return hashlib.sha256(data).hexdigest()


def rows_of(dataset: Any, instances: Instances) -> dict[str, int]:
    """Return the row of each image that a data set uses, by name.

    Raises:
        ValueError: An image in use is not among those that the features are of.
    """
    files = instances.meta.get("files", {})
    rows = {name: row for row, name in enumerate(files)}
    used = {}
    for name, data in dataset.files():
        if files.get(name) != digest(data):
            raise ValueError(
                f"--prior: holds no features of {name} as it is in {dataset.path}; compute those "
                f"of this data set: {_COMMAND} {dataset.path}"
            )
        used[name] = rows[name]
    return used


def labels_of(dataset: Any, vectors: Tensor, rows: Mapping[str, int]) -> np.ndarray:
    """Return conditions as labels `[2, files, F]` of a data set; zeros where it uses no image.

    Args:
        dataset: The data set.
        vectors: Conditions `[2, N, F]`.
        rows: Which of them is that of a file, by its name.
    """
    known = [i for i, name in enumerate(dataset.file_names) if name in rows]
    labels = np.zeros((2, len(dataset.file_names), vectors.shape[-1]), np.float32)
    labels[:, known] = vectors[:, [rows[dataset.file_names[i]] for i in known]].numpy()
    return labels


def permuted(rows: Mapping[str, int]) -> dict[str, int]:
    """Return the same rows for other names, none for its own if there are two or more."""
    names = list(rows)
    order = [names[i] for i in np.random.RandomState(0).permutation(len(names))]
    return {name: rows[order[i - 1]] for i, name in enumerate(order)}


def conditions_of(dataset: Any) -> Tensor:
    """Return the labels `[N, F]` of a data set."""
    return torch.from_numpy(np.stack([dataset.get_label(i) for i in range(len(dataset))]))


def some(vectors: Tensor) -> Tensor:
    """Return vectors `[N, F]`, or a random part of them if there are many."""
    chosen = np.random.RandomState(0).permutation(len(vectors))[:MOST_CONDITIONS]
    return vectors[sorted(chosen)]
