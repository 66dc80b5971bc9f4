"""Opening image files: the formats that are let in, which way up, and what a header says."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stylegan2_fewshot.files import refusing

# Of all images that are trained on or measured. Pillow knows more, and starts programs for some.
FORMATS = ("PNG", "JPEG", "WEBP")
# What `tools.prepare` reads as well; none of them makes Pillow start a program.
RASTER = (*FORMATS, "BMP", "GIF", "TIFF", "PPM")
CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
# Pillow refuses twice as many; a camera's 100 megapixels are no reason for a warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = {0: "L", 2: "RGB", 3: "RGB", 4: "RGBA", 6: "RGBA"}  # by colour type
_HEADS = (4096, 65536)  # bytes in which a header is looked for before the whole file is read


class Header(NamedTuple):
    """What a header says.

    Attributes:
        mode: L, RGB or RGBA, whichever holds what the file shows; else what it is, as "16-bit".
        width: In pixels, as stored: EXIF may turn the image.
        height: In pixels, as stored.
    """

    mode: str
    width: int
    height: int


@contextlib.contextmanager
def opened(
    source: IO[bytes] | str | os.PathLike[str],
    name: str | os.PathLike[str],
    formats: Sequence[str] = FORMATS,
) -> Iterator[Image.Image]:
    """Open an image file of an allowed format; it is decoded when its pixels are asked for.

    Args:
        source: The file.
        name: What an error calls it.
        formats: Formats to allow, as Pillow names them.

    Raises:
        ValueError: It is not such a file, or decoding fails in the body of the `with`.
    """
    with refusing(name, "cannot be read as an image", "replace or remove it"):
        try:
            image = Image.open(source, formats=list(formats))
        except UnidentifiedImageError:
            *others, last = formats
            raise ValueError(f"not a {', '.join(others)} or {last} file") from None
        with image:
            yield image


def upright(image: Image.Image) -> Image.Image:
    """Return the image as its EXIF orientation says that it is to be looked at."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):  # damaged EXIF
        return image


def rgba(path: str | os.PathLike[str]) -> Image.Image:
    """Return an image file's content with alpha, the right way up.

    Raises:
        ValueError: It is not an image of an allowed format.
    """
    with opened(path, path) as image:
        return upright(image).convert("RGBA")


def pixels(image: Image.Image, resolution: int, channels: int) -> np.ndarray:
    """Return the middle square of an image as a training image would be, uint8 `[C, R, R]`.

    Args:
        image: RGBA; lies on white, where there is no channel for alpha.
        resolution: R.
        channels: 1, 3 or 4: grey, RGB or RGBA.
    """
    mode = next(mode for mode, count in CHANNELS.items() if count == channels)
    if mode != "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    square = ImageOps.fit(image.convert(mode), (resolution, resolution), Image.Resampling.LANCZOS)
    return np.asarray(square).reshape(resolution, resolution, -1).transpose(2, 0, 1).copy()


def header(data: bytes, name: str) -> Header:
    """Return what the header of an image file says, given at least its first bytes.

    Raises:
        ValueError: It is not an image, or these bytes do not hold all of the header.
    """
    if found := _png_header(data):
        return found
    with opened(io.BytesIO(data), name) as image:
        if image.mode.startswith("I;16"):
            mode = "16-bit"
        elif image.mode in ("CMYK", "I", "F", "LAB", "HSV"):
            mode = image.mode
        elif image.has_transparency_data:
            mode = "RGBA"
        else:
            mode = "L" if image.mode in ("1", "L") else "RGB"
        return Header(mode, *image.size)


def checked_header(size: int, part: Callable[[int, int], bytes], name: str) -> Header:
    """Return the header of an image file that is complete, as far as its end tells.

    Only a file that does not end as it should is decoded: data may follow a JPEG's end.

    Args:
        size: Bytes of the file.
        part: Reads the bytes `[start, stop)`.
        name: What an error calls it.

    Raises:
        ValueError: It is not an image, or damaged.
    """
    found = None
    for length in (n for n in _HEADS if n < size):
        with contextlib.suppress(ValueError):
            found = header(part(0, length), name)
            break
    found = found or header(part(0, size), name)
    if not _is_complete(part(0, 12), part(max(size - 8, 0), size), size):
        with opened(io.BytesIO(part(0, size)), name) as image:
            image.load()
    return found


def _is_complete(head: bytes, tail: bytes, size: int) -> bool:
    if head.startswith(_PNG_SIGNATURE):
        return tail == b"IEND\xaeB`\x82"
    if head.startswith(b"RIFF"):  # WebP
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return head.startswith(b"\xff\xd8") and tail.endswith(b"\xff\xd9")


def _png_header(data: bytes) -> Header | None:
    """Return the header of a PNG, or None: Pillow takes ten times as long to say the same."""
    if not data.startswith(_PNG_SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    mode, place = _PNG_MODES.get(colour), 33
    while mode and place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            return Header("16-bit" if depth == 16 else mode, width, height)
        if kind == b"tRNS":
            mode = "RGBA"
        place += 12 + length
    return None
