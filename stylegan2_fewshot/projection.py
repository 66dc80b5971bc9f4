"""The unconditional term of a projection discriminator."""

from __future__ import annotations

import math
from typing import Any

import torch

from .ops.reference import ACTIVATIONS


@torch.no_grad()
def add_unconditional_term(D: Any) -> None:
    """Let the first number of the mapped label be constant, so that what it meets is a logit.

    StyleGAN2's conditional logit is `<proj(c), phi(y)>`; with this it is
    `psi(phi(y)) + <proj(c), phi(y)>`, Mangla et al., WACV 2022 (arXiv 2012.04256), Eq. 4.

    Args:
        D: Conditional discriminator; is changed. Its other weights stay.
    """
    last = getattr(D.mapping, f"fc{D.mapping.num_layers - 1}")
    first_number = math.sqrt(D.b4.cmap_dim)  # which the logit is divided by again
    last.weight[0] = 0
    last.bias[0] = first_number / ACTIVATIONS[last.activation].gain / last.bias_gain
