"""Training images from a folder or a ZIP, checked before training starts, and their order."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from stylegan2_fewshot.files import printable
from stylegan2_fewshot.plugin import seed_of

from . import images, labels, problems
from .archive import CHECKED_BYTES, open_source
from .images import CHANNELS

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
IN_MEMORY_BYTES = 256 * 2**20


class ImageDataset(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray]]):
    """Square images of one size, from a folder (with its subfolders) or a ZIP.

    An item is `(image, label)`: uint8 `[C, H, W]` and float32 `[label_dim]`, both numpy arrays.
    PNG, JPEG and WebP; grey, RGB or RGBA; turned as their EXIF says. Nothing is decoded until it
    is asked for.

    Args:
        path: Folder or ZIP.
        use_labels: Read `dataset.json`, `{"labels": [["name.png", label], ...]}`, where a label
            is a class from 0 up, or a list of numbers. Otherwise labels are empty.
        max_size: Use that many files, chosen by `seed`; None for all.
        xflip: Append a mirrored copy of every image.
        seed: Seed of the choice under `max_size`.
        check: Look at header and end of every file, and at every byte of up to 256 MiB. Without,
            the first image alone says what all are; for files that were looked at before.

    Attributes:
        file_names: Names of all images, in order.
        notes: Lines about what was left out or looks like a mistake.

    Raises:
        ValueError: Something is wrong with the files; the message says all of it, and what to do.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        use_labels: bool = False,
        max_size: int | None = None,
        xflip: bool = False,
        seed: int = 0,
        check: bool = True,
    ) -> None:
        self.path = str(path)
        self.xflip = xflip
        self._source = open_source(Path(path))
        names = self._source.names
        self._numbers = [i for i, name in enumerate(names) if _suffix(name) in SUFFIXES]
        self.file_names = [names[i] for i in self._numbers]
        if not self._numbers:
            raise ValueError(self._no_images())
        self._mode, self.resolution = self._scan() if check else self._first()
        self.notes = self._about_others()
        # Of the images, and of their mirror images.
        self._labels = np.stack([self._read_labels()] * 2) if use_labels else None
        if not use_labels:
            self.notes += self._about_unused_labels()
        self._chosen = _choose(len(self.file_names), max_size, seed)
        self._decoded: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._chosen) * (2 if self.xflip else 1)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        raw_idx, flipped = self.locate(index)
        if self._decoded is None:
            image = self._read(raw_idx)
        else:
            image = self._decoded[index % len(self._chosen)]
        return (image[:, :, ::-1] if flipped else image).copy(), self.get_label(index)

    def keep_decoded(self, most_bytes: int = IN_MEMORY_BYTES) -> bool:
        """Decode all images and keep them if their pixels take at most that; return whether.

        Processes that train together share what a machine has: give each its part.
        """
        if len(self._chosen) * int(np.prod(self.image_shape)) > most_bytes:
            return False
        self._decoded = np.stack([self._read(raw_idx) for raw_idx in self._chosen])
        return True

    @property
    def is_in_memory(self) -> bool:
        """Whether all images are decoded and kept, so that loading one costs next to nothing."""
        return self._decoded is not None

    @property
    def num_channels(self) -> int:
        return CHANNELS[self._mode]

    @property
    def image_shape(self) -> list[int]:
        return [self.num_channels, self.resolution, self.resolution]

    @property
    def has_onehot_labels(self) -> bool:
        return self._labels is not None and self._labels.dtype == np.int64

    @functools.cached_property
    def label_dim(self) -> int:
        if self._labels is None:
            return 0
        return int(self._labels.max() + 1 if self.has_onehot_labels else self._labels.shape[2])

    def get_label(self, index: int) -> np.ndarray:
        """Return the label of an item, float32 `[label_dim]`; a class becomes a one-hot vector."""
        if self._labels is None:
            return np.zeros(0, np.float32)
        raw_idx, flipped = self.locate(index)
        label = self._labels[int(flipped), raw_idx]
        result: np.ndarray
        if self.has_onehot_labels:
            result = (np.arange(self.label_dim) == label).astype(np.float32)
        else:
            result = label.copy()
        return result

    def locate(self, index: int) -> tuple[int, bool]:
        """Return which of `file_names` an item comes from, and whether it is mirrored."""
        repeat, position = divmod(range(len(self))[index], len(self._chosen))
        return int(self._chosen[position]), bool(repeat)

    def with_labels(self, labels: np.ndarray) -> ImageDataset:
        """Return the same images with other labels.

        Args:
            labels: Float32 `[2, files, label_dim]`, for the images in `file_names` and for their
                mirror images.
        """
        other = copy.copy(self)
        other.__dict__.pop("label_dim", None)
        other._labels = labels
        return other

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and bytes of every file in use."""
        for raw_idx in self._chosen:
            yield self.file_names[raw_idx], self._source.read(self._numbers[raw_idx])

    def identity(self) -> dict[str, Any]:
        """Return what tells whether a data set is still the same, as plain numbers and text.

        It is cheap: of a ZIP only the directory is read, of a folder at most 256 MiB.
        """
        labels_digest = hashlib.sha256(b"" if self._labels is None else self._labels.tobytes())
        files = hashlib.sha256()
        stamps = self._source.stamps(self._numbers)
        for name, stamp in zip(self.file_names, stamps, strict=True):
            files.update(f"{name}\n{stamp}\n".encode(errors="surrogateescape"))
        return {
            "images": len(self.file_names),
            "resolution": self.resolution,
            "channels": self.num_channels,
            "label_dim": self.label_dim,
            "labels": labels_digest.hexdigest(),
            "files": files.hexdigest(),
        }

    def _first(self) -> tuple[str, int]:
        mode, _, height = self._header(0)
        return mode, height

    def whole(self) -> ImageDataset:
        """Return the data set with all its files, where `max_size` leaves some out."""
        used = len(self) // (2 if self.xflip else 1)
        if used == len(self.file_names):
            return self
        return ImageDataset(self.path, xflip=self.xflip, check=False)

    def content_hash(self) -> str:
        """Return SHA-256, in hex digits, over names and bytes of the files in use."""
        return _content_hash(self)

    def _scan(self) -> tuple[str, int]:
        found = problems.Findings()
        whole = sum(map(self._source.size, self._numbers)) <= CHECKED_BYTES
        for position, name in enumerate(self.file_names):
            try:
                found.add(name, self._header(position, whole=whole))
            except ValueError as error:
                found.broken.add(str(error).rpartition("; ")[0])
        if lines := found.problems():
            start, end = ("\n  ", "\n") if len(lines) > 1 else (" ", "; ")
            raise ValueError(
                start.join([f"{self.path}: {len(self.file_names)} images, but", *lines])
                + f"{end}make a data set of them: {found.command(self.path)}"
            )
        return next((kind.mode, kind.width) for kind in found.kinds)

    def _header(self, position: int, *, whole: bool = False) -> images.Header:
        source, number, name = self._source, self._numbers[position], self.file_names[position]
        if whole:
            data = source.read(number)
            return images.checked_header(len(data), lambda start, stop: data[start:stop], name)
        part = functools.partial(source.part, number)
        return images.checked_header(source.size(number), part, name)

    def _read(self, raw_idx: int) -> np.ndarray:
        data, name = self._source.read(self._numbers[raw_idx]), self.file_names[raw_idx]
        with images.opened(io.BytesIO(data), name) as image:
            pixels = np.asarray(images.upright(image).convert(self._mode))
        if pixels.shape[:2] != (self.resolution, self.resolution):
            height, width = pixels.shape[:2]
            raise ValueError(
                f"{printable(name)}: {width}x{height} pixels, but the data set's first image has "
                f"{self.resolution}x{self.resolution}; did it change?"
            )
        return pixels.reshape(self.resolution, self.resolution, -1).transpose(2, 0, 1)

    def _read_labels(self) -> np.ndarray:
        number = labels.find(self._source)
        if number is None:
            command = f"{problems.prepare_command(self.path)} --labels=folders"
            raise ValueError(
                f"{self.path}: has no dataset.json, so there are no labels to use; where each "
                f"folder is a class, this makes it: {command} --size={self.resolution}"
            )
        found, notes = labels.read(self._source, number, self.file_names)
        self.notes += notes
        return found

    def _others(self) -> list[str]:
        names = self._source.names
        return [n for n in names if _suffix(n) not in SUFFIXES and not n.endswith(labels.FILE)]

    def _about_others(self) -> list[str]:
        if not (others := self._others()):
            return []
        files = "1 other file" if len(others) == 1 else f"{len(others)} other files"
        return [
            f"{self.path}: {len(self.file_names)} images; {files} left out: "
            + problems.left_out(others)
        ]

    def _about_unused_labels(self) -> list[str]:
        number = labels.find(self._source)
        if number is None or labels.is_empty(self._source, number):
            return []
        return [f"{self.path}: dataset.json is not used; --cond=1 learns its labels"]

    def _no_images(self) -> str:
        text = f"{self.path}: no images in it to train on, which are .png, .jpg and .webp files"
        if others := self._others():
            text += f"; {len(others)} other files: {problems.left_out(others)}"
        names = self._source.names
        numbers = [i for i, name in enumerate(names) if _suffix(name) in problems.PREPARABLE]
        if not numbers:
            return text
        found = problems.Findings()
        for i in numbers[:1000]:  # enough to tell their size
            file = io.BytesIO(self._source.read(i))
            with (
                contextlib.suppress(ValueError),
                images.opened(file, names[i], images.RASTER) as image,
            ):
                found.add(names[i], images.Header("RGB", *image.size))
        return f"{text}\nmake a data set of them: {found.command(self.path)}"


class InfiniteSampler(torch.utils.data.Sampler[int]):
    """An endless stream of indices, every one once per epoch, in an order of its own each epoch.

    The index at a position of the stream is a pure function of `(seed, position)`, and positions
    are dealt to the ranks in turn. A stream that starts at position `cur_nimg` is therefore the
    rest of the one that started at 0, whatever the batch size and number of ranks.

    Args:
        size: Number of items to draw from.
        seed: Seed of the order.
        rank: Which rank draws.
        world_size: Number of ranks.
        start_index: Position, over all ranks, to start from.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start_index: int = 0,
    ) -> None:
        self._size = size
        self._seed = seed
        self._first = start_index + rank
        self._stride = world_size

    def __iter__(self) -> Iterator[int]:
        for position in itertools.count(self._first, self._stride):
            epoch, place = divmod(position, self._size)
            yield int(_order(self._size, self._seed, epoch)[place])


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.RandomState(seed_of(seed, epoch) % 2**32).permutation(size)


@functools.lru_cache(maxsize=4)
def _content_hash(dataset: ImageDataset) -> str:
    digest = hashlib.sha256(f"xflip={dataset.xflip}".encode())
    for name, data in dataset.files():
        digest.update(f"\n{name}\n{len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _choose(size: int, max_size: int | None, seed: int) -> np.ndarray:
    if max_size is not None and max_size < 1:
        raise ValueError(f"max_size must be at least 1, got {max_size}")
    if max_size is None or max_size >= size:
        return np.arange(size)
    return np.sort(np.random.RandomState(seed).permutation(size)[:max_size])


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
