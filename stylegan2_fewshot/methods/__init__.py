"""One file or folder per method; what is imported here is registered."""

from . import (
    ada,
    adam,
    apa,
    bank,
    cdc,
    dcl,
    diffaugment,
    ewc,
    fixed,
    freezed,
    fsgan,
    lecam,
    minegan,
    prior,
    rick,
    tune,
)

__all__ = [
    "ada",
    "adam",
    "apa",
    "bank",
    "cdc",
    "dcl",
    "diffaugment",
    "ewc",
    "fixed",
    "freezed",
    "fsgan",
    "lecam",
    "minegan",
    "prior",
    "rick",
    "tune",
]
