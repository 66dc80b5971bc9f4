"""One file or folder per method; what is imported here is registered."""

from . import ada, apa, bank, diffaugment, ewc, fixed, freezed, lecam, prior

__all__ = ["ada", "apa", "bank", "diffaugment", "ewc", "fixed", "freezed", "lecam", "prior"]
