"""The diagonal Fisher information of a network: estimated from samples, and kept in a file."""

from .estimator import Settings, estimate, summary
from .file import Fisher, load, save, writable_folder

__all__ = ["Fisher", "Settings", "estimate", "load", "save", "summary", "writable_folder"]
