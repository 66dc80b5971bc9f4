"""Training images from a folder or a ZIP, checked before training starts, and their order."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from stylegan2_fewshot.plugin import seed_of

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
IN_MEMORY_BYTES = 256 * 2**20
_ENDINGS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}


class ImageDataset(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray]]):
    """Square images of one size, from a folder (with its subfolders) or a ZIP.

    An item is `(image, label)`: uint8 `[C, H, W]` and float32 `[label_dim]`, both numpy arrays.
    PNG, JPEG and WebP; grey, RGB or RGBA. Header and end of every file are looked at first, so
    that what is wrong with a data set shows before training. Up to 256 MiB of pixels are decoded
    once and kept.

    Args:
        path: Folder or ZIP.
        use_labels: Read `dataset.json`, `{"labels": [["name.png", label], ...]}`, where a label
            is a class from 0 up, or a list of numbers. Otherwise labels are empty.
        max_size: Use that many files, chosen by `seed`; None for all.
        xflip: Append a mirrored copy of every image.
        seed: Seed of the choice under `max_size`.

    Raises:
        ValueError: Something is wrong with the files; the message names one and what to do.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        use_labels: bool = False,
        max_size: int | None = None,
        xflip: bool = False,
        seed: int = 0,
    ) -> None:
        self.path = str(path)
        self.xflip = xflip
        self._source = _open_source(Path(path))
        self.file_names = _image_names(self._source.names())
        if not self.file_names:
            raise ValueError(f"{path}: no images in it; need .png, .jpg or .webp files")
        self._mode, self.resolution = self._scan()
        # Of the images, and of their mirror images.
        self._labels = np.stack([self._read_labels()] * 2) if use_labels else None
        self._chosen = _choose(len(self.file_names), max_size, seed)
        self._decoded = self._decode()

    def __len__(self) -> int:
        return len(self._chosen) * (2 if self.xflip else 1)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        raw_idx, flipped = self.locate(index)
        if self._decoded is None:
            image = self._read(raw_idx)
        else:
            image = self._decoded[index % len(self._chosen)]
        return (image[:, :, ::-1] if flipped else image).copy(), self.get_label(index)

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
        if not self.has_onehot_labels:
            return label.copy()
        return (np.arange(self.label_dim) == label).astype(np.float32)

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
            name = self.file_names[raw_idx]
            with self._source.open(name) as stream:
                yield name, stream.read()

    def whole(self) -> ImageDataset:
        """Return the data set with all its files, where `max_size` leaves some out."""
        used = len(self) // (2 if self.xflip else 1)
        if used == len(self.file_names):
            return self
        return ImageDataset(self.path, xflip=self.xflip)

    def content_hash(self) -> str:
        """Return SHA-256, in hex digits, over names and bytes of the files in use."""
        return _content_hash(self)

    def _scan(self) -> tuple[str, int]:
        first_name = self.file_names[0]
        first = self._header(first_name)
        for name in self.file_names:
            header = self._header(name)
            _check_header(name, *header)
            if header != first:
                ours, theirs = (f"{mode} {w}x{h}" for mode, w, h in (header, first))
                raise ValueError(
                    f"{name}: {ours}, but {first_name} is {theirs}; convert all images to one kind"
                )
        return first[0], first[1]

    def _header(self, name: str) -> tuple[str, int, int]:
        with self._image(name) as (image, stream):
            header = _mode_of(image), *image.size
            # Only what does not end as it should is decoded: a JPEG may have data after its end.
            stream.seek(-8, os.SEEK_END)
            if not stream.read().endswith(_ENDINGS.get(image.format or "", b"none")):
                image.load()
        return header

    def _decode(self) -> np.ndarray | None:
        if len(self._chosen) * int(np.prod(self.image_shape)) > IN_MEMORY_BYTES:
            return None
        return np.stack([self._read(raw_idx) for raw_idx in self._chosen])

    def _read(self, raw_idx: int) -> np.ndarray:
        with self._image(self.file_names[raw_idx]) as (image, _):
            pixels = np.asarray(image.convert(self._mode))
        return pixels.reshape(self.resolution, self.resolution, -1).transpose(2, 0, 1)

    @contextlib.contextmanager
    def _image(self, name: str) -> Iterator[tuple[Image.Image, IO[bytes]]]:
        try:
            with self._source.open(name) as stream, Image.open(stream) as image:
                yield image, stream
        except Exception as error:  # Decoders and ZIPs raise of every kind.
            raise ValueError(
                f"{name}: cannot be read as an image ({error}); replace or remove it"
            ) from error

    def _read_labels(self) -> np.ndarray:
        if "dataset.json" not in self._source.names():
            raise ValueError(f"{self.path}: has no dataset.json, so there are no labels to use")
        try:
            with self._source.open("dataset.json") as stream:
                table = dict(json.load(stream)["labels"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                'dataset.json: must read {"labels": [["name.png", label], ...]}, '
                f"got {type(error).__name__}: {error}"
            ) from error
        return _label_array(self.file_names, table)


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


class _Folder:
    """Files below a directory, named by their path relative to it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        files = (path for path in self._path.rglob("*") if path.is_file())
        return [path.relative_to(self._path).as_posix() for path in files]

    def open(self, name: str) -> IO[bytes]:
        return open(self._path / name, "rb")


class _Zip:
    """Files of a ZIP; every process reads through a handle of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: zipfile.ZipFile | None = None
        self._pid = 0

    def names(self) -> list[str]:
        return [info.filename for info in self._archive().infolist() if not info.is_dir()]

    def open(self, name: str) -> IO[bytes]:
        return self._archive().open(name)

    def _archive(self) -> zipfile.ZipFile:
        # A handle that crossed a fork shares its position in the file with the parent's.
        if self._handle is None or self._pid != os.getpid():
            self._handle, self._pid = zipfile.ZipFile(self._path), os.getpid()
        return self._handle

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_handle": None, "_pid": 0}


def _open_source(path: Path) -> _Folder | _Zip:
    if path.is_dir():
        return _Folder(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such folder or ZIP")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: neither a folder nor a complete ZIP; pack it anew")
    return _Zip(path)


def _image_names(names: list[str]) -> list[str]:
    hidden = re.compile(r"(^|/)(\.|__MACOSX)")
    found = (name for name in names if Path(name).suffix.lower() in SUFFIXES)
    return sorted(name for name in found if not hidden.search(name))


def _mode_of(image: Image.Image) -> str:
    if image.mode.startswith(("I", "F")):  # more than 8 bits
        return image.mode
    if image.has_transparency_data:
        return "RGBA"
    return "L" if image.mode in ("1", "L") else "RGB"


def _check_header(name: str, mode: str, width: int, height: int) -> None:
    size = f"{width}x{height} pixels"
    if mode not in CHANNELS:
        raise ValueError(f"{name}: pixels are {mode}; save it with 8 bits per channel")
    if width != height:
        raise ValueError(f"{name}: {size}, which is not square; crop or pad all images")
    if width < 4 or width & (width - 1):
        raise ValueError(f"{name}: {size}, no power of two from 4 up; resize all images")


def _choose(size: int, max_size: int | None, seed: int) -> np.ndarray:
    if max_size is not None and max_size < 1:
        raise ValueError(f"max_size must be at least 1, got {max_size}")
    if max_size is None or max_size >= size:
        return np.arange(size)
    return np.sort(np.random.RandomState(seed).permutation(size)[:max_size])


def _label_array(names: list[str], table: dict[str, Any]) -> np.ndarray:
    missing = [name for name in names if table.get(name) is None]
    if missing:
        raise ValueError(
            f"dataset.json: no label for {missing[0]} and {len(missing) - 1} other images; "
            "label every image or none"
        )
    kind = _label_kind(names[0], table[names[0]])
    for name in names:
        found = _label_kind(name, table[name])
        if found != kind:
            raise ValueError(
                f"dataset.json: {name} has {found}, but {names[0]} has {kind}; "
                "give all images labels of one kind and length"
            )
    return np.array([table[n] for n in names], np.int64 if kind == "a class" else np.float32)


def _label_kind(name: str, label: Any) -> str:
    if type(label) is int and label >= 0:
        return "a class"
    if isinstance(label, list) and label and all(map(_is_number, label)):
        return f"a list of {len(label)}"
    raise ValueError(
        f"dataset.json: the label of {name} is {label!r}; "
        "it must be a class from 0 up or a list of finite numbers"
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
