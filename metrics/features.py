"""Images of a generator or a data set, in groups, and what a function makes of them.

Groups are dealt to the ranks. The random numbers of a fake depend on the seed and its group alone,
and the size of a group on the resolution alone, so that neither the number of ranks nor the batch
of a detector changes a result; 1,000 fakes are the first of 5,000.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stylegan2_fewshot import cache, distributed
from stylegan2_fewshot.files import replacing
from stylegan2_fewshot.pixels import to_uint8
from stylegan2_fewshot.plugin import seed_of
from stylegan2_fewshot.progress import progress

CPU = torch.device("cpu")


class Source(Protocol):
    """Something that gives tensors by groups: the items `[start, stop)` of `size`."""

    size: int
    group: int

    def load(self, start: int, stop: int) -> Tensor: ...


def unchanged(x: Tensor) -> Tensor:
    """Return `x`: the function to extract with where there is none."""
    return x


@dataclass(frozen=True)
class Pool:
    """Labels `[M, c_dim]` without images, to draw from as from a data set."""

    vectors: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def get_label(self, index: int) -> np.ndarray:
        return self.vectors[index].numpy()


@dataclass(frozen=True)
class Subject:
    """A generator that is measured, and what its random inputs depend on.

    Attributes:
        G: Generator, in evaluation mode, on `device`.
        labels: Data set or `Pool` that the label of a fake is drawn from, where G has labels.
        seed: Seed of latents, labels and noise.
        device: Where G is.
    """

    G: Any
    labels: Any = None
    seed: int = 0
    device: torch.device = CPU

    def draw_labels(self, size: int, rng: torch.Generator) -> Tensor:
        """Return labels `[size, c_dim]` of images of the data set; empty ones if G has none."""
        c = torch.zeros(size, 0)
        if self.G.c_dim:
            chosen = torch.randint(len(self.labels), [size], generator=rng).tolist()
            c = torch.from_numpy(np.stack([self.labels.get_label(i) for i in chosen]))
        return c.to(self.device)


class Fakes:
    """The first `size` images of a generator, uint8 `[N, C, H, W]`."""

    def __init__(self, subject: Subject, size: int) -> None:
        self.subject = subject
        self.size = size
        self.group = group_size(subject.G.img_resolution)

    @torch.no_grad()
    def load(self, start: int, stop: int) -> Tensor:
        G, device = self.subject.G, self.subject.device
        with seeded(self.subject.seed, start, device) as rng:
            z = torch.randn(self.group, G.z_dim, generator=rng)
            c = self.subject.draw_labels(self.group, rng)
            # All of the group: how many there are decides what noise the second layer gets.
            return to_uint8(G(z.to(device), c))[: stop - start]


class Reals:
    """Images of a data set, uint8 `[N, C, H, W]`.

    Args:
        dataset: Gives `(image, label)` by index; with `xflip`, its second half are mirror images.
        mirrored: Whether to include those.
        limit: Use the first so many at most.
    """

    def __init__(self, dataset: Any, *, mirrored: bool = False, limit: int | None = None) -> None:
        self.dataset = dataset
        self.group = group_size(dataset.resolution)
        originals = len(dataset) // (2 if dataset.xflip else 1)
        size = len(dataset) if mirrored else originals
        self.size = min(size, limit or size)

    def load(self, start: int, stop: int) -> Tensor:
        return torch.from_numpy(np.stack([self.dataset[i][0] for i in range(start, stop)]))


class InMemory:
    """Images that are in memory, `[N, C, H, W]`."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.size = len(images)
        self.group = group_size(images.shape[-1])

    def load(self, start: int, stop: int) -> Tensor:
        return self.images[start:stop]


def extract(
    source: Source, function: Callable[[Tensor], Tensor], *, device: torch.device, show: str = ""
) -> Tensor:
    """Return `function` of all items of `source`, in order, on every rank, in memory of the CPU.

    Args:
        source: Where items come from; this rank loads its share.
        function: Maps a group `[n, ...]` to a tensor `[n, ...]`.
        device: Where a group is put first.
        show: What a progress bar says; none if empty.
    """
    rank, ranks = distributed.rank(), distributed.world_size()
    starts = range(rank * source.group, source.size, ranks * source.group)
    bar = progress(starts, f"{show}, {source.size} in groups", show=bool(show) and rank == 0)
    mine = []
    for start in bar:
        items = source.load(start, min(start + source.group, source.size))
        mine.append((start, function(items.to(device)).cpu()))
    parts = sorted((part for rank in distributed.gather(mine) for part in rank), key=lambda p: p[0])
    return torch.cat([part for _, part in parts])


def cached(parts: tuple[object, ...], make: Callable[[], Tensor], *, keep: bool = True) -> Tensor:
    """Return what `make` returned the last time it was asked for with these parts of a key.

    Args:
        parts: What the features depend on.
        make: Computes them where they are not known.
        keep: Whether to keep what `make` returns.
    """
    key = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]
    path = cache.folder() / "features" / f"{key}.npy"
    found = distributed.gather(path.is_file())  # the ranks may not see the same disk
    if all(found):
        return torch.from_numpy(np.load(path, allow_pickle=False))
    features = make()
    if keep and not found[distributed.rank()]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            np.save(stream, features.numpy(), allow_pickle=False)
    return features


def group_size(resolution: int) -> int:
    """Return how many images go together: 64 up to 256 x 256, then fewer, at least 4."""
    return max(4, min(64, 2**22 // resolution**2))


@contextlib.contextmanager
def seeded(seed: int, start: int, device: torch.device) -> Iterator[torch.Generator]:
    """Give a generator of random numbers for the group at `start`, and seed the global ones.

    The noise that a network draws comes from the global generators; they are as before afterwards.
    """
    own = seed_of(seed, "metrics", start)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(own)
        yield torch.Generator().manual_seed(own)
