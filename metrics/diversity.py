"""How different images are that a generator makes from few training images: intra-cluster LPIPS.

Features here are LPIPS embeddings: the squared Euclidean distance of two is their LPIPS.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Diversity(NamedTuple):
    """Intra-cluster distance.

    Attributes:
        mean: Mean over clusters of their mean pairwise distance; 0 where no cluster has a pair.
        clusters: Number of clusters with two members or more.
        empty: Number of training images that no fake is nearest to.
    """

    mean: float
    clusters: int
    empty: int


def assign(embeddings: Tensor, centres: Tensor) -> Tensor:
    """Return the index `[N]` of the nearest of the centres `[K, F]` to each of `[N, F]`."""
    direct = "donot_use_mm_for_euclid_dist"  # the quick formula loses near-duplicates
    return torch.cdist(embeddings, centres, compute_mode=direct).argmin(1)


def choose_members(assigned: Tensor, clusters: int) -> list[Tensor]:
    """Return for each cluster the indices of its members, the first 50 at most.

    Fakes come in the random order of their latents, so the first are a choice by chance, which the
    seed of the latents fixes; and a fake between two clusters has no say in the others.
    """
    return [(assigned == cluster).nonzero().flatten()[:50] for cluster in range(clusters)]


def mean_pairwise(embeddings: Tensor) -> float:
    """Return the mean squared distance over all pairs of embeddings `[N, F]`, N at least 2."""
    return float(torch.nn.functional.pdist(embeddings).double().square().mean())


def intra_cluster(clusters: Iterable[Tensor]) -> Diversity:
    """Return the mean over clusters of their mean pairwise distance.

    Ojha et al., CVPR 2021 (arXiv 2104.06820), section 4.1. A cluster of one member has no distance
    and no part in the mean; nor has an empty one, but it is counted.

    Args:
        clusters: Embeddings `[N_k, F]` of the members of each cluster; N_k may be 0.
    """
    distances, empty = [], 0
    for members in clusters:
        empty += len(members) == 0
        if len(members) > 1:
            distances.append(mean_pairwise(members))
    return Diversity(float(np.mean(distances)) if distances else 0.0, len(distances), empty)
