"""Clusters of conditions: centres (k-means) and a mixture of Gaussians, to sample from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_CENTRES = 64
MOST_COMPONENTS = 16
ROUNDS = 100  # at most
FLOOR = 1e-6  # of variances
_SEED = 0


@dataclass(frozen=True)
class Clusters:
    """What many conditions are summed up in, float32.

    Attributes:
        centres: Centres of clusters `[K, F]`.
        weights: Share of each component of the mixture, `[C]`.
        means: Their means `[C, F]`.
        variances: Their variances `[C, F]`, along each dimension.
    """

    centres: Tensor
    weights: Tensor
    means: Tensor
    variances: Tensor

    def draws(self, count: int, rng: torch.Generator) -> Tensor:
        """Return points `[count, F]` of the mixture."""
        picks = torch.multinomial(self.weights, count, replacement=True, generator=rng)
        noise = torch.randn(count, self.means.shape[1], generator=rng)
        return self.means[picks] + self.variances[picks].sqrt() * noise


def fitted(vectors: Tensor) -> Clusters:
    """Return the clusters of all conditions `[N, F]`, the same ones every time."""
    points, rng = vectors.double(), torch.Generator().manual_seed(_SEED)
    centres = kmeans(points, min(MOST_CENTRES, (len(points) + 1) // 2), rng)
    components = mixture(points, max(1, min(MOST_COMPONENTS, len(points) // 4)), rng)
    return Clusters(*(tensor.float() for tensor in (centres, *components)))


def kmeans(points: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return the centres `[count, F]` of clusters of points `[N, F]`.

    Lloyd 1982, from the start of Arthur and Vassilvitskii 2007 (k-means++).
    """
    centres = points[torch.randint(len(points), [1], generator=rng)]
    while len(centres) < count:
        far = torch.cdist(points, centres).min(1).values.square().clamp(min=FLOOR)
        centres = torch.cat([centres, points[torch.multinomial(far, 1, generator=rng)]])
    for _ in range(ROUNDS):
        owner = torch.cdist(points, centres).argmin(1)
        sizes = torch.bincount(owner, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        before, centres = centres, torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        if torch.equal(before, centres):
            break
    return centres


def mixture(points: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights `[count]`, means and variances `[count, F]` of a mixture of Gaussians.

    Dempster, Laird and Rubin 1977 (EM), with variances along each dimension, from `kmeans`.
    """
    means = kmeans(points, count, rng)
    variances = points.var(0, correction=0).clamp(min=FLOOR).expand_as(means)
    weights = points.new_full([count], 1 / count)
    squares = points.square()
    for _ in range(ROUNDS):
        exact = 1 / variances
        distances = squares @ exact.T - 2 * points @ (means * exact).T
        distances = distances + (means.square() * exact).sum(1) + variances.log().sum(1)
        shares = (weights.log() - distances / 2).softmax(1)
        sizes = shares.sum(0).clamp(min=FLOOR)[:, None]
        before, means = means, shares.T @ points / sizes
        variances = (shares.T @ squares / sizes - means.square()).clamp(min=FLOOR)
        weights = sizes[:, 0] / sizes.sum()
        if torch.allclose(before, means, rtol=0, atol=1e-9):
            break
    return weights, means, variances
