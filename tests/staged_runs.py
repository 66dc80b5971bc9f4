"""Run directories drawn to show a collapse, copies, or a training that goes well."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE, COLUMNS, ROWS = 32, 16, 3
STEPS = (4, 8, 12, 16)  # kimg of the snapshots
KINDS = {"collapse": "collapsed", "copy": "copies", "well": "learning"}  # and their verdict


def drawings(count: int, rng: np.random.RandomState) -> np.ndarray:
    """Return drawings of a disc or a box on a plain ground, `[N, 32, 32, 3]`."""
    found = []
    for _ in range(count):
        ground, ink = (tuple(int(v) for v in rng.randint(0, 256, 3)) for _ in range(2))
        picture = Image.new("RGB", (4 * SIZE, 4 * SIZE), ground)
        x, y, radius = (int(v) for v in rng.randint([40, 40, 16], [88, 88, 40]))
        draw = ImageDraw.Draw(picture)
        shape = draw.ellipse if rng.rand() < 0.5 else draw.rectangle
        shape((x - radius, y - radius, x + radius, y + radius), fill=ink)
        found.append(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX)))
    return np.stack(found)


def learnt(images: np.ndarray, share: float, rng: np.random.RandomState) -> np.ndarray:
    """Return images as a network draws them that has learnt a share: blurred, with noise."""
    blur = ImageFilter.GaussianBlur(1 + 3 * (1 - share))
    blurred = np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in images])
    return np.clip(blurred + rng.randn(*blurred.shape) * 6, 0, 255).astype(np.uint8)


def samples(kind: str, share: float, reals: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Return a grid's pictures after a share of the training."""
    fresh = drawings(COLUMNS * ROWS, rng)
    if kind == "collapse":
        one = drawings(1, np.random.RandomState(rng.randint(1000)))
        fresh = (fresh * (1 - share) * 0.8 + one * (0.2 + 0.8 * share)).astype(np.uint8)
    if kind == "copy":
        picks = rng.randint(len(reals), size=len(fresh))
        fresh = (fresh * (1 - share) + reals[picks] * share).astype(np.uint8)
    return learnt(fresh, share, rng)


def save_grid(path: Path, images: np.ndarray) -> None:
    rows = images.reshape(ROWS, COLUMNS, SIZE, SIZE, 3).swapaxes(1, 2)
    Image.fromarray(rows.reshape(ROWS * SIZE, COLUMNS * SIZE, 3)).save(path)


def stage(kind: str, seed: int, folder: Path, *, name: str | None = None) -> Path:
    """Draw a run of a kind into a folder of its own, and return it."""
    rng = np.random.RandomState(seed)
    run = folder / (name or f"{kind}-{seed}")
    run.mkdir(parents=True)
    reals = drawings(8 if kind == "copy" else 200, rng)
    save_grid(run / "reals.png", reals[np.arange(COLUMNS * ROWS) % len(reals)])
    save_grid(run / "fakes_init.png", rng.randint(0, 256, (COLUMNS * ROWS, SIZE, SIZE, 3), "uint8"))
    for step in STEPS:
        grid = samples(kind, step / STEPS[-1], reals, rng)
        save_grid(run / f"fakes{step:06d}.png", grid)
    lines = [_tick(kind, kimg, rng) for kimg in range(1, STEPS[-1] + 1)]
    (run / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {
        "name": run.name,
        "dataset": {"path": "drawings", "xflip": False},
        "resume": None,
        "plugins": {"ada": {"target": 0.6}},
        "total_kimg": STEPS[-1],
        "metrics": ["kid5k_full"] if kind == "well" else [],
    }
    (run / "training_options.json").write_text(json.dumps(options))
    (run / "finished.json").write_text("{}")
    if kind == "well":
        write_metric(run, "kid5k_full", [0.4 / step for step in STEPS])
    return run


def write_metric(run: Path, name: str, values: list[float]) -> None:
    """Write a metric's results, one for each snapshot."""
    results = [
        {"metric": name, "results": {name: value}, "better": "lower", "kimg": step}
        for step, value in zip(STEPS, values, strict=True)
    ]
    (run / f"metric-{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in results))


def _tick(kind: str, kimg: int, rng: np.random.RandomState) -> dict:
    sign = {"collapse": 0.8, "copy": 0.99, "well": 0.5}[kind] + 0.01 * rng.rand()
    means = {
        "Loss/signs/real": sign,
        "Loss/signs/fake": -sign,
        "Loss/scores/real": 2 * sign,
        "Loss/scores/fake": -2 * sign,
        "Loss/G/loss": 1 + rng.rand(),
        "Loss/D/loss": 1 + rng.rand(),
        "Augment/ada_p": kimg / 100,
        "Timing/sec_per_kimg": 10 + rng.rand(),
    }
    moments = {name: {"num": 8, "mean": mean, "std": 0.1} for name, mean in means.items()}
    return {**moments, "nimg": 1000 * kimg, "timestamp": 0.0}
