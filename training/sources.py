"""Where network files come from: a path, a URL, a short name or a run."""

from __future__ import annotations

import os
import re
from pathlib import Path

from metrics.downloads import SourceError, check_hash, copy_of
from metrics.downloads import fetch as download
from stylegan2_fewshot.files import without_secrets

from . import run_dir

NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/transfer-learning-source-nets/"
SHORT_NAMES = {
    "ffhq256": NVIDIA + "ffhq-res256-mirror-paper256-noaug.pkl",
    "ffhq512": NVIDIA + "ffhq-res512-mirror-stylegan2-noaug.pkl",
    "ffhq1024": NVIDIA + "ffhq-res1024-mirror-stylegan2-noaug.pkl",
    "celebahq256": NVIDIA + "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
    "lsundog256": NVIDIA + "lsundog-res256-paper256-kimg100000-noaug.pkl",
}


def newest_network(place: str | os.PathLike[str]) -> str:
    """Return the newest network of a run directory; anything but a folder is returned as it is.

    Raises:
        ValueError: The folder has no network.
    """
    folder = Path(place).expanduser()
    return str(run_dir.newest_network(folder)) if folder.is_dir() else os.fspath(place)


def is_here(path_or_url: str) -> bool:
    """Return whether a network is on this machine, so that nothing has to be downloaded."""
    url = SHORT_NAMES.get(path_or_url, path_or_url)
    if re.match(r"https?://", url):
        return copy_of(url).is_file()
    return Path(url).expanduser().is_file()


def shown(path_or_url: str | os.PathLike[str]) -> str:
    """Return a network for messages: a URL without what is secret in it, and with its copy."""
    text = newest_network(path_or_url)
    url = SHORT_NAMES.get(text, text)
    if re.match(r"https?://", url) and (copy := copy_of(url)).is_file():
        return f"{without_secrets(text)} (downloaded as {copy}; delete that to download it anew)"
    return without_secrets(text)


def _problem(start: bytes) -> str | None:
    """Say what is wrong with the first bytes of a network of any format; a gzip, for instance."""
    is_pickle, is_zip = start[:1] == b"\x80", start[:4] == b"PK\x03\x04"
    is_safetensors = start[6:9] == b"\0\0{"  # a header of less than 2^48 bytes, then JSON
    return None if is_pickle or is_zip or is_safetensors else "not a network file"


def fetch(path_or_url: str | os.PathLike[str], *, sha256: str | None = None) -> Path:
    """Return a local path to a file, downloading it where that is needed.

    Args:
        path_or_url: A path, an http(s) URL, one of `SHORT_NAMES`, or a run directory, which stands
            for its newest network.
        sha256: The hash that the file must have, in hexadecimal; None for any.

    Raises:
        SourceError: The file does not exist, cannot be downloaded whole, or has another hash.
        ValueError: The folder has no network.
    """
    text = newest_network(path_or_url)
    url = SHORT_NAMES.get(text, text)
    if re.match(r"https?://", url):
        return download(url, sha256=sha256, problem=_problem)
    path = Path(text).expanduser()
    if not path.is_file():
        raise SourceError(
            f"{text}: no such file; give a path, a URL, or one of {', '.join(SHORT_NAMES)}"
        )
    check_hash(path, sha256, source=text, remedy="get the file again")
    return path
