"""The one folder for what can be made or fetched again: downloads, kernels, Fisher files, features.

`STYLEGAN2_FEWSHOT_CACHE` names it; otherwise it is where the operating system wants caches.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "STYLEGAN2_FEWSHOT_CACHE"
_NAME = "stylegan2_fewshot"


def folder() -> Path:
    """Return the cache folder of this user; it may not exist yet."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / _NAME
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / _NAME
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")).expanduser() / _NAME
