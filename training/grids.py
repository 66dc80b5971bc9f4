"""Grids of images as PNG files and labelled pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from stylegan2_fewshot.files import replacing
from stylegan2_fewshot.pixels import to_uint8

GAP = 8  # pixels between a label and its row, and around labels


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """Turn images `[N, C, H, W]` in [-1, 1] into uint8 `[N, H, W, C]`, clipping the rest."""
    return to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()


def grid(images: torch.Tensor, columns: int | None = None) -> Image.Image:
    """Lay images `[N, C, H, W]` in [-1, 1] out row by row; a last row that is short ends in white.

    Args:
        images: At least one image, of 1, 3 or 4 channels: grey, RGB or RGBA.
        columns: Images per row; by default as many as make the grid about square.
    """
    pixels = to_pixels(images)
    count, height, width, channels = pixels.shape
    if channels not in (1, 3, 4):
        raise ValueError(f"images must have 1, 3 or 4 channels, got {channels}")
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    cells = np.full((rows * columns, height, width, channels), 255, np.uint8)
    cells[:count] = pixels
    cells = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    cells = cells.reshape(rows * height, columns * width, channels)
    return Image.fromarray(cells.squeeze(2) if channels == 1 else cells)


def save_png(path: str | os.PathLike[str], picture: Image.Image) -> None:
    """Write a PNG that is complete or absent, never half."""
    with replacing(path) as stream:
        picture.save(stream, "png")


def labelled_rows(rows: Sequence[tuple[str, torch.Tensor]]) -> Image.Image:
    """Draw one row of images per label, with the label to its left, on white.

    Args:
        rows: Labels and their images `[N, C, H, W]` in [-1, 1]; N may differ by row.
    """
    pictures = [grid(images, len(images)).convert("RGBA") for _, images in rows]
    height = max(picture.height for picture in pictures)
    font = ImageFont.load_default(min(max(height // 5, 12), 32))
    left = max(round(font.getlength(label)) for label, _ in rows) + 2 * GAP
    width = left + max(picture.width for picture in pictures)
    canvas = Image.new("RGB", (width, sum(p.height + GAP for p in pictures) + GAP), "white")
    draw, top = ImageDraw.Draw(canvas), GAP
    for (label, _), picture in zip(rows, pictures, strict=True):
        middle = (GAP, top + picture.height // 2)
        draw.text(middle, label, fill="black", font=font, anchor="lm")
        canvas.paste(picture, (left, top), picture)
        top += picture.height + GAP
    return canvas
