"""Metrics that can be trusted on ten images: named, reproducible, cached, and offline."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .detectors import load
from .evaluation import Evaluation
from .registry import METRICS, Metric, check, find
from .results import append, is_better, read, value
from .weights import DetectorMissing

__all__ = [
    "METRICS",
    "DetectorMissing",
    "append",
    "compute",
    "is_better",
    "read",
    "usable",
    "value",
]


def usable(
    names: Sequence[str], dataset: Any, reference: Any = None, *, device: torch.device | str = "cpu"
) -> tuple[list[str], list[str]]:
    """Return which metrics can be computed, and a line for each other one that says why not.

    Detectors are found, downloaded where need be, and loaded.

    Raises:
        ValueError: A name is no metric's.
    """
    metrics = [find(name) for name in names]
    good, complaints = [], []
    for name, metric in zip(names, metrics, strict=True):
        try:
            check(metric, dataset, reference)
            load(metric.detector, torch.device(device))
            good.append(name)
        except ValueError as error:
            complaints.append(f"{metric.name} is left out: {error}")
    return good, complaints


def compute(
    names: Sequence[str],
    G: Any,
    dataset: Any,
    reference: Any = None,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
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
        seed: Seed of latents, labels, noise and subsets; the same gives the same numbers.
        kimg: Training time, to be noted in the results.
        snapshot: Name of the network's file, to be noted in the results.
        show: Whether to show progress bars.

    Raises:
        DetectorMissing: A detector cannot be had; ask `usable` first.
        ValueError: A name is no metric's, or the images cannot give it.
    """
    metrics = [find(name) for name in names]
    for metric in metrics:
        check(metric, dataset, reference)
    device = torch.device(device)
    expected = _most_fakes(metrics)
    evaluation = Evaluation(
        G, dataset, reference, device=device, seed=seed, show=show, expected=expected
    )
    for metric in metrics:
        yield _result(metric, evaluation, kimg=kimg, snapshot_pkl=snapshot)


def _most_fakes(metrics: list[Metric]) -> dict[str, int]:
    most: dict[str, int] = {}
    for metric in metrics:
        most[metric.detector] = max(metric.num_fakes, most.get(metric.detector, 0))
    return most


def _result(metric: Metric, evaluation: Evaluation, **notes: Any) -> dict[str, Any]:
    start = time.monotonic()
    detector = load(metric.detector, evaluation.device)
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
        "seed": evaluation.seed,
        **notes,
        "seconds": round(time.monotonic() - start, 1),
    }


def _key(name: str, part: str) -> str:
    base, at, detector = name.partition("@")
    return (f"{base}_{part}" if part else base) + at + detector
