"""The probability that ADA and APA steer by the sign of D's logits, each with its own."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _dist


class AdaptiveProbability(torch.nn.Module):
    """A probability p that rises while an overfitting signal exceeds its target.

    Karras et al., NeurIPS 2020 (arXiv 2006.06676), section 3.2: every few iterations p moves by a
    fixed step towards more augmentation when the mean sign is above the target, towards less
    below it.

    Args:
        p: Initial probability, in [0, 1].
        maximum: Upper bound of p, in [0, 1].
    """

    p: Tensor
    sign_sum: Tensor
    count: Tensor

    def __init__(self, *, p: float = 0.0, maximum: float = 1.0) -> None:
        super().__init__()
        self.maximum = maximum
        self.register_buffer("p", torch.tensor(float(p)))
        self.register_buffer("sign_sum", torch.zeros([]))
        self.register_buffer("count", torch.zeros([]))

    def observe(self, signs: Tensor) -> None:
        """Add signs, any shape, values in [-1, 1], to the running mean."""
        self.sign_sum += signs.sum().to(self.sign_sum.dtype)
        self.count += signs.numel()

    def update(self, target: float, amount: float) -> Tensor:
        """Move p by `amount` towards the target and forget the signs; return their mean."""
        total = _dist.sum_(torch.stack([self.sign_sum, self.count]))
        mean = total[0] / total[1].clamp(min=1)
        self.p.add_((mean - target).sign() * amount).clamp_(0, self.maximum)
        self.sign_sum.zero_()
        self.count.zero_()
        return mean
