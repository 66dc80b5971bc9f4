"""One file or folder per method; what is imported here is registered."""

from . import ada, apa, bank, cdc, diffaugment, ewc, fixed, freezed, fsgan, lecam, prior, tune

__all__ = [
    "ada",
    "apa",
    "bank",
    "cdc",
    "diffaugment",
    "ewc",
    "fixed",
    "freezed",
    "fsgan",
    "lecam",
    "prior",
    "tune",
]
