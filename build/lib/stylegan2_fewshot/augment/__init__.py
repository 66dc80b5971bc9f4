"""Stochastic augmentation: the pipe of transforms that ADA uses, and the warp beneath it."""

from .pipe import AugmentPipe

__all__ = ["AugmentPipe"]
