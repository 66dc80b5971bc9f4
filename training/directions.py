"""Directions in w that change an image most, found in a generator's weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def sefa(G: Any, layers: Sequence[int] | None = None) -> Tensor:
    """Return directions `[w_dim, w_dim]` as rows of length 1, the strongest first.

    Shen & Zhou, CVPR 2021 (arXiv 2007.06600), Eq. 7: eigenvectors of A^T A, where A stacks the
    matrices that turn w into the styles of the convolutions, each row of length 1. An eigenvector
    has no sign; here its largest component is positive.

    Args:
        G: Generator.
        layers: Convolutions to take into account, 0 the coarsest; all by default.
    """
    names = ("conv0", "conv1")
    blocks = [getattr(G.synthesis, f"b{res}") for res in G.synthesis.block_resolutions]
    convs = [getattr(block, name) for block in blocks for name in names if hasattr(block, name)]
    chosen = convs if layers is None else [convs[i] for i in layers]
    rows = torch.cat([conv.affine.weight.double() for conv in chosen])
    rows = torch.nn.functional.normalize(rows, dim=1)
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    directions: Tensor = vectors.T[values.argsort(descending=True)]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return (directions * largest.sign()).float()
