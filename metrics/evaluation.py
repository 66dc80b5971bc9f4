"""What the metrics of one generator share: its fakes, the real images, and their features."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import sharpness
from .detectors import Detector, to_rgb
from .features import Fakes, InMemory, Reals, Source, Subject, cached, extract, unchanged

_SAMPLED_GROUPS = 3  # and another before them, to warm up
IN_MEMORY_BYTES = 2**28  # 5,000 fakes of up to 96 x 96 pixels, 1,000 of 256 x 256


class Evaluation:
    """One generator before one training set and one reference set.

    Args:
        subject: The generator, on the device where features are computed.
        dataset: Training set.
        reference: Images to measure against; None for all of the training set's files.
        show: Whether to show progress bars.
        expected: How many fakes will be asked for, by detector: they are made in one go.
    """

    keeps_reals: ClassVar[bool] = True  # features of real images go to the user's cache

    def __init__(
        self,
        subject: Subject,
        dataset: Any,
        reference: Any | None = None,
        *,
        show: bool = True,
        expected: Mapping[Detector, int] | None = None,
    ) -> None:
        self.subject = subject
        self.dataset = dataset
        self.reference = dataset.whole() if reference is None else reference
        self.device = subject.device
        self.show = show
        self._expected = expected or {}
        self._fakes: dict[Detector, Tensor] = {}
        self._of_fakes: dict[tuple[Any, ...], Tensor] = {}
        self._images = torch.empty(0)

    def fakes(self, size: int) -> Source:
        """Return the first fakes as a source of images; small ones are made once and kept."""
        most = max([size, *self._expected.values()])
        if most * 4 * self.subject.G.img_resolution**2 > IN_MEMORY_BYTES:
            return Fakes(self.subject, size)
        if len(self._images) < size:
            self._images = self.extract(Fakes(self.subject, most), unchanged, "fakes")
        return InMemory(self._images[:size])

    def fake_features(self, detector: Detector, size: int) -> Tensor:
        """Return features `[size, F]` of the first fakes, kept for the next metric."""
        known = self._fakes.get(detector)
        if known is None or len(known) < size:
            wanted = max(size, self._expected.get(detector, 0))
            known = self.extract(self.fakes(wanted), detector, f"fakes, {detector.name}")
            self._fakes[detector] = known
        return known[:size].to(self.device)

    def real_features(self, detector: Detector, **selection: Any) -> Tensor:
        """Return features of the reference set; `selection` as in `Reals`."""
        return self.features_of(self.reference, detector, **selection)

    def train_images(self) -> Reals:
        """Return the images of the training set as it is trained on."""
        return Reals(self.dataset, mirrored=True)

    def real_images(self) -> Reals:
        """Return the images of the reference set."""
        return Reals(self.reference)

    def sharpness(self, source: Source) -> Tensor:
        """Return the mean sharpness of images under every blur of `sharpness.SIGMAS`."""

        def mean() -> Tensor:
            return self.extract(source, _curve, "sharpness").mean(0)

        key = ("sharpness", sharpness.SIGMAS)
        return self._kept(source, key, mean)

    def blurred(self, source: Source, detector: Detector, sigma: float) -> Tensor:
        """Return features of images that are blurred by `sigma` pixels first."""

        def features() -> Tensor:
            title = f"blurred images, {detector.name}"
            return self.extract(source, lambda x: detector(_blur(x, sigma)), title)

        key = (f"blur {sigma}", detector.name, detector.sha256, detector.resize)
        return self._kept(source, key, features).to(self.device)

    def _kept(self, source: Source, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """Return what `make` gives: of reals from the cache, of fakes from the last metric."""
        if not isinstance(source, Reals):
            known = (source.size, *key)
            if known not in self._of_fakes:
                self._of_fakes[known] = make()
            return self._of_fakes[known]
        parts = (source.dataset.content_hash(), source.size, *key)
        return cached(parts, make, keep=self.keeps_reals)

    def features_of(self, dataset: Any, detector: Detector, **selection: Any) -> Tensor:
        """Return features of a data set, from the cache where its content is known."""
        source = Reals(dataset, **selection)
        key = (dataset.content_hash(), source.size, detector.name, detector.sha256, detector.resize)
        title = f"real images, {detector.name}"
        features = cached(key, lambda: self.extract(source, detector, title), keep=self.keeps_reals)
        return features.to(self.device)

    def num_reals(self, **selection: Any) -> int:
        """Return how many images of the reference set `selection` comes to."""
        return Reals(self.reference, **selection).size

    def extract(self, source: Any, function: Any, title: str) -> Tensor:
        return extract(source, function, device=self.device, show=title if self.show else "")


class Sampled(Evaluation):
    """An evaluation that looks at a few fakes only, and counts the time that the others would take.

    Metrics get as many rows as they ask for, repeated ones: they take the time that they always do,
    and their values mean nothing. Features of real images, which are kept, are the true ones.

    Attributes:
        owed_sec: Seconds to add to those that have passed.
        once_sec: Seconds of what is kept for the next time.
    """

    owed_sec = once_sec = 0.0

    def extract(self, source: Any, function: Any, title: str) -> Tensor:
        if isinstance(source, Reals):
            start = time.monotonic()
            rows = self._extract_reals(source, function, title)
            self.owed_sec -= time.monotonic() - start
            return rows
        rows, rest = self._extract_few(source, function)
        self.owed_sec += rest
        return rows

    def _extract_reals(self, source: Reals, function: Any, title: str) -> Tensor:
        return super().extract(source, function, title)

    def _extract_few(self, source: Any, function: Any) -> tuple[Tensor, float]:
        """Return as many rows as there are images, repeated, and the seconds of those left out."""
        parts: list[Tensor] = []
        ends, first = [], 0
        for size in self._few(source):
            items = source.load(first, min(first + size, source.size))
            parts.append(function(items.to(self.device)).cpu())
            ends.append(time.monotonic())
            first += size
            if first >= source.size:
                break
        rows, rest = torch.cat(parts), 0.0
        if timed := len(rows) - len(parts[0]):  # the first group warmed up
            rest = (ends[-1] - ends[0]) / timed * (source.size - len(rows))
        return rows[torch.arange(source.size) % len(rows)], rest

    def _few(self, source: Any) -> list[int]:
        """Return the sizes of the groups that are looked at."""
        return [source.group] * (_SAMPLED_GROUPS + 1)


class Glimpsed(Sampled):
    """As `Sampled`, in a moment: real images that nobody has measured yet are sampled as well."""

    keeps_reals = False

    def _few(self, source: Any) -> list[int]:
        if isinstance(source, Fakes):  # a group is made as a whole
            return [source.group] * 2
        return [min(source.group, size) for size in (8, 24)]

    def _extract_reals(self, source: Reals, function: Any, title: str) -> Tensor:
        start = time.monotonic()
        rows, rest = self._extract_few(source, function)
        self.once_sec += time.monotonic() - start + rest
        return rows


def _curve(images: Tensor) -> Tensor:
    return sharpness.curve(to_rgb(images))


def _blur(images: Tensor, sigma: float) -> Tensor:
    return sharpness.blur(to_rgb(images), sigma)
