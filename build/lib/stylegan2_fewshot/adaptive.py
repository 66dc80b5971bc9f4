"""The probability that ADA and APA steer by the sign of D's logits, each with its own."""

from __future__ import annotations

import torch
from torch import Tensor

from . import distributed
from .plugin import Plugins, Run

INTERVAL = 4  # iterations between two moves of p


def default_kimg(*, kimg: float, resumed: bool, few_shot: bool) -> float:
    """Return in how many thousands of images p can go from 0 to 1.

    500, or 100 in transfer learning, as Karras et al. 2020 have it. A run of a few thousand images
    would be over before such a p could act: with few images it is at most 5 % of the run.
    """
    if not resumed:
        return 500.0
    return min(100.0, kimg / 20) if few_shot else 100.0


def reached(plugins: Plugins) -> str:
    """Return a line about the p that each plugin has come to; empty where none has one."""
    words = [f"{name} {part.p.item():.3f}" for name, part in _parts(plugins)]
    return f"p reached: {', '.join(words)}" if words else ""


def about_targets(plugins: Plugins) -> str:
    """Return a line about probabilities that nothing keeps apart; empty where that is not so."""
    settings = [(part.target, part.kimg) for _, part in _parts(plugins)]
    if len(settings) < 2 or len(set(settings)) > 1:
        return ""
    names = " and ".join(name for name, _ in _parts(plugins))
    return (
        f"{names} have equal targets and speeds, so that both p run in parallel; give them "
        "different targets to compare them"
    )


def _parts(plugins: Plugins) -> list[tuple[str, AdaptiveProbability]]:
    named = [(name, part) for name, plugin in plugins.items() for part in plugin.modules()]
    return [(name, part) for name, part in named if isinstance(part, AdaptiveProbability)]


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
