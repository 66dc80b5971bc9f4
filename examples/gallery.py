"""Makes the pictures of docs/gallery.md anew, by the commands that are written there.

    python -m examples.gallery [ADAPTED.pkl]

runs them in a temporary folder in which `adapted.pkl` is the file given, or the newest network of
the run given, and enlarges what they make into docs/gallery/. Without one, the page's training
makes it, in out/gallery.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from training.sources import newest_network

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gallery.md"
SCALE = 4
MADE = {  # picture of the page: file that the commands make, and by how much it is enlarged
    "walk.webp": ("walk.webp", SCALE),
    "mix.png": ("mix/grid.png", 3),
    "sheet.png": ("sheet.png", 2),
    "directions.png": ("directions.png", 2),
    "project.png": ("project/seed0004.png", SCALE),
    "blend.png": ("blend.png", 2),
    "resize.png": ("resize.png", 2),
}


def commands(page: str) -> list[list[str]]:
    """Return the page's commands, each as a module's name and its arguments."""
    blocks = re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in lines]
    return [w[2:] if w[1] == "-m" else [w[1].removesuffix(".py"), *w[2:]] for w in words if w]


def enlarge(source: Path, target: Path, scale: int) -> None:
    """Write a picture, or an animation, enlarged without smoothing."""
    with Image.open(source) as image:
        size = (image.width * scale, image.height * scale)
        frames = [
            frame.convert("RGB").resize(size, Image.Resampling.NEAREST)
            for frame in ImageSequence.Iterator(image)
        ]
        kind = "lossless" if target.suffix == ".webp" else "optimize"
        options: dict[str, Any] = {kind: True}
        if len(frames) > 1:
            duration = image.info.get("duration", 83)
            options |= dict(save_all=True, append_images=frames[1:], duration=duration, loop=0)
        frames[0].save(target, **options)


def trained(arguments: list[str]) -> Path:
    """Run the page's training, which resumes where it was, and return its newest network."""
    outdir = ROOT / "out" / "gallery"
    subprocess.run(
        [sys.executable, "train.py", *arguments, f"--outdir={outdir}"], cwd=ROOT, check=True
    )
    [run] = outdir.iterdir()
    return Path(newest_network(run))


def main() -> None:
    training, *others = commands(PAGE.read_text())
    given = sys.argv[1:]
    adapted = Path(newest_network(given[0])).resolve() if given else trained(training[1:])
    pictures = ROOT / "docs" / "gallery"
    pictures.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("adapted.pkl").symlink_to(adapted)
        Path("examples").symlink_to(ROOT / "examples")
        for name, *arguments in others:
            print(name, *arguments, flush=True)
            importlib.import_module(name).main(arguments, standalone_mode=False)
            for picture, (made, scale) in MADE.items():
                if Path("out", made).exists():
                    enlarge(Path("out", made), pictures / picture, scale)
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
