"""Distances between two sets of features, and the inception score; float64 throughout."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

_BLOCK = 8192  # rows converted to float64 at a time


class Moments(NamedTuple):
    """Mean `[F]` and covariance `[F, F]` of features, float64."""

    mean: Tensor
    cov: Tensor


def moments(features: Tensor) -> Moments:
    """Return mean and unbiased covariance of features `[N, F]`, N at least 2."""
    mean = torch.stack([rows.double().sum(0) for rows in features.split(_BLOCK)]).sum(0)
    mean /= len(features)
    cov = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=features.device)
    for rows in features.split(_BLOCK):
        centred = rows.double() - mean
        cov += centred.T @ centred
    return Moments(mean, cov / (len(features) - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the squared Frechet distance of the Gaussians with these moments.

    Heusel et al., NeurIPS 2017 (arXiv 1706.08500), Eq. 6. The trace of the root of `A B` is taken
    from the eigenvalues of the symmetric `A^1/2 B A^1/2`, which stays accurate where there are
    fewer images than features; the tests compare it with `scipy.linalg.sqrtm`.
    """
    root = _root(a.cov)
    middle = root @ b.cov.cpu().numpy() @ root
    # Only the symmetric part is real; eigenvalues below zero are rounding.
    eigenvalues = scipy.linalg.eigvalsh((middle + middle.T) / 2).clip(min=0)
    shift = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace()
    return float(shift) - 2 * float(np.sqrt(eigenvalues).sum())


def _root(cov: Tensor) -> np.ndarray:
    values, vectors = scipy.linalg.eigh(cov.cpu().numpy())
    root: np.ndarray = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def kernel_distance(
    real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the kernel distance of features `[N, F]` and its standard deviation over subsets.

    Binkowski et al., ICLR 2018 (arXiv 1801.01401): unbiased squared MMD under `(x.y / F + 1)^3`,
    averaged over random subsets of both sets, as long as the smaller one allows.
    """
    rng = np.random.RandomState(seed)
    size = min(len(real), len(fake), subset_size)
    values = [
        squared_mmd(_subset(real, size, rng), _subset(fake, size, rng)) for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def kernel_floor(features: Tensor, *, splits: int = 10, size: int = 1000, seed: int = 0) -> float:
    """Return the root mean square of the kernel distance between random halves of one set.

    A distance to that set of this size cannot be told from none.

    Args:
        features: Features `[N, F]`, N at least 4.
        splits: How often to split.
        size: Most features in a half.
        seed: Seed of the splits.
    """
    rng = np.random.RandomState(seed)
    size = min(size, len(features) // 2)
    pairs = (_subset(features, 2 * size, rng).split(size) for _ in range(splits))
    return float(np.sqrt(np.mean([squared_mmd(x, y) ** 2 for x, y in pairs])))


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Return the unbiased estimate of the squared MMD of features `[N, F]` and `[M, F]`."""
    x, y = x.double(), y.double()
    return float(_mean_of_pairs(_kernel(x, x)) + _mean_of_pairs(_kernel(y, y))) - 2 * float(
        _kernel(x, y).mean()
    )


def _subset(features: Tensor, size: int, rng: np.random.RandomState) -> Tensor:
    chosen = rng.choice(len(features), size, replace=False)
    return features[torch.from_numpy(chosen).to(features.device)]


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1).pow_(3)


def _mean_of_pairs(kernel: Tensor) -> Tensor:
    """Return the mean over all entries but the diagonal."""
    return (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """Return mean and standard deviation over splits of the score of class probabilities `[N, K]`.

    Salimans et al., NeurIPS 2016 (arXiv 1606.03498): `exp E KL(p(y|x) || p(y))`, in each of
    `splits` consecutive parts.
    """
    edges = [i * len(probabilities) // splits for i in range(splits + 1)]
    parts = (probabilities[a:b] for a, b in itertools.pairwise(edges))
    scores = [float(_score(part.double())) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


def _score(p: Tensor) -> Tensor:
    # xlogy is 0 where a class has no probability at all.
    divergence = torch.xlogy(p, p).sum(1) - torch.xlogy(p, p.mean(0)).sum(1)
    return divergence.mean().exp()
