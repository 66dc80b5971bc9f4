"""Frames on their way into an MP4, an animated WebP or GIF, or a folder."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stylegan2_fewshot.files import replacing

from .output import Output

MOVIES = (".mp4", ".webp", ".gif")


def check(path: Path) -> None:
    """Raise ValueError unless frames can be written to such a path."""
    if path.suffix not in ("", *MOVIES):
        raise ValueError(f"--out={path}: must end in {', '.join(MOVIES)}, or be a folder")
    if path.suffix == ".mp4":
        _av()


def write(output: Output, path: Path, frames: Iterable[Image.Image], fps: int) -> None:
    """Write RGB, grey or RGBA frames of one size; a movie is complete or absent.

    In WebP pixels are kept to the last bit. An MP4 has no transparency and even sides, for which
    a last row or column is repeated. Equal frames in a row become one long one in WebP and GIF.
    """
    if not path.suffix:
        for number, frame in enumerate(frames):
            output.picture(f"frame{number:05d}.png", frame)
        return
    with output.file(path) as stream:
        if path.suffix == ".mp4":
            _mp4(stream, frames, fps)
        else:
            first, *others = frames
            options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
            duration = round(1000 / fps)
            common = dict(save_all=True, append_images=others, duration=duration, loop=0)
            first.save(stream, path.suffix[1:], **common, **options)


def save(path: Path, frames: Iterable[Image.Image], fps: int) -> None:
    """Write an MP4 by itself."""
    with replacing(path) as stream:
        _mp4(stream, frames, fps)


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise ValueError(
            "MP4 needs PyAV: pip install av (its wheel carries GPL encoders), or write .webp"
        ) from None
    return av


def _mp4(stream: Any, frames: Iterable[Image.Image], fps: int) -> None:
    av = _av()
    with av.open(stream, "w", format="mp4") as movie:
        track: Any = None
        for frame in frames:
            pixels = np.asarray(frame.convert("RGB"))
            pixels = np.pad(pixels, [(0, s % 2) for s in pixels.shape[:2]] + [(0, 0)], mode="edge")
            if track is None:
                track = movie.add_stream("libx264", rate=Fraction(fps), options={"crf": "16"})
                track.height, track.width = pixels.shape[:2]
                track.pix_fmt = "yuv420p"
            for packet in track.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                movie.mux(packet)
        for packet in track.encode():
            movie.mux(packet)
