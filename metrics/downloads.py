"""Downloads into the user's cache, which are resumed and whose hashes are checked."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
from filelock import FileLock

from stylegan2_fewshot import cache
from stylegan2_fewshot.files import sha256_of, without_secrets, write_text
from stylegan2_fewshot.progress import progress

_ATTEMPTS = 3
_TIMEOUT_SEC = (10, 60)  # to connect; between two pieces
CHUNK = 1 << 20


class SourceError(ValueError):
    """A file that is unavailable: the message names it, what happened and what to do."""


def anything(start: bytes) -> str | None:
    """Find nothing wrong with the first bytes of a file."""
    return None


def fetch(
    url: str,
    *,
    sha256: str | None = None,
    problem: Callable[[bytes], str | None] = anything,
) -> Path:
    """Return the local copy of an http(s) URL, downloading it where that is needed.

    A download goes to the user's cache (`stylegan2_fewshot.cache`) and is used again from there
    without asking the server. It is resumed where it broke off, also by a later call.

    Args:
        url: Where the file is.
        sha256: The hash that the file must have, in hexadecimal. Without it, a download's hash is
            noted beside it the first time, and checked against that note whenever it is used.
        problem: Says what is wrong with a file that begins with these bytes, or None: such a
            download is thrown away.

    Raises:
        SourceError: The file cannot be downloaded whole, or is another than it should be.
    """
    path = copy_of(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    note = _beside(path, ".sha256")
    with FileLock(_beside(path, ".lock")):  # one process downloads, the others wait for it
        if not path.is_file():
            note.unlink(missing_ok=True)
            _download(url, path, sha256, problem)
        noted = note.read_text().split() if note.is_file() else []
        expected = sha256 or (noted[0] if noted else None)
        digest = check_hash(
            path, expected, source=without_secrets(url), remedy=f"delete {path} and run again"
        )
        if not noted:
            write_text(note, f"{digest or sha256_of(path)}  {path.name}\n")
    return path


def copy_of(url: str) -> Path:
    """Return where `fetch` keeps a URL's copy; it may not be there yet."""
    return cache.folder() / _file_name(url)


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


def _download(
    url: str, path: Path, sha256: str | None, problem: Callable[[bytes], str | None]
) -> None:
    part, name = _beside(path, ".part"), without_secrets(url)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _continue(url, part)
            break
        except (requests.RequestException, _BrokenOff, _NotTheFile) as error:
            if attempt == _ATTEMPTS or _is_final(error):
                raise SourceError(f"{name}: {_reason(error)}; {_advice(error, path)}") from None
            time.sleep(attempt)
    try:
        check_hash(part, sha256, source=name, remedy="check the URL, or the hash that you gave")
        with part.open("rb") as file:
            start = file.read(512)
        if wrong := _about_web_page(start) or problem(start):
            raise SourceError(f"{name}: {wrong}; check the URL")
    except SourceError:
        part.unlink()
        raise
    os.replace(part, path)
    _beside(part, ".version").unlink(missing_ok=True)


class _BrokenOff(Exception):
    """A transfer that ended before the announced size."""


class _NotTheFile(Exception):
    """An answer that is something else, and will be so again."""


def _continue(url: str, part: Path) -> None:
    """Append to `part` what the server has beyond it, so that it is the whole file."""
    with requests.get(url, headers=_range(part), stream=True, timeout=_TIMEOUT_SEC) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink(missing_ok=True)
            raise _BrokenOff("the unfinished download does not fit the file any more")
        response.raise_for_status()
        if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise _NotTheFile(f"sent compressed ({encoding}), which was not asked for")
        start = part.stat().st_size if response.status_code == requests.codes.partial else 0
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        if start and not _fits(response.headers, start, total, part):
            part.unlink()
            raise _BrokenOff("the server sent another part than it was asked for")
        write_text(_beside(part, ".version"), version)
        name = part.name.removesuffix(".part")
        bar = progress(desc=name, initial=start, total=total, unit="B")
        with bar, part.open("ab" if start else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if total is not None and size != total:
        raise _BrokenOff(f"the connection ended after {size} of {total} bytes")


def _fits(headers: Mapping[str, str], start: int, total: int | None, part: Path) -> bool:
    """Return whether a partial answer is the rest of what lies in `part`."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if not match or int(match[1]) != start:
        return False
    if match[2] != "*" and total is not None and int(match[2]) != total:
        return False
    tag = headers.get("ETag")
    return tag is None or tag == _beside(part, ".version").read_text()


def _about_web_page(start: bytes) -> str | None:
    is_page = start.lstrip().lower().startswith((b"<!doctype", b"<html"))
    return "a web page instead of a file" if is_page else None


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
    if isinstance(error, requests.HTTPError):
        return error.response.status_code < 500
    return isinstance(error, _NotTheFile)


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
    return f"run again to resume the download, or put the file at {path}"
