"""Few-shot methods for StyleGAN2-ADA, each one file that plugs into one loop."""

from __future__ import annotations

from . import methods
from .plugin import Plugin, Plugins, Run, Step, register

__all__ = ["Plugin", "Plugins", "Run", "Step", "methods", "register"]
