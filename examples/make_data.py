"""Draw the portraits that the experiments learn from and adapt to.

    python examples/make_data.py                        # all styles at 32x32, in out/data
    python examples/make_data.py --size=64 --styles=lorelei

Each portrait is drawn from its number by DiceBear, rendered at 64x64 and averaged down; drawings
that look alike count once. An interrupted run resumes. data.json holds the SHA-256 of the pixels:
what differs from it is refused, so that everyone measures against the same images.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import itertools
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
RECORD = HERE / "data.json"
DRAWN = 64  # pixels: the largest size
CHUNK = 200  # drawings in a file of parts/
STYLES = {"toon-head": 25_000, "lorelei": 6_000, "personas": 6_000}
SOURCE = "toon-head"
POOL = 1000  # of a target's images to choose training images from; all others are held out
EMBEDDED = {"ten": ("ten0", None), "heldout": ("heldout", 300)}  # file: part, how many of it


def parts(style: str) -> dict[str, np.ndarray]:
    """Return which of a style's images each archive holds, by the archive's name."""
    numbers = np.arange(STYLES[style])
    if style == SOURCE:
        return {"train": numbers[:20_000], "heldout": numbers[20_000:]}
    chosen = np.random.RandomState(0).permutation(POOL)
    tens = {f"ten{i}": np.sort(chosen[10 * i : 10 * i + 10]) for i in range(5)}
    return {**tens, "hundred": np.sort(chosen[50:150]), "heldout": numbers[POOL:]}


def archive(style: str, part: str, size: int = 32) -> Path:
    """Return where an archive of drawn images is, below the project's root."""
    return Path(f"out/data/{style}-{size}-{part}.zip")


@cache
def definition(style: str) -> Any:
    """Return DiceBear's definition of a style."""
    from dicebear import Style

    text = importlib.resources.files("dicebear_styles").joinpath(f"{style}.json").read_text()
    return Style(json.loads(text))


def draw(style: str, number: int) -> np.ndarray:
    """Return a portrait as uint8 `[64, 64, 3]` on white."""
    import resvg_py
    from dicebear import Avatar

    svg = str(Avatar(definition(style), {"seed": f"{number:06d}"}))
    png = resvg_py.svg_to_bytes(
        svg, width=DRAWN, height=DRAWN, background="white", skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def draw_chunk(task: tuple[str, int, Path]) -> Path:
    """Write the drawings of one chunk, unless they are there; return their file."""
    style, chunk, folder = task
    path = folder / f"{style}-{chunk:03d}.npy"
    if not path.exists():
        first = chunk * CHUNK
        pixels = np.stack([draw(style, number) for number in range(first, first + CHUNK)])
        new = path.with_suffix(f".{os.getpid()}.part")
        with new.open("wb") as stream:
            np.save(stream, pixels)
        os.replace(new, path)
    return path


def distinct(drawings: Iterable[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` images that differ from all before them, and their numbers."""
    seen: dict[bytes, tuple[int, np.ndarray]] = {}
    for number, pixels in enumerate(drawings):
        seen.setdefault(hashlib.sha256(pixels.tobytes()).digest(), (number, pixels))
        if len(seen) == count:
            break
    numbers, images = zip(*seen.values(), strict=True)
    return np.stack(images), np.array(numbers)


def portraits(style: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Draw a style's images `[N, 64, 64, 3]`; return them and the numbers they are drawn from."""
    count = STYLES[style]
    with get_context("spawn").Pool() as pool, tqdm(total=count, desc=style, unit="img") as bar:

        def drawings() -> Iterator[np.ndarray]:
            expected = -(-count // CHUNK) + 1
            tasks = ((style, chunk, folder) for chunk in range(expected))
            more = ((style, chunk, folder) for chunk in itertools.count(expected))
            for path in itertools.chain(pool.imap(draw_chunk, tasks), map(draw_chunk, more)):
                bar.update(min(CHUNK, count - bar.n))
                yield from np.load(path, allow_pickle=False)

        return distinct(drawings(), count)


def reduced(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return images `[N, size, size, 3]`: means of squares, as Pillow rounds them."""
    factor = DRAWN // size
    return np.stack([np.asarray(Image.fromarray(image).reduce(factor)) for image in pixels])


def sha256(pixels: np.ndarray) -> str:
    """Return the SHA-256 of uint8 images, in hexadecimal."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def check(name: str, pixels: np.ndarray, known: Mapping[str, Any]) -> None:
    """Refuse images that are not those of data.json; what it does not name may be anything.

    Raises:
        click.ClickException: They differ.
    """
    if name in known and sha256(pixels) != known[name]["sha256"]:
        raise click.ClickException(
            f"{name}: other pixels than in {RECORD.name}; install the pinned packages: "
            "pip install -r requirements-examples.txt"
        )


def encode(pixels: np.ndarray) -> bytes:
    """Return an image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def write_zip(path: Path, pngs: Mapping[str, bytes]) -> None:
    """Store files uncompressed under a fixed date, so that equal images give equal archives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".part")
    with zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as stream:
        for name, png in sorted(pngs.items()):
            stream.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), png)
    os.replace(new, path)


def write_style(style: str, size: int, out: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a style and write its archives; return what data.json says about them."""
    if all((out / archive(style, part, size).name).exists() for part in parts(style)):
        click.echo(f"{style}: all there")
        return {}
    (out / "parts").mkdir(parents=True, exist_ok=True)
    images, numbers = portraits(style, out / "parts")
    images, found = reduced(images, size), {}
    for part, chosen in parts(style).items():
        name = archive(style, part, size).name
        check(name, images[chosen], known)
        pngs = {f"{numbers[i]:06d}.png": encode(images[i]) for i in chosen}
        write_zip(out / name, pngs)
        found[name] = {"images": len(chosen), "sha256": sha256(images[chosen])}
    return found


def embed(style: str, out: Path, folder: Path) -> None:
    """Write a target's first ten and a few of its held-out images for the repository."""
    for name, (part, count) in EMBEDDED.items():
        with zipfile.ZipFile(out / archive(style, part).name) as stream:
            pngs = {entry: stream.read(entry) for entry in stream.namelist()[:count]}
        write_zip(folder / f"{style}-{name}.zip", pngs)


@click.command(help=__doc__.split("\n")[0])
@click.option("--size", type=click.Choice(["32", "64"]), default="32", show_default=True)
@click.option("--styles", default=",".join(STYLES), show_default=True, help="Some of them.")
@click.option("--out", type=click.Path(path_type=Path), default=HERE.parent / "out/data")
@click.option("--record", is_flag=True, help="Write data.json and the embedded archives anew.")
def main(size: str, styles: str, out: Path, record: bool) -> None:
    """Draw what is missing."""
    if unknown := set(styles.split(",")) - set(STYLES):
        raise click.UsageError(f"--styles: {unknown.pop()} is none of {', '.join(STYLES)}")
    try:
        import dicebear  # noqa: F401
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise click.UsageError(f"{error}; pip install -r requirements-examples.txt") from error
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for style in styles.split(","):
        found = write_style(style, int(size), out, {} if record else known)
        known.update(found)
        if record and style != SOURCE and size == "32":
            embed(style, out, HERE)
    if record:
        RECORD.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
