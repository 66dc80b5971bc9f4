"""Pictures as a camera leaves them: of several sizes, and turned by a number in their EXIF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZES = [(320, 240), (240, 320), (400, 300), (300, 300)]
ORIENTATION, TURNED = 0x0112, 6  # to be turned by 90 degrees to the right


def camera_photos(folder: Path, count: int) -> Path:
    """Write JPEGs with a yellow sky, every third of them lying on its side."""
    folder.mkdir()
    for i in range(count):
        rng = np.random.RandomState(i)
        image = Image.new("RGB", SIZES[i % len(SIZES)], tuple(rng.randint(0, 128, 3).tolist()))
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y, r = (rng.rand(3) * [image.width, image.height, 60]).tolist()
            color = tuple(rng.randint(0, 256, 3).tolist())
            draw.ellipse([x - r, y - r, x + r, y + r], fill=color)
        draw.rectangle([0, 0, image.width, image.height // 3], fill="yellow")
        exif = Image.Exif()
        if i % 3 == 0:
            image, exif[ORIENTATION] = image.rotate(90, expand=True), TURNED
        image.save(folder / f"IMG_{i:04d}.jpg", exif=exif, quality=90)
    return folder
