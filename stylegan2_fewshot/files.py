"""Writing files so that each is complete or absent; what is wrong with one that is read."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_MOST_REASON = 300  # characters of what a decoder says


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `path` once it is whole and on the disk.

    Folders above it are made where they are missing: what took hours is not to be lost for one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with naming(path), new.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, path)
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
