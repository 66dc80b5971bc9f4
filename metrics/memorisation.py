"""Whether a generator repeats its training images: nearest neighbours and the copying test."""

from __future__ import annotations

import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np
import scipy.cluster.vq
import scipy.stats
import torch
from torch import Tensor


class Nearness(NamedTuple):
    """How near fakes are to the training images, seen beside images that G never saw.

    Attributes:
        ratio: Median distance of fakes over that of held-out images; below 1 is nearer.
        copies: Share of fakes that are nearer than all but 1 % of the held-out images.
        fake: Median distance of fakes to their nearest training image.
        heldout: The same of held-out images.
    """

    ratio: float
    copies: float
    fake: float
    heldout: float


class CopyingTest(NamedTuple):
    """Result of the three-sample test.

    Attributes:
        score: C_T, in standard deviations; far below 0 is copying, far above 0 underfitting.
        p_value: One-sided, of fakes being nearer than held-out images by chance alone.
        nearer: Share of pairs (fake, held-out) in which the fake is nearer; 0.5 is even.
    """

    score: float
    p_value: float
    nearer: float


@functools.lru_cache(maxsize=8)
def shared_images(train: Any, heldout: Any) -> int:
    """Return how many images of a data set are those of another, or their mirror images."""
    seen = {_digest(img) for item in train for img in (item[0], item[0][..., ::-1])}
    return sum(_digest(heldout[i][0]) in seen for i in range(len(heldout.file_names)))


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def nearest(features: Tensor, train: Tensor) -> Tensor:
    """Return the Euclidean distances `[N]` of features to their nearest training image."""
    return torch.cdist(features.double(), train.double()).amin(1)


def nearness(fake: Tensor, heldout: Tensor) -> Nearness:
    """Compare distances to the training set, `[N]` of fakes and `[M]` of held-out images."""
    usual, ours = heldout.median(), fake.median()
    limit = torch.quantile(heldout, 0.01)
    copies = (fake < limit).double().mean()
    ratio = ours / usual.clamp(min=1e-6)  # finite even where held-out images repeat training ones
    return Nearness(float(ratio), float(copies), float(ours), float(usual))


def copying_test(
    train: Tensor, fake: Tensor, heldout: Tensor, *, cells: int = 1, seed: int = 0
) -> CopyingTest:
    """Test whether fakes are systematically nearer to the training set than held-out images are.

    Meehan et al., AISTATS 2020 (arXiv 2004.05675), the statistic C_T: in each cell of a k-means
    partition of the training set, the z-score of the Mann-Whitney U of the distances to the
    training images there; then their mean, weighted by the share of held-out images. Cells
    without fakes or without held-out images have no say.

    Args:
        train: Features of the training images, `[N, F]`.
        fake: Features of fakes, `[M, F]`.
        heldout: Features of images of the same kind that G was not trained on, `[P, F]`.
        cells: Number of cells; 1 for a training set of few images.
        seed: Seed of k-means.
    """
    centres = _centres(train, cells, seed)
    of_train, of_fake, of_heldout = (
        torch.cdist(x.double(), centres).argmin(1) for x in (train, fake, heldout)
    )
    weights, tests = [], []
    for cell in of_train.unique():
        there, q, p = train[of_train == cell], fake[of_fake == cell], heldout[of_heldout == cell]
        if len(q) and len(p):
            tests.append(mann_whitney(nearest(q, there), nearest(p, there)))
            weights.append(len(p))
    if not tests:
        raise ValueError(f"cells must leave fakes and held-out images together, got {cells} cells")
    score, share = np.average(tests, axis=0, weights=weights)
    spread = np.sqrt(np.square(weights).sum()) / np.sum(weights)  # of a mean of standard normals
    return CopyingTest(float(score), float(scipy.stats.norm.cdf(score / spread)), float(share))


def mann_whitney(q: Tensor, p: Tensor) -> tuple[float, float]:
    """Return z-score of the Mann-Whitney U of `q > p`, and the share of pairs with `q < p`.

    Ties count half, and the variance is corrected for them; agrees with `scipy.stats.mannwhitneyu`
    (`asymptotic`, without continuity), whose p-value alone would not tell large scores apart.
    """
    m, n = len(q), len(p)
    ranks = scipy.stats.rankdata(torch.cat([q, p]).cpu().numpy())
    u = ranks[:m].sum() - m * (m + 1) / 2
    _, repeats = np.unique(ranks, return_counts=True)
    ties = (repeats.astype(float) ** 3 - repeats).sum() / ((m + n) * (m + n - 1))
    deviation = np.sqrt(m * n / 12 * (m + n + 1 - ties))
    z = (u - m * n / 2) / deviation if deviation > 0 else 0.0
    return float(z), float(1 - u / (m * n))


def _centres(train: Tensor, cells: int, seed: int) -> Tensor:
    points = train.double().cpu().numpy()
    if cells == 1:
        return torch.from_numpy(points.mean(0, keepdims=True)).to(train.device)
    centres, _ = scipy.cluster.vq.kmeans2(points, cells, minit="++", rng=seed)
    return torch.from_numpy(centres).to(train.device)
