"""Files of npm packages, fetched once and kept in the user's cache."""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stylegan2_fewshot import cache
from stylegan2_fewshot.files import replacing

_TIMEOUT_SEC = 600


class NpmError(ValueError):
    """A package that cannot be fetched: the message says why."""


def fetch(package: str, version: str, names: Sequence[str]) -> Path:
    """Return a folder with files of a package, downloading it where they are not at hand.

    Nothing of the package is run; npm checks what it downloads against the registry's hash.

    Args:
        package: Its name.
        version: The one version to take.
        names: Paths of files in the package.

    Raises:
        NpmError: npm is missing or fails, or the package lacks a file.
    """
    folder: Path = cache.folder() / "npm" / f"{package.replace('/', '-')}-{version}"
    if not all((folder / name).is_file() for name in names):
        with tempfile.TemporaryDirectory() as temporary:
            _unpack(_packed(f"{package}@{version}", Path(temporary)), names, folder)
    return folder


def _packed(package: str, folder: Path) -> Path:
    command = ["npm", "pack", "--silent", f"--pack-destination={folder}", package]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_SEC)
    except FileNotFoundError:
        raise NpmError(f"{package} is downloaded by npm, which is not installed") from None
    except subprocess.TimeoutExpired:
        raise NpmError(f"{package}: npm did not download it within {_TIMEOUT_SEC} s") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())[:200] or f"status {error.returncode}"
        raise NpmError(f"{package}: npm could not download it ({reason})") from None
    return next(folder.glob("*.tgz"))


def _unpack(archive: Path, names: Sequence[str], folder: Path) -> None:
    with tarfile.open(archive) as package:
        for name in names:
            try:
                stream = package.extractfile(f"package/{name}")
            except KeyError:
                stream = None
            if stream is None:
                raise NpmError(f"{archive.name}: has no file {name}")
            with replacing(folder / name) as file:
                file.write(stream.read())
