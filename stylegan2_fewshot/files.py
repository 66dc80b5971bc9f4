"""Writing files so that each is complete or absent; what is wrong with one that is read."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_MOST_REASON = 300  # characters of what a decoder says
_MOST_DIGITS, _MOST_DEPTH = 20, 50  # of JSON that runs write


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `path` once it is whole and on the disk.

    Folders above it are made where they are missing: what took hours is not to be lost for one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        new.unlink(missing_ok=True)  # one that is there may be a stranger's link to another place
        with naming(path), new.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, path)
    except OSError as error:
        if error.filename != os.fspath(new):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have an error that says that a disk is full say which file it was to hold."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        causes = (error, error.__cause__, error.__context__)  # torch.save wraps it
        numbers = [cause.errno for cause in causes if isinstance(cause, OSError)]
        for number in (errno.ENOSPC, errno.EDQUOT):
            if number in numbers:
                raise DiskFull(number, os.strerror(number), os.fspath(path)) from error
        raise


class DiskFull(OSError):
    """There is no room for a file, which is absent or as it was."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}; the same command resumes once there is room"


def append_json(path: str | os.PathLike[str], entry: Mapping[str, Any]) -> None:
    """Append a line of JSON; a number that is not finite becomes null."""
    with naming(path), open(path, "a") as stream:
        stream.write(json_line(entry) + "\n")


def json_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None where there is none that can be read."""
    try:
        found = _parsed(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of lines of JSON; what is something else is passed over.

    Half a line at the end is of a process that is writing, or was killed.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = []
    for line in text.rpartition("\n")[0].split("\n"):
        with suppress(ValueError, RecursionError):
            found.append(_parsed(line))
    return [entry for entry in found if isinstance(entry, dict)]


def _parsed(text: str) -> Any:
    """Return what JSON says, in which no number is too large and nothing nested too deep to use."""
    found = json.loads(text, parse_int=lambda n: int(n) if len(n) < _MOST_DIGITS else float(n))
    _refuse_depth(found, _MOST_DEPTH)
    return found


def _refuse_depth(value: Any, left: int) -> None:
    if left == 0:
        raise ValueError("nested too deep")
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            _refuse_depth(inner, left - 1)


def json_line(value: Any) -> str:
    """Return a value as strict JSON, with null for numbers that are not finite."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, complete or not at all."""
    with replacing(path) as stream:
        stream.write(text.encode())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def printable(text: str) -> str:
    r"""Return text with control characters and lone surrogates escaped, as `\x1b`.

    Names of files come from strangers, too: what they hold must not steer a terminal.
    """
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return "".join(escaped)


def without_secrets(text: str) -> str:
    """Return text with its URLs cut down to server and path: no user, password or query."""
    return re.sub(r"(?i)(https?://)(?:[^\s/?#]*@)?([^\s?#]*)\S*", r"\1\2", text)


def legible(error: object) -> str:
    """Return what an error says, as it may be shown: printable lines, and no secrets of URLs."""
    text = str(error)
    if isinstance(error, OSError) and error.filename and text.startswith("[Errno"):
        text = f"{os.fspath(error.filename)}: {error.strerror}"
    return "\n".join(map(printable, without_secrets(text).split("\n")))


@contextmanager
def refusing(name: str | os.PathLike[str], problem: str, advice: str) -> Iterator[None]:
    """Turn whatever decoders raise on a damaged file into a ValueError of one line.

    Args:
        name: The file's.
        problem: What the error begins with after the name, as "cannot be read as an image".
        advice: What the user should do.

    Raises:
        ValueError: `name: problem (reason); advice`.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        text = printable(str(error).partition("\n")[0])[:_MOST_REASON]
        kind = type(error).__name__  # without it, a KeyError says nothing
        is_sentence = text and isinstance(error, (ValueError, OSError))
        reason = text if is_sentence else f"{kind}: {text}".rstrip(": ")
        raise ValueError(f"{printable(os.fspath(name))}: {problem} ({reason}); {advice}") from error
