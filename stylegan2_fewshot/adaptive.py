"""The probability that ADA and APA steer by the sign of D's logits, each with its own."""

from __future__ import annotations

import torch
from torch import Tensor

from . import distributed
from .plugin import Run

INTERVAL = 4  # iterations between two moves of p


class AdaptiveProbability(torch.nn.Module):
    """A probability p that rises while an overfitting signal exceeds its target.

    Karras et al., NeurIPS 2020 (arXiv 2006.06676), section 3.2: every four iterations p moves by a
    fixed step towards more augmentation when the mean sign is above the target, towards less
    below it. After an iteration the state is the same on all ranks, as a checkpoint is of one.

    Args:
        target: Mean sign above which p rises and below which it falls, in [-1, 1].
        kimg: Thousands of images in which p can go from 0 to 1; 500, or 100 with --resume.
        maximum: Upper bound of p, in [0, 1].
        flags: The options that hold these three, for messages.

    Raises:
        ValueError: One of the three is out of its range.
    """

    p: Tensor
    sign_sum: Tensor
    count: Tensor
    batch: Tensor

    def __init__(
        self, target: float, kimg: float | None, maximum: float, *, flags: tuple[str, str, str]
    ) -> None:
        super().__init__()
        if not -1 <= target <= 1:
            raise ValueError(f"{flags[0]} must be in [-1, 1], got {target}")
        if kimg is not None and not kimg > 0:
            raise ValueError(f"{flags[1]} must be positive, got {kimg}")
        if not 0 <= maximum <= 1:
            raise ValueError(f"{flags[2]} must be in [0, 1], got {maximum}")
        self.target, self.kimg, self.maximum = target, kimg, maximum
        for name in ("p", "sign_sum", "count"):
            self.register_buffer(name, torch.zeros([]))
        # Of this rank in this iteration: sum of signs, number.
        self.register_buffer("batch", torch.zeros(2), persistent=False)

    def setup(self, run: Run) -> None:
        """Find how far p moves in this run."""
        kimg = self.kimg or (100 if run.resumed else 500)
        self._batch_size = run.batch_size
        self._amount = INTERVAL * run.batch_size / (kimg * 1000)

    def observe(self, signs: Tensor) -> None:
        """Add this rank's signs, any shape, values in [-1, 1], to the running mean."""
        self.batch[0] += signs.sum().to(self.batch.dtype)
        self.batch[1] += signs.numel()

    def moves_after(self, cur_nimg: int) -> bool:
        """Return whether p moves at the end of this iteration."""
        return (cur_nimg // self._batch_size + 1) % INTERVAL == 0

    def update(self, cur_nimg: int) -> None:
        """Take in the iteration's signs; if it is time, move p and forget them."""
        total = distributed.sum_(self.batch)
        self.sign_sum += total[0]
        self.count += total[1]
        self.batch.zero_()
        if self.moves_after(cur_nimg):
            mean = self.sign_sum / self.count.clamp(min=1)
            self.p.add_((mean - self.target).sign() * self._amount).clamp_(0, self.maximum)
            self.sign_sum.zero_()
            self.count.zero_()
