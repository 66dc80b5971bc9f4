"""How two sets of features overlap: precision, recall, density, coverage."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ENTRIES = 2**25  # distances held at a time


def precision_recall(
    real: Tensor, fake: Tensor, *, k: int = 3, half: bool = False
) -> tuple[float, float]:
    """Return improved precision and recall of features `[N, F]` and `[M, F]`, in [0, 1].

    Kynkaanniemi et al., NeurIPS 2019 (arXiv 1904.06991), Eq. 1 and 2: the share of fakes within a
    ball around some real image that reaches to its k-th neighbour, and the reverse.

    Args:
        real: Features of real images.
        fake: Features of fakes.
        k: Which neighbour a ball reaches to.
        half: Round features, distances and radii to float16, as in the published numbers.
    """
    return _covered(fake, real, k, half), _covered(real, fake, k, half)


def density_coverage(real: Tensor, fake: Tensor, *, k: int = 5) -> tuple[float, float]:
    """Return density, from 0 up, and coverage, in [0, 1], of features `[N, F]` and `[M, F]`.

    Naeem et al., ICML 2020 (arXiv 2002.09797), Eq. 2 and 3: how many balls of real images a fake
    lies in, over k, and the share of real images with a fake in their ball.
    """
    reach = radii(real, k)
    hits = 0
    reached = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for distances in _distances(fake, real):
        inside = distances <= reach
        hits += int(inside.sum())
        reached |= inside.any(0)
    return hits / (k * len(fake)), float(reached.double().mean())


def radii(features: Tensor, k: int, half: bool = False) -> Tensor:
    """Return each point's distance to its k-th nearest neighbour other than itself, `[N]`.

    Raises:
        ValueError: There are no k neighbours.
    """
    if len(features) <= k:
        raise ValueError(f"k must be below the number of images, got k={k}, {len(features)} images")
    rows = [d.kthvalue(k + 1, dim=1).values for d in _distances(features, features, half)]
    return torch.cat(rows)


def _covered(points: Tensor, centres: Tensor, k: int, half: bool) -> float:
    """Return the share of points within the ball of some centre."""
    reach = radii(centres, k, half)
    inside = [(d <= reach).any(1) for d in _distances(points, centres, half)]
    return float(torch.cat(inside).double().mean())


def _distances(x: Tensor, y: Tensor, half: bool = False) -> Iterator[Tensor]:
    """Yield blocks of rows of the matrix of Euclidean distances."""
    x, y = (t.half().double() if half else t.double() for t in (x, y))
    for rows in x.split(max(1, ENTRIES // len(y))):
        distances = torch.cdist(rows, y)
        yield distances.half().float() if half else distances  # a half has no kthvalue on the CPU
