"""The diagonal Fisher information of a network: estimated from samples, and kept in a file."""

from .estimator import Settings, estimate, summary
from .file import Fisher, kind_of, load, save, writable_folder

__all__ = [
    "Fisher",
    "Settings",
    "estimate",
    "kind_of",
    "load",
    "save",
    "summary",
    "writable_folder",
]
