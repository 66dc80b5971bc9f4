"""Downloads into the user's cache, which are resumed and whose hashes are checked."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
from filelock import FileLock

from stylegan2_fewshot import cache
from stylegan2_fewshot.files import sha256_of, write_text
from stylegan2_fewshot.progress import progress

_ATTEMPTS = 3
_TIMEOUT_SEC = (10, 60)  # to connect; between two pieces
_CHUNK = 1 << 20


class SourceError(ValueError):
    """A file that cannot be had: the message names it, what happened and what to do."""


def fetch(url: str, *, sha256: str | None = None) -> Path:
    """Return the local copy of an http(s) URL, downloading it where that is needed.

    A download goes to the user's cache (`stylegan2_fewshot.cache`) and is used again from there
    without asking the server. It is resumed where it broke off, also by a later call.

    Args:
        url: Where the file is.
        sha256: The hash that the file must have, in hexadecimal. Without it, a download's hash is
            noted beside it the first time, and checked against that note whenever it is used.

    Raises:
        SourceError: The file cannot be downloaded whole, or has another hash.
    """
    path = cache.folder() / _file_name(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    note = _beside(path, ".sha256")
    with FileLock(_beside(path, ".lock")):  # one process downloads, the others wait for it
        if not path.is_file():
            note.unlink(missing_ok=True)
            _download(url, path, sha256)
        noted = note.read_text().split() if note.is_file() else []
        expected = sha256 or (noted[0] if noted else None)
        digest = check_hash(path, expected, source=url, remedy=f"delete {path} and run again")
        if not noted:
            write_text(note, f"{digest or sha256_of(path)}  {path.name}\n")
    return path


def is_downloaded(url: str) -> bool:
    """Return whether `fetch` would find a URL's copy on this machine."""
    return (cache.folder() / _file_name(url)).is_file()


def _file_name(url: str) -> str:
    """Name the copy of `url`: legible, safe on every file system, and its own for each URL."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    legible = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-80:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{legible}"


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def check_hash(path: Path, expected: str | None, *, source: str, remedy: str) -> str | None:
    if expected is None:
        return None
    digest = sha256_of(path)
    if digest != expected.lower():
        raise SourceError(f"{source}: SHA-256 is {digest}, expected {expected}; {remedy}")
    return digest


def _download(url: str, path: Path, sha256: str | None) -> None:
    part = _beside(path, ".part")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _continue(url, part)
            break
        except (requests.RequestException, _BrokenOff) as error:
            if attempt == _ATTEMPTS or _is_final(error):
                raise SourceError(f"{url}: {_reason(error)}; {_advice(error, path)}") from None
            time.sleep(attempt)
    try:
        check_hash(part, sha256, source=url, remedy="check the URL, or the hash that you gave")
    except SourceError:
        part.unlink()
        raise
    os.replace(part, path)
    _beside(part, ".version").unlink(missing_ok=True)


class _BrokenOff(Exception):
    """A transfer that ended before the announced size."""


def _continue(url: str, part: Path) -> None:
    """Append to `part` what the server has beyond it, so that it is the whole file."""
    with requests.get(url, headers=_range(part), stream=True, timeout=_TIMEOUT_SEC) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink(missing_ok=True)
            raise _BrokenOff("the unfinished download does not fit the file any more")
        response.raise_for_status()
        start = part.stat().st_size if response.status_code == requests.codes.partial else 0
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        write_text(_beside(part, ".version"), version)
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        name = part.name.removesuffix(".part")
        bar = progress(desc=name, initial=start, total=total, unit="B")
        with bar, part.open("ab" if start else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if total is not None and size != total:
        raise _BrokenOff(f"the connection ended after {size} of {total} bytes")


def _range(part: Path) -> dict[str, str]:
    """Ask for the rest of `part` only while the server still has the version that it is of."""
    headers = {"Accept-Encoding": "identity"}  # sizes and ranges count the bytes of the file
    note = _beside(part, ".version")
    version = note.read_text() if note.is_file() else ""
    if part.is_file() and part.stat().st_size and version and not version.startswith("W/"):
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": version}
    return headers


def _is_final(error: Exception) -> bool:
    """Tell an answer that will not change when asked again from a passing trouble."""
    return isinstance(error, requests.HTTPError) and error.response.status_code < 500


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError):
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return "the connection failed"
    return " ".join(str(error).split())


def _advice(error: Exception, path: Path) -> str:
    if _is_final(error):
        return "check the URL, or download the file by other means and give its path"
    return f"run again to go on from there, or put the file at {path}"
