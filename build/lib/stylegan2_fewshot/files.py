"""Writing files so that each is complete or absent; what is wrong with one that is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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
        with new.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


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
