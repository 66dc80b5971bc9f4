"""Metrics that can be trusted on ten images: named, reproducible, cached, and offline."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from stylegan2_fewshot import distributed
from stylegan2_fewshot.trust import NOBODY, Trust

from .detectors import MOBILENETV2, Detector, load
from .evaluation import Evaluation, Glimpsed, Sampled
from .features import Pool, Subject
from .registry import METRICS, Metric, check, find
from .results import append, is_better, read, value
from .weights import DetectorMissing, on_disk

__all__ = [
    "METRICS",
    "DetectorMissing",
    "Pool",
    "Seconds",
    "Trust",
    "append",
    "compute",
    "is_better",
    "read",
    "seconds",
    "usable",
    "value",
]


def usable(
    names: Sequence[str],
    dataset: Any,
    reference: Any = None,
    *,
    device: torch.device | str = "cpu",
    trust: Trust = NOBODY,
) -> tuple[list[str], list[str]]:
    """Return which metrics can be computed, and a line for each other one that says why not.

    Detectors are found, downloaded where need be, and loaded.

    Raises:
        ValueError: There is no metric of a name.
    """
    metrics = {name: find(name) for name in names}
    troubles: dict[str, str] = {}
    for name, metric in metrics.items():
        try:
            check(metric, dataset, reference)
            load(metric.detector, torch.device(device), trust=trust)
        except ValueError as error:
            why = str(error).removeprefix(f"{metric.name}: ")
            troubles[name] = f"{metric.name} is left out: {why}{_alternative(error)}"
    for others in distributed.gather(troubles):  # what one rank cannot do, none does
        troubles = {**others, **troubles}
    return [name for name in metrics if name not in troubles], list(troubles.values())


def _alternative(error: ValueError) -> str:
    """Return which metric works on this machine as it is, where a detector is missing."""
    if not isinstance(error, DetectorMissing) or on_disk(MOBILENETV2) is None:
        return ""
    return "; --metrics=kid5k_full@mobilenetv2 works here"


def compute(
    names: Sequence[str],
    G: Any,
    dataset: Any,
    reference: Any = None,
    *,
    device: torch.device | str = "cpu",
    trust: Trust = NOBODY,
    seed: int = 0,
    labels: Any = None,
    kimg: float | None = None,
    snapshot: str | None = None,
    show: bool = True,
) -> Iterator[dict[str, Any]]:
    """Yield a result for each metric, as soon as it is known; the same on every rank.

    Every rank has to take part. Features of fakes are shared between metrics, so the first metric
    with a detector takes the time for all; those of real images are kept in the user's cache.

    Args:
        names: Metrics, as `kid5k_full@mobilenetv2`.
        G: Generator, in evaluation mode, on `device`.
        dataset: Training set, an `ImageDataset`.
        reference: Images to measure against; None for all files of the training set. Few-shot
            metrics want images held out.
        device: Where to compute.
        trust: What the user says about detectors that are programs.
        seed: Seed of latents, labels, noise and subsets; the same gives the same numbers.
        labels: Where those of fakes are drawn from, a data set or a `Pool`; default: `dataset`.
        kimg: Training time, to be noted in the results.
        snapshot: Name of the network's file, to be noted in the results.
        show: Whether to show progress bars.

    Raises:
        DetectorMissing: A detector is unavailable; ask `usable` first.
        ValueError: There is no metric of a name, or the images cannot give it.
    """
    subject = Subject(G, dataset if labels is None else labels, seed, torch.device(device))
    pairs, expected = _prepared(names, dataset, reference, subject.device, trust)
    evaluation = Evaluation(subject, dataset, reference, show=show, expected=expected)
    for metric, detector in pairs:
        yield _result(metric, detector, evaluation, kimg=kimg, snapshot_pkl=snapshot)


class Seconds(NamedTuple):
    """What `compute` takes: each time, and once more the first time."""

    each: float
    once: float


def seconds(
    names: Sequence[str],
    G: Any,
    dataset: Any,
    reference: Any = None,
    *,
    device: torch.device | str = "cpu",
    trust: Trust = NOBODY,
    quick: bool = False,
) -> Seconds:
    """Return how long `compute` would take on this rank, from a few of the fakes that it makes.

    Args:
        names: Metrics, as `kid5k_full@mobilenetv2`.
        G: Generator, in evaluation mode, on `device`.
        dataset: Training set, an `ImageDataset`.
        reference: Images to measure against; None for all files of the training set.
        device: Where to compute.
        trust: What the user says about detectors that are programs.
        quick: Whether to look at a few real images as well. If not, features of all of them are
            computed and kept, as by `compute`, which then has nothing to do `once`.
    """
    subject = Subject(G, dataset, 0, torch.device(device))
    pairs, expected = _prepared(names, dataset, reference, subject.device, trust)
    kind = Glimpsed if quick else Sampled
    evaluation = kind(subject, dataset, reference, expected=expected)
    start = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):  # warnings about values that mean nothing here
        for metric, detector in pairs:
            metric.function(evaluation, detector, metric)
    each = time.monotonic() - start + evaluation.owed_sec
    return Seconds(each, evaluation.once_sec)


def _prepared(
    names: Sequence[str], dataset: Any, reference: Any, device: torch.device, trust: Trust
) -> tuple[list[tuple[Metric, Detector]], dict[Detector, int]]:
    """Return metrics with their detectors, and how many fakes each detector will see."""
    metrics = [find(name) for name in names]
    for metric in metrics:
        check(metric, dataset, reference)
    loaded = [load(metric.detector, device, trust=trust) for metric in metrics]
    pairs = list(zip(metrics, loaded, strict=True))
    return pairs, {own: max(m.num_fakes for m, other in pairs if other == own) for own in loaded}


def _result(
    metric: Metric, detector: Detector, evaluation: Evaluation, **notes: Any
) -> dict[str, Any]:
    start = time.monotonic()
    values = metric.function(evaluation, detector, metric)
    return {
        "metric": metric.name,
        "results": {_key(metric.name, part): number for part, number in values.items()},
        "better": metric.better,
        "detector": detector.name,
        "sha256": detector.sha256,
        "resize": detector.resize,
        "num_fakes": metric.num_fakes,
        "num_reals": evaluation.num_reals(mirrored=metric.mirrored, limit=metric.max_reals),
        "num_train": len(evaluation.dataset),
        "seed": evaluation.subject.seed,
        **notes,
        "seconds": round(time.monotonic() - start, 1),
    }


def _key(name: str, part: str) -> str:
    base, at, detector = name.partition("@")
    return (f"{base}_{part}" if part else base) + at + detector
