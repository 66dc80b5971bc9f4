"""The files of the data instance prior: features of a data set, and conditions of a network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ... import stamped
from ...files import refusing

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
    """

    vectors: Tensor
    meta: dict[str, Any]
    center: Tensor | None = None

    def as_conditions(self) -> Instances:
        """Return the conditions that these features give: without their mean, of unit length.

        Features of different images share most of their direction (a mean cosine of 0.7 with
        MobileNetV2 on drawings), and what they share tells no image from another.
        """
        mean = self.vectors.flatten(0, -2).mean(0)
        return Instances(unit(self.vectors - mean), self.meta, mean)

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
    stamped.write(path, {k: v for k, v in tensors.items() if v is not None}, instances.meta)


def load(path: Path) -> Instances:
    """Read features or conditions; nothing in the file is executed.

    Raises:
        ValueError: It is no such file, truncated, or its numbers were altered.
    """
    remedy = f"make it with {_COMMAND}"
    tensors, meta = stamped.read(path, "file of features", remedy)
    with refusing(path, "not a file of features", remedy):
        found = Instances(tensors["vectors"], meta, tensors.get("center"))
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
    for tensor in (found.vectors, found.center):
        if tensor is not None and not (tensor.dtype is torch.float32 and tensor.isfinite().all()):
            raise ValueError("its numbers are not finite, or not of type float32")


def companion(network: Path) -> Path:
    """Return where the conditions of a network pickle belong, beside it."""
    return network.with_suffix(".prior.npz")


def beside(network: Path) -> Instances | None:
    """Return the conditions that lie beside a network pickle, or None if it has none."""
    path = companion(network)
    return load(path) if path.is_file() else None


def digest(data: bytes) -> str:
    """Return what an image file is recognised by."""
    return hashlib.sha256(data).hexdigest()


def labels_of(dataset: Any, instances: Instances) -> np.ndarray:
    """Return conditions as labels `[2, files, F]` of a data set; zeros where it uses no image.

    Raises:
        ValueError: An image in use is not among those that the conditions are of.
    """
    files = instances.meta.get("files", {})
    for name, data in dataset.files():
        if files.get(name) != digest(data):
            raise ValueError(
                f"--prior: holds no features of {name} as it is in {dataset.path}; compute those "
                f"of this data set: {_COMMAND} {dataset.path}"
            )
    rows = {name: row for row, name in enumerate(files)}
    known = [i for i, name in enumerate(dataset.file_names) if name in rows]
    labels = np.zeros((2, len(dataset.file_names), instances.vectors.shape[-1]), np.float32)
    labels[:, known] = instances.vectors[:, [rows[dataset.file_names[i]] for i in known]].numpy()
    return labels


def conditions_of(dataset: Any) -> Tensor:
    """Return the labels `[M, F]` of a data set, or of a random part of it if there are many."""
    chosen = np.random.RandomState(0).permutation(len(dataset))[:MOST_CONDITIONS]
    return torch.from_numpy(np.stack([dataset.get_label(int(i)) for i in sorted(chosen)]))
