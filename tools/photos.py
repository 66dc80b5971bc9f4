"""One photo becomes one square picture of a data set; nothing that is done to it goes unsaid."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from training import images

HEIC = (".heic", ".heif")
FITS = ("cover", "pad", "stretch")


@dataclass(frozen=True)
class Wanted:
    """What pictures are to be like.

    Attributes:
        size: Their side in pixels.
        fit: cover cuts the longer side off, pad puts white around, stretch distorts.
        keep_mode: Keep grey and alpha; otherwise all become RGB.
    """

    size: int
    fit: str = "cover"
    keep_mode: bool = False


class Picture(NamedTuple):
    """A picture and where it comes from.

    Attributes:
        png: The file.
        mode: L, RGB or RGBA.
        width: Of the photo, upright, in pixels.
        height: Of the photo, upright, in pixels.
        hash: 64 bits that hardly change when a photo is scaled or encoded again.
        notes: What was done to it, besides scaling.
    """

    png: bytes
    mode: str
    width: int
    height: int
    hash: int
    notes: list[str]


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the formats that can be read, HEIC if pi-heif is installed."""
    try:
        import pi_heif
    except ImportError:
        return images.RASTER
    pi_heif.register_heif_opener()
    return (*images.RASTER, "HEIF")


def picture(data: bytes, name: str, wanted: Wanted) -> Picture:
    """Return the picture that a photo gives.

    Args:
        data: The photo's file.
        name: What an error calls it.
        wanted: What the picture is to be like.

    Raises:
        ValueError: It is not a photo that can be read.
    """
    side = wanted.size
    with images.opened(io.BytesIO(data), name, formats()) as photo:
        notes = _about(photo)
        width, height = photo.size
        if _orientation(photo) > 4:
            width, height = height, width
        profile = photo.info.get("icc_profile")
        # A JPEG is decoded at an eighth to the whole of its size, at least twice what is wanted.
        photo.draft(photo.mode, (2 * side, 2 * side))
        shown = _in_eight_bits(images.upright(photo), profile, notes)
    if min(width, height) < side:
        notes.append(f"smaller than {side} pixels, enlarged")
    shown = _in_srgb(_fitted(shown, wanted), profile, notes)
    if not wanted.keep_mode:
        shown = _as_rgb(shown, notes)
    file = io.BytesIO()
    shown.save(file, "png")
    return Picture(file.getvalue(), shown.mode, width, height, dhash(shown), notes)


def dhash(image: Image.Image) -> int:
    """Return 64 bits: whether each of 8 x 8 areas is darker than the one to its right."""
    grey = np.asarray(_on_white(image).convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def thumbnail(png: bytes) -> np.ndarray:
    """Return a picture as 16 x 16 pixels, int16 `[16, 16, 3]`."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        small = _on_white(image).convert("RGB").resize((16, 16), Image.Resampling.BOX)
    return np.asarray(small).astype(np.int16)


def in_mode(png: bytes, mode: str) -> bytes:
    """Return a PNG with its pixels in another mode."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.convert(mode).save(file, "png")
    return file.getvalue()


def _about(photo: Image.Image) -> list[str]:
    notes = []
    if any(
        ";16" in str(tile[3]) for tile in getattr(photo, "tile", [])
    ):  # before EXIF is looked for, which loads
        notes.append("16 bits reduced to 8")
    if getattr(photo, "is_animated", False) and photo.format != "MPO":
        notes.append("animated, first frame taken")
    if _orientation(photo) > 1:
        notes.append("turned upright")
    if photo.mode == "CMYK":
        notes.append("CMYK turned to RGB")
    if photo.mode == "P":
        notes.append("palette turned to colours")
    return notes


def _orientation(photo: Image.Image) -> int:
    try:
        return int(photo.getexif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, TypeError, KeyError):  # damaged EXIF
        return 1


def _in_eight_bits(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Return the image as L, RGB or RGBA."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per pixel, of which nobody knows the range")
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "CMYK":
        return _in_srgb(image, profile, notes)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _in_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Return the image in sRGB, if its colour profile says how and is another one."""
    if profile and image.mode in ("RGB", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                target = ImageCms.createProfile("sRGB")
                shown = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
                image = shown or image
                notes.append("colours turned to sRGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append("colour profile unreadable, ignored")
    return image.convert("RGB") if image.mode == "CMYK" else image


def _fitted(image: Image.Image, wanted: Wanted) -> Image.Image:
    size, smooth = (wanted.size, wanted.size), Image.Resampling.LANCZOS
    if wanted.fit == "stretch":
        return image.resize(size, smooth)
    if wanted.fit == "pad":
        return ImageOps.pad(image, size, smooth, color="white")
    return ImageOps.fit(image, size, smooth)


def _as_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode == "RGBA" and np.asarray(image)[..., 3].min() < 255:
        notes.append("transparency laid on white")
    if image.mode == "L":
        notes.append("grey turned to RGB")
    return _on_white(image).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
